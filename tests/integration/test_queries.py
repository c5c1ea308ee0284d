"""Every query of docs/queries.md, on both databases, against answers computed from the events in plain Python."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from sqlalchemy import Engine, text, update

from tests.support.restating import giving, places_of
from tests.support.warehouse import chunk, new_warehouse, writer
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import DeadLetter, EventType, Tag
from vocbeam.schemas.timebase import DAY_US, HOUR_US, LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.restate import Restater
from vocbeam.sinks.tables import privacy
from vocbeam.transforms.subject_rules import subject_rules

PROJECT = Path(__file__).parents[2]
GOVERNANCE = load_governance(PROJECT / "schemas" / "examples" / "retailer.yaml")
CALENDAR = LocalCalendar(GOVERNANCE.timezone)
NAMES = {department.id: (department.name, department.representative) for department in GOVERNANCE.departments}

MONTHS = ("2018-01-01", "2018-02-01", "2018-03-01")
MARCH = MONTHS[2]
SURVEYED = (("deliver", "logistics"), ("get_help", "customer_service"), ("pay", "finance"))
LETTERS = 3

Event = dict[str, Any]
Rows = list[tuple[Any, ...]]


def queries() -> dict[int, str]:
    """Number of the question → its SQL."""
    page = (PROJECT / "docs" / "queries.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (\d+)\. ", page, flags=re.MULTILINE)[1:]
    return {
        int(number): sql
        for number, part in zip(parts[::2], parts[1::2], strict=True)
        for sql in re.findall(r"```sql\n(.*?)```", part, flags=re.DOTALL)
    }


class Company:
    """A quarter of events; what the questions ask of them is worked out here from the events alone."""

    def __init__(self) -> None:
        self.chance = random.Random(11)
        self.surveys = list(self._surveys())
        self.tickets = list(self._tickets())
        self.telemetry = list(self._telemetry())
        self.flags = list(self._flags())
        self.moved = {
            event["event_id"]: Tag("deliver", "supply_chain", "", "rule", 1.0)
            for event in self.answers("csat", MARCH)
            if event["department"] == "logistics" and self.chance.random() < 0.3
        }

    def _moment(self, month: str) -> int:
        start, _ = CALENDAR.day_bounds(date.fromisoformat(month))
        return start + self.chance.randrange(27 * DAY_US)

    def _surveys(self) -> Iterator[Event]:
        scales = {"nps": range(11), "csat": range(1, 6), "ces": range(1, 8)}
        for month in MONTHS:
            for i in range(150):
                metric = self.chance.choice(list(scales))
                stage, department = self.chance.choice(SURVEYED)
                at = self._moment(month)
                common = {
                    "event_time": at, "survey_id": "s", "response_id": f"{month}-{i}", "stage": stage, "sent_at": at,
                    "department": department, "segment_1": self.chance.choice(("SP", "RJ", "MG")), "month": month,
                }  # fmt: skip
                if self.chance.random() < 0.3:
                    yield {**common, "event_id": f"i{month}-{i}", "status": "sent", "metric": None, "score": None}
                    continue
                # Good or bad, so that targets are met and missed.
                score = self.chance.choice((scales[metric][0], scales[metric][-1], scales[metric][-1]))
                answered = {"status": "complete", "metric": metric, "score": float(score)}
                yield {**common, "event_id": f"a{month}-{i}", **answered}

    def _tickets(self) -> Iterator[Event]:
        for month in MONTHS:
            for i in range(40):
                department = self.chance.choice(("customer_service", "it_service"))
                opened = self._moment(month)
                steps = [("opened", 0)]
                if self.chance.random() < 0.9:
                    steps.append(("resolved", self.chance.randrange(1, 90) * HOUR_US))
                    if self.chance.random() < 0.25:
                        again = steps[-1][1] + HOUR_US
                        steps += [("reopened", again), ("resolved", again + self.chance.randrange(1, 50) * HOUR_US)]
                for number, (status, after) in enumerate(steps):
                    yield {
                        "event_id": f"t{month}-{i}-{number}", "ticket_id": f"t{month}-{i}", "sequence": number,
                        "event_time": opened + after, "status": status, "actor": "agent", "stage": "get_help",
                        "department": department, "month": month,
                    }  # fmt: skip

    def _telemetry(self) -> Iterator[Event]:
        kinds = (
            ("stock_checked", "order", "supply_chain", 0.05),
            ("agent_shift_started", "get_help", "hr", 0.2),
            ("order_handed_to_carrier", "deliver", "supply_chain", 0.0),
            ("page_seen", "unassigned", "unassigned", 0.0),
        )
        for month in MONTHS:
            for i in range(400):
                name, stage, department, share = self.chance.choice(kinds)
                yield {
                    "event_id": f"e{month}-{i}", "event_time": self._moment(month), "name": name, "stage": stage,
                    "department": department, "value": float(self.chance.random() < share), "month": month,
                    "duration_ms": float(self.chance.randrange(3_600_000, 400_000_000)),
                    "tag_method": "unassigned" if stage == "unassigned" else "rule",
                }  # fmt: skip

    def _flags(self) -> Iterator[Event]:
        for month in MONTHS:
            for i in range(12):
                stage, department = self.chance.choice(SURVEYED)
                yield {
                    "event_id": f"f{month}-{i}", "event_time": self._moment(month), "flag_kind": "red_flag",
                    "text": "slow", "stage": stage, "department": department, "month": month,
                }  # fmt: skip

    def load(self, url: str) -> Engine:
        """A warehouse with these events and three dead letters, some answers restated, small groups shown."""
        engine = new_warehouse(url, GOVERNANCE)
        sent: dict[EventType, list[Event]] = {
            "survey": self.surveys, "ticket": self.tickets, "telemetry": self.telemetry, "flag": self.flags,
        }  # fmt: skip
        for event_type, events in sent.items():
            plain = [{name: value for name, value in event.items() if name != "month"} for event in events]
            part = chunk(GOVERNANCE, event_type, plain)
            if event_type == "flag":
                part.next_offset += LETTERS
                part.dead += [DeadLetter(len(plain) + i, "decode", "truncated", "short", b"") for i in range(LETTERS)]
            writer(url, GOVERNANCE).write((part,))
        restater = Restater(open_engine(url, write=True), rules=subject_rules(GOVERNANCE), calendar=CALENDAR)
        restater.restate(places_of(engine), giving(self.moved))
        with engine.begin() as connection:
            connection.execute(update(privacy).values(k=1))
        return engine

    def answers(self, metric: str, month: str | None = None) -> list[Event]:
        """Answers to one question."""
        return [e for e in self.surveys if e["metric"] == metric and month in (None, e["month"])]

    def tickets_of(self, month: str) -> dict[str, list[Event]]:
        """Tickets opened in a month, each as its events."""
        found: dict[str, list[Event]] = defaultdict(list)
        for event in self.tickets:
            if event["month"] == month:
                found[event["ticket_id"]].append(event)
        return found


def grouped(events: list[Event], *names: str) -> dict[tuple[Any, ...], list[Event]]:
    """Events by some of their fields, in order."""
    found: dict[tuple[Any, ...], list[Event]] = defaultdict(list)
    for event in events:
        found[tuple(event[name] for name in names)].append(event)
    return dict(sorted(found.items()))


def share(events: list[Event], holds: Callable[[Event], bool]) -> float:
    return sum(map(holds, events)) / len(events)


def wilson(n: int, hits: int) -> tuple[float, float]:
    z = 1.959963984540054
    p, scale = hits / n, 1 + z * z / n
    centre, margin = (p + z * z / (2 * n)) / scale, z / scale * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - margin, centre + margin


def nps(events: list[Event]) -> float:
    return 100 * (share(events, lambda e: e["score"] >= 9) - share(events, lambda e: e["score"] <= 6))


def satisfied(event: Event) -> bool:
    return bool(event["score"] >= 4)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def nearest_rank(values: list[float], percentile: float) -> float:
    return sorted(values)[ceil(percentile / 100 * len(values)) - 1]


def about(value: float) -> Any:
    """Within what the bins of durations are known to."""
    return pytest.approx(value, rel=0.021)


ANY = object()
"""A figure that another test holds against its formula."""


def expected_1(c: Company) -> Rows:
    events = c.answers("nps", MARCH)
    return [(nps(events), ANY, ANY, len(events), 40.0, ANY)]


def expected_2(c: Company) -> Rows:
    stages = {stage.id: stage for stage in GOVERNANCE.stages}
    rows = [
        (stages[stage].journey, stages[stage].name, month, share(events, satisfied), len(events), ANY)
        for (stage, month), events in grouped(c.answers("csat"), "stage", "month").items()
    ]
    place = {stage.name: stage.position for stage in GOVERNANCE.stages}
    return sorted(rows, key=lambda row: (row[0], place[row[1]], row[2]))


def expected_3(c: Company) -> Rows:
    rows = [
        (*NAMES[department], mean([e["score"] for e in events]), ANY, len(events))
        for (department,), events in grouped(c.answers("ces", MARCH), "department").items()
    ]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _judged(events: list[Event], hit: Callable[[Event], bool], target: float, *, higher: bool) -> str:
    low, high = wilson(len(events), sum(map(hit, events)))
    if len(events) < 30:
        return "not enough data"
    if (low >= target) if higher else (high <= target):
        return "met"
    return "missed" if ((high < target) if higher else (low > target)) else "not proven"


def named(c: Company, name: str, month: str = MARCH) -> list[Event]:
    return [e for e in c.telemetry if e["name"] == name and e["month"] == month]


def failed(event: Event) -> bool:
    return bool(event["value"] > 0)


def expected_5(c: Company) -> Rows:
    """Those of three metrics; the test leaves the others out of what it found."""
    found = []
    for (department,), events in grouped(c.answers("csat", MARCH), "department").items():
        if _judged(events, satisfied, 0.75, higher=True) == "missed":
            found.append((*NAMES[department], "Satisfaction", share(events, satisfied), 0.75, len(events)))
    for name, department, metric, target in (
        ("stock_checked", "supply_chain", "Stock-outs", 0.03),
        ("agent_shift_started", "hr", "Training gaps", 0.10),
    ):
        events = named(c, name)
        if _judged(events, failed, target, higher=False) == "missed":
            found.append((*NAMES[department], metric, share(events, failed), target, len(events)))
    return sorted(found)


def expected_6(c: Company) -> Rows:
    values = [share(c.answers("csat", month), satisfied) for month in MONTHS]
    changes = [None, *(after - before for before, after in pairwise(values))]
    return list(zip(MONTHS, values, changes, strict=True))


def expected_7(c: Company) -> Rows:
    events = c.answers("nps")
    return [(MONTHS[0], nps(events), len(events))]


def expected_8(c: Company) -> Rows:
    events = c.answers("nps", MARCH)
    kinds = Counter("promoter" if e["score"] >= 9 else "passive" if e["score"] >= 7 else "detractor" for e in events)
    return sorted(kinds.items())


def expected_9(c: Company) -> Rows:
    regions = grouped(c.answers("csat"), "segment_1")
    return [(region, share(events, satisfied), len(events)) for (region,), events in regions.items()]


def expected_10(c: Company) -> Rows:
    return [
        (month, len(events), done := sum(e["status"] == "complete" for e in events), done / len(events))
        for (month,), events in grouped(c.surveys, "month").items()
    ]


def _hours(c: Company) -> dict[str, list[float]]:
    """Department → hours to the last resolution of the tickets resolved."""
    found: dict[str, list[float]] = defaultdict(list)
    for events in c.tickets_of(MARCH).values():
        if events[-1]["status"] == "resolved":
            hours = (events[-1]["event_time"] - events[0]["event_time"]) / HOUR_US
            found[events[0]["department"]].append(hours)
    return found


def expected_11(c: Company) -> Rows:
    return [(d, about(nearest_rank(hours, 50)), ANY, ANY, len(hours)) for d, hours in sorted(_hours(c).items())]


def expected_12(c: Company) -> Rows:
    tickets = c.tickets_of(MARCH)
    resolved = [hours for of in _hours(c).values() for hours in of]
    rows = []
    for percentile in (50, 90):
        # All open tickets are older than any resolution, so they stand behind them in order.
        rank = ceil(percentile / 100 * len(tickets))
        hours = sorted(resolved)[rank - 1] if rank <= len(resolved) else None
        rows.append((percentile, hours, len(tickets), len(tickets) - len(resolved)))
    return rows


def expected_13(c: Company) -> Rows:
    rows = []
    tickets = [(events[0]["department"], len(events) < 3) for events in c.tickets_of(MARCH).values()]
    for department in sorted({name for name, _ in tickets}):
        once = [first for name, first in tickets if name == department]
        rows.append((department, mean(once), *wilson(len(once), sum(once)), len(once)))
    return rows


def expected_14(c: Company) -> Rows:
    waiting: Counter[str] = Counter()
    for month in MONTHS:
        waiting.update(e[0]["department"] for e in c.tickets_of(month).values() if e[-1]["status"] != "resolved")
    return [(department, n, n) for department, n in sorted(waiting.items())]


def expected_15(c: Company) -> Rows:
    return [(*place, len(events)) for place, events in grouped(c.flags, "month", "department").items()]


def expected_16(c: Company) -> Rows:
    rows = []
    everything = [*c.surveys, *c.telemetry, *c.flags]
    everything += [{**e, "month": CALENDAR.day(e["event_time"])[:8] + "01"} for e in c.tickets]
    for (month,), events in grouped(everything, "month").items():
        rows.append((month, len(events), share(events, lambda e: e["stage"] == "unassigned")))
    return rows


def expected_17(c: Company) -> Rows:
    before = grouped(c.answers("csat", MARCH), "department")
    events = [
        {**e, "department": "supply_chain" if e["event_id"] in c.moved else e["department"]}
        for e in c.answers("csat", MARCH)
    ]
    after = grouped(events, "department")
    return [
        (name, share(of, satisfied), share(after[(name,)], satisfied), len(after[(name,)]) - len(of))
        for (name,), of in before.items()
    ]


def expected_18(c: Company) -> Rows:
    rows = []
    for month in MONTHS:
        checked = named(c, "stock_checked", month)
        seconds = [e["duration_ms"] // 1000 for e in named(c, "order_handed_to_carrier", month)]
        delivered = [e for e in c.answers("csat", month) if e["stage"] == "deliver"]
        handover = about(nearest_rank(seconds, GOVERNANCE.metrics_by_id["handover_time"].percentile or 0) / 3600)
        status = _judged(checked, failed, 0.03, higher=False)
        rows.append((month, share(checked, failed), status, handover, share(delivered, satisfied)))
    return rows


def expected_19(c: Company) -> Rows:
    rows = []
    for month in MONTHS:
        shifts = named(c, "agent_shift_started", month)
        back = [len(events) >= 3 for events in c.tickets_of(month).values()]
        rows.append((month, share(shifts, failed), 0.10, _judged(shifts, failed, 0.10, higher=False), mean(back)))
    return rows


def expected_20(c: Company) -> Rows:
    loaded = {"voc.survey": c.surveys, "voc.telemetry": c.telemetry, "voc.ticket": c.tickets, "voc.flag": c.flags}
    rows: Rows = [(topic, "loaded", len(events)) for topic, events in loaded.items()]
    return sorted([*rows, ("voc.flag", "dead_lettered", LETTERS)])


WORKED_OUT: dict[int, Callable[[Company], Rows]] = {
    number: globals()[f"expected_{number}"] for number in range(1, 21) if number != 4
}


@pytest.fixture(scope="module")
def company() -> Company:
    return Company()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def warehouse(
    request: pytest.FixtureRequest, company: Company, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The company's warehouse, once for all questions."""
    if request.param == "sqlite":
        yield company.load(f"sqlite:///{tmp_path_factory.mktemp('queries') / 'warehouse.db'}")
    else:
        with request.getfixturevalue("postgres_server").database() as url:
            engine = company.load(url)
            yield engine
            engine.dispose()


