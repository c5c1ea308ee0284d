"""`vocbeam report` and `vocbeam status` on a warehouse of the example company, on both databases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from kafka import KafkaProducer
from sqlalchemy import insert, text

from tests.support.kafka import Topics
from vocbeam.pipelines.apply import apply_to
from vocbeam.pipelines.cli import main, vocbeam
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE, Home
from vocbeam.schemas.errors import ConfigError, SinkError
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import tables
from vocbeam.sinks.engine import open_engine

NO_BROKER = "127.0.0.1:1"
MOMENT = 1_530_000_000_000_000


@pytest.fixture
def loaded_url(warehouse_url: str, tmp_path: Path) -> Iterator[str]:
    """A warehouse with 13 months of NPS at one stage: 60 promoters, 20 passives and 20 detractors each month."""
    engine = open_engine(warehouse_url, write=True)
    governance = load_governance(EXAMPLE_GOVERNANCE)
    apply_to(engine, governance, Home(tmp_path / "home"))
    calendar = LocalCalendar(governance.timezone)
    stage, owner = next(iter(governance.stage_owner.items()))
    facts = []
    for month in range(13):
        day = date(2017, 6, 30) + timedelta(days=30 * month)
        start, _ = calendar.day_bounds(day)
        for score, n in ((10, 60), (8, 20), (3, 20)):
            facts.append(
                {
                    "metric": "nps",
                    "grain": "bucket",
                    "basis": "as_reported",
                    "unit": "points",
                    "topic": "",
                    "stage": stage,
                    "department": owner,
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
            )
    ledger = {"ledger_id": 1, "cluster_id": "c", "topic_id": "t", "topic": "voc.survey", "partition": 0}
    counts = {"loaded": 1_295, "duplicates": 3, "dead_lettered": 2, "dropped": 0, "lost": 0, "without_record": 0}
    letter = {"ledger_id": 1, "event_type": "survey", "step": "validate", "error_class": "score", "raw_bytes": 1}
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), facts)
        connection.execute(
            insert(tables.ingest_ledger).values(
                **ledger, **counts, first_offset=0, next_offset=1_300, run_epoch=1, updated_at=MOMENT
            )
        )
        connection.execute(
            insert(tables.dead_letter),
            [
                letter
                | {"kafka_offset": i, "message": "<b>score</b> & scale", "raw": b"", "dead_at": 0, "run_epoch": 1}
                for i in (7, 9)
            ],
        )
    yield warehouse_url
    engine.dispose()


class Page(HTMLParser):
    """Collects what a page would fetch, its ids and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href") and (value or "").startswith("#"):
                self.links.append((value or "")[1:])
            elif name in ("src", "href", "xlink:href", "srcset"):
                self.fetched.append(value or "")


def test_report__json_terminal_and_page_agree(loaded_url: str, tmp_path: Path) -> None:
    page = tmp_path / "out" / "report.html"
    runner = CliRunner()
    options = ["report", "--warehouse", loaded_url]
    told = runner.invoke(vocbeam, [*options, "--json", "--html", str(page)], catch_exceptions=False)
    found = json.loads(told.stdout)
    company, place = found["lines"]
    # Data end on 2018-06-25, before June does.
    assert found["period"] == {"kind": "month", "first": "2018-05-01", "last": "2018-05-31"}
    assert (company["stage"], company["n"], company["value"]) == ("*", 100, 40.0)
    # (60 - 20)/103 = 0.38835, variance (81.5/103 - 0.38835²)/103 = 0.0062179: 38.83 - 15.45
    assert company["interval_low"] == pytest.approx(23.38, abs=0.01)
    assert place["value"] == 40.0
    with open_engine(loaded_url).connect() as connection:
        row = connection.execute(
            text("SELECT n, value, interval_low, status FROM company_metric_by_month WHERE period_start = '2018-05-01'")
        ).one()
    assert (row.n, row.value, row.status) == (100, 40.0, company["status"])
    assert row.interval_low == pytest.approx(company["interval_low"])
    shown = runner.invoke(vocbeam, options, catch_exceptions=False).output
    assert "+40.0" in shown
    assert company["status"] in shown
    content = page.read_text(encoding="utf-8")
    seen = Page(content)
    assert seen.fetched == []
    assert not {"script", "link", "img", "iframe"} & seen.tags
    assert len(seen.ids) == len(set(seen.ids))
    assert set(seen.links) <= set(seen.ids)
    assert {"svg", "caption", "table"} <= seen.tags
    assert not re.search(r"url\((?!#)", content)
    assert "&lt;b&gt;score&lt;/b&gt; &amp; scale" in content


def test_report__board_alone_prints_only_where_it_is(loaded_url: str, tmp_path: Path) -> None:
    board, page = tmp_path / "out" / "board.html", tmp_path / "report.html"
    options = ["report", "--warehouse", loaded_url, "--executive", str(board)]
    alone = CliRunner().invoke(vocbeam, options, catch_exceptions=False)
    assert alone.output == f"wrote {board}\n"
    assert "2018-05" in board.read_text(encoding="utf-8")
    both = CliRunner().invoke(vocbeam, [*options, "--html", str(page)], catch_exceptions=False)
    assert both.output == f"wrote {board}\nwrote {page}\n"
    assert page.exists()
    with_json = CliRunner().invoke(vocbeam, [*options, "--json"], catch_exceptions=False)
    assert json.loads(with_json.stdout)["period"]["first"] == "2018-05-01"


