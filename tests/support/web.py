"""The web pages of one test: a warehouse with figures, flags and a case, served on a free port of 127.0.0.1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, insert

from tests.support.warehouse import chunk, migrated, writer
from vocbeam.deploy.broker import HOST
from vocbeam.pipelines.web.command import serving
from vocbeam.pipelines.web.figures import FigureKeeper
from vocbeam.pipelines.web.sign_in import SignIn, TokenSignIn
from vocbeam.pipelines.web.site import Settings, Site
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.governance_model import Governance
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import tables
from vocbeam.sinks.cases import receive_alerts
from vocbeam.sinks.engine import open_engine
from vocbeam.transforms.flags import NewFlag, flag_record

MINI = Path(__file__).parent / "mini.yaml"
TOKEN = "the token that was printed"
NOW = 1_530_000_000_000_000
"""2018-06-26 08:00 UTC."""

SCRIPT = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">"
"""Words of a flag that must stay words."""

CASES = {
    "alerts": [
        {
            "status": "firing",
            "fingerprint": f"print-{department}",
            "startsAt": "2018-06-20T09:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "labels": {
                "alertname": "TargetMissed",
                "metric": "csat",
                "stage": stage,
                "department": department,
                "unit": "points",
                "window": "week",
            },
            "annotations": {"summary": f"Satisfaction at {stage} has missed its target"},
        }
        for stage, department in (("deliver", "logistics"), ("help", "care"))
    ]
}


def governance() -> Governance:
    """The governance file of these tests."""
    return load_governance(MINI)


def fill(url: str) -> Engine:
    """A warehouse with 13 weeks of satisfaction at both stages, a flag for each department, and a case of each."""
    engine = migrated(url, governance())
    facts = [fact for week in range(13) for stage in ("deliver", "help") for fact in _week(week, stage)]
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), facts)
        receive_alerts(connection, CASES, at=NOW)
    raised = [
        _flag("1", "deliver", "logistics", "The driver is always early. " + SCRIPT),
        _flag("2", "help", "care", "Nobody answers on Mondays"),
    ]
    writing = writer(url, governance())
    writing.write((chunk(governance(), "flag", raised),))
    writing.close()
    return engine


def _flag(event_id: str, stage: str, department: str, text: str) -> dict[str, Any]:
    place = {"stage": stage, "department": department, "text": text}
    return {"event_id": event_id, "event_time": NOW - 10**9, "flag_kind": "red_flag", "severity": "high", **place}


def _week(week: int, stage: str) -> Iterator[dict[str, Any]]:
    day = date(2018, 4, 2) + timedelta(weeks=week)
    start, _ = LocalCalendar(governance().timezone).day_bounds(day)
    satisfied = 60 + 2 * week if stage == "help" else 95
    for score, n, topic in ((5, satisfied, "parcel"), (1, 100 - satisfied, "late")):
        yield {
            "metric": "csat",
            "grain": "day",
            "basis": "as_reported",
            "unit": "points",
            "topic": topic,
            "stage": stage,
            "department": "care" if stage == "help" else "logistics",
            "segment_1": "",
            "segment_2": "",
            "segment_3": "",
            "bucket_start": start,
            "date": day,
            "hour_start": None,
            "bin": score,
            "n": n,
            "weight": n * 10_000,
            "weight_sq": n * 10**8,
            "total": n * score,
        }


@dataclass
class Sent:
    """Takes flags as Kafka would, under the same rules; `records` are those it was given."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, flag: NewFlag, governance: Governance) -> str:
        record = flag_record(flag, governance, event_id=f"event-{len(self.records)}", event_time=NOW)
        self.records.append(record)
        return str(record["event_id"])


@dataclass
class Pages:
    """The served pages, and one visitor."""

    url: str
    site: Site
    client: httpx.Client

    def get(self, path: str, **options: Any) -> httpx.Response:
        """A page."""
        return self.client.get(path, **options)

    def post(self, path: str, form: dict[str, str], *, page: str = "/flags/new", **options: Any) -> httpx.Response:
        """A form, sent with the token of a page that holds one."""
        return self.client.post(path, data={"csrf_token": self.csrf(page, **options), **form}, **options)

    def csrf(self, page: str, **options: Any) -> str:
        """The token that forms of a page carry."""
        found = re.search(r'name="csrf_token" value="([^"]+)"', self.get(page, **options).text)
        assert found, f"{page} has no form"
        return found[1]

    def visitor(self) -> Pages:
        """The same pages for somebody else."""
        return Pages(self.url, self.site, httpx.Client(base_url=self.url, follow_redirects=False, timeout=30))


@contextmanager
def served(
    url: str,
    *,
    sign_in: SignIn | None = None,
    send: Callable[[NewFlag, Governance], str] | None = None,
    refresh_seconds: float = 3600,
    **settings: Any,
) -> Iterator[Pages]:
    """Pages over the warehouse at `url`; nobody is signed in yet."""
    reading = open_engine(url)
    keeper = FigureKeeper(reading, lambda: NOW, refresh_seconds)
    options = {"secret": "s" * 32, "public_url": f"http://{HOST}", "hosts": [HOST], "open_flags": True, **settings}
    writing = open_engine(url, write=True)
    site = Site(
        Settings(**options), sign_in or TokenSignIn(TOKEN), keeper, reading, writing, send or Sent(), lambda: NOW
    )
    with serving(site.app, keeper, HOST, 0) as port:
        pages = Pages(f"http://{HOST}:{port}", site, httpx.Client()).visitor()
        try:
            yield pages
        finally:
            pages.client.close()
    reading.dispose()
    writing.dispose()