def asked(warehouse: Engine, number: int) -> Rows:
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql(queries()[number]).all()
    return [tuple(_plain(value) for value in row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, date) else value


def test_queries__there_are_twenty() -> None:
    assert list(queries()) == list(range(1, 21))


@pytest.mark.parametrize("number", WORKED_OUT)
def test_queries__answer_what_the_events_say(warehouse: Engine, company: Company, number: int) -> None:
    found, expected = asked(warehouse, number), WORKED_OUT[number](company)
    if number == 5:
        found = [row for row in found if row[2] in ("Satisfaction", "Stock-outs", "Training gaps")]
    assert len(found) == len(expected) > 0
    for row, wanted in zip(found, expected, strict=True):
        assert len(row) == len(wanted)
        for value, right in zip(row, wanted, strict=True):
            if right is ANY:
                continue
            assert value == (pytest.approx(right) if isinstance(right, float) else right), (row, wanted)


def test_queries__targets_are_counted_by_level_and_status(warehouse: Engine, company: Company) -> None:
    found = asked(warehouse, 4)
    with warehouse.connect() as connection:
        judged = connection.execute(
            text("SELECT level, status, metric FROM company_metric_by_month WHERE period_start = :month"),
            {"month": date.fromisoformat(MARCH) if warehouse.dialect.name == "postgresql" else MARCH},
        ).all()
    status = {row.metric: row.status for row in judged}
    assert status["stock_out"] == _judged(named(company, "stock_checked"), failed, 0.03, higher=False)
    assert status["training_gap"] == _judged(named(company, "agent_shift_started"), failed, 0.10, higher=False)
    assert status["csat"] == _judged(company.answers("csat", MARCH), satisfied, 0.75, higher=True)
    counted = Counter((row.level, row.status) for row in judged if row.status != "no target")
    assert found == [(*key, n) for key, n in sorted(counted.items())]


@pytest.mark.parametrize("path", sorted((PROJECT / "deploy" / "bi" / "superset" / "datasets").rglob("*.yaml")))
def test_dashboard__datasets_have_the_columns_they_name(warehouse: Engine, path: Path) -> None:
    dataset = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    with warehouse.connect() as connection:
        found = connection.exec_driver_sql(dataset["sql"])
        assert list(found.keys()) == [column["column_name"] for column in dataset["columns"]]
        assert found.all()