@pytest.mark.parametrize("option", ["--html", "--executive"])
def test_report__page_that_cannot_be_written(loaded_url: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "page.html"
    ended = CliRunner().invoke(vocbeam, ["report", "--warehouse", loaded_url, option, str(page)])
    assert isinstance(ended.exception, ConfigError)
    assert str(ended.exception).startswith(f"can't write {page}: ")
    assert str(ended.exception).endswith(f"; choose another {option}")


def test_report__hides_small_groups_everywhere(loaded_url: str, tmp_path: Path) -> None:
    governance = load_governance(EXAMPLE_GOVERNANCE)
    (stage, owner), (_, other) = list(governance.stage_owner.items())[:2]
    with open_engine(loaded_url, write=True).begin() as connection:
        of_may = text("SELECT * FROM measure WHERE date = '2018-05-26' AND bin = 10")
        fact = dict(connection.execute(of_may).mappings().one()) | {"date": date(2018, 5, 26)}
        small = {"department": other, "n": 4, "weight": 40_000, "weight_sq": 4 * 10**8, "total": 40}
        connection.execute(insert(tables.measure).values(**fact | small))
    page = tmp_path / "report.html"
    runner = CliRunner()
    options = ["report", "--warehouse", loaded_url]
    told = runner.invoke(vocbeam, [*options, "--json", "--html", str(page)], catch_exceptions=False)
    lines = json.loads(told.stdout)["lines"]
    found = {(line["stage"], line["department"]): (line["n"], line["status"]) for line in lines}
    # The owner's 100 answers would tell the other department's 4 from the company's 104.
    hidden = (None, "hidden")
    assert found == {("*", "*"): (104, found["*", "*"][1]), (stage, owner): hidden, (stage, other): hidden}
    assert "hidden" in runner.invoke(vocbeam, options, catch_exceptions=False).output
    rows = re.findall(r"<tr>.*?</tr>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert sum("hidden" in row for row in rows) == 2


def test_report__nothing_loaded(warehouse_url: str, tmp_path: Path) -> None:
    apply_to(open_engine(warehouse_url, write=True), load_governance(EXAMPLE_GOVERNANCE), Home(tmp_path))
    ended = CliRunner().invoke(vocbeam, ["report", "--warehouse", warehouse_url])
    assert "no measures yet" in str(ended.exception)


def test_status__lag_is_what_kafka_has_beyond_the_ledger(loaded_url: str, kafka_topics: Topics) -> None:
    read_in_part, never_read = kafka_topics.create("survey"), kafka_topics.create("ticket")
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:
        for topic, records in ((read_in_part, 5), (never_read, 2)):
            for _ in range(records):
                producer.send(topic, b"x")
        producer.flush()
    row = dict.fromkeys(("loaded", "duplicates", "dead_lettered", "dropped", "lost", "without_record", "run_epoch"), 0)
    row |= {"first_offset": 0, "next_offset": 2, "partition": 0, "updated_at": MOMENT}
    names = {"cluster_id": "c", "topic_id": "t2", "topic": read_in_part}
    with open_engine(loaded_url, write=True).begin() as connection:
        connection.execute(insert(tables.ingest_ledger).values(ledger_id=2, **names, **row | {"loaded": 2}))
    where = ["--warehouse", loaded_url, "--bootstrap", kafka_topics.bootstrap, "--topic-prefix", kafka_topics.prefix]
    told = CliRunner().invoke(vocbeam, ["status", "--json", *where], catch_exceptions=False).stdout
    found = json.loads(told)
    lags = {entry["topic"]: entry["lag"] for entry in found["partitions"] + found["unread_partitions"]}
    assert lags == {"voc.survey": None, read_in_part: 3, never_read: 2}
    shown = CliRunner().invoke(vocbeam, ["status", *where], catch_exceptions=False).output
    assert "never" in shown


# One database is enough: the wait for a broker that isn't there takes 8 s.
@pytest.mark.parametrize("warehouse_url", ["sqlite"], indirect=True)
def test_status__without_kafka_shows_the_rest(loaded_url: str) -> None:
    options = ["status", "--warehouse", loaded_url, "--bootstrap", NO_BROKER]
    found = json.loads(CliRunner().invoke(vocbeam, [*options, "--json"], catch_exceptions=False).stdout)
    (partition,) = found["partitions"]
    assert (partition["loaded"], partition["duplicates"], partition["lag"]) == (1_295, 3, None)
    assert NO_BROKER in found["kafka_error"]
    (cause,) = found["dead_letters"]
    assert (cause["error_class"], cause["records"]) == ("score", 2)


def test_status__no_warehouse_creates_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.db"
    monkeypatch.setattr("sys.argv", ["vocbeam", "status", "--warehouse", f"sqlite:///{missing}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert not missing.exists()


def test_apply__home_where_none_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    options = ["--home", str(tmp_path / "file" / "home"), "--governance", str(EXAMPLE_GOVERNANCE)]
    monkeypatch.setattr("sys.argv", ["vocbeam", "apply", "--warehouse", f"sqlite:///{tmp_path / 'w.db'}", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"vocbeam: {tmp_path / 'file' / 'home'}")


def test_status__unreachable_server() -> None:
    url = "postgresql+psycopg://reader@127.0.0.1:1/warehouse?sslcert=client.pem"
    ended = CliRunner().invoke(vocbeam, ["status", "--warehouse", url])
    assert isinstance(ended.exception, SinkError)
    assert "can't be read" in str(ended.exception)
    assert "client.pem" not in str(ended.exception)


@pytest.mark.parametrize("command", ["apply", "migrate", "reconcile", "report", "status"])
def test_password_in_a_url__is_refused_by_every_command(command: str) -> None:
    url = "postgresql+psycopg://reader:hunter2@127.0.0.1:1/warehouse"
    ended = CliRunner().invoke(vocbeam, [command, "--warehouse", url])
    assert isinstance(ended.exception, ConfigError)
    assert "set PGPASSWORD or ~/.pgpass" in str(ended.exception)
    assert "hunter2" not in str(ended.exception)
