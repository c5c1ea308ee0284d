"""Interventions, the metric tree and the board's page on a warehouse of the example company, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import insert, text

from vocbeam.pipelines.apply import apply_to
from vocbeam.pipelines.cli import vocbeam
from vocbeam.pipelines.executive import between, build_executive, signed
from vocbeam.pipelines.report import Period
from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE, Home
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import tables
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.value_results import FitKey, Provenance, replace_fit

FIRST = date(2018, 1, 1)
WEEKS, FROM_WEEK = 34, 22
REGIONS = ("SP", "RJ", "MG", "RS", "PR", "BA", "PE", "CE", "AM", "PA")
TREATED = ("SP", "MG", "BA", "CE")
N = 400
EFFECT = -0.8
"""Percentage points of satisfied answers for one of late deliveries in the week before."""


EFFECT_SEEN = EFFECT * (1 - 1 / (WEEKS - FROM_WEEK))
"""The first week of an intervention has the answers to the week before it."""


def facts() -> list[dict[str, object]]:
    """Weekly deliveries and answers of each region; from a week on, treated regions have 8 points fewer late ones."""
    rng = np.random.default_rng(11)
    calendar = LocalCalendar(load_governance(EXAMPLE_GOVERNANCE).timezone)
    rows = []
    for number, region in enumerate(REGIONS):
        late_before = 0.2
        for week in range(WEEKS):
            eased = 0.08 if region in TREATED and week >= FROM_WEEK else 0.0
            late = rng.binomial(N, 0.2 + 0.01 * number + rng.normal(0, 0.02) - eased) / N
            satisfied = rng.binomial(N, 0.8 - 0.01 * number + EFFECT * late_before) / N
            late_before = late
            day = FIRST + timedelta(7 * week + 2)
            for metric, unit, bins in (
                ("late_delivery", "share", ((1, late), (0, 1 - late))),
                ("csat", "points", ((5, satisfied), (2, 1 - satisfied))),
            ):
                for bin_, share in bins:
                    n = round(N * share)
                    rows.append(
                        {
                            "metric": metric, "grain": "day", "basis": "as_reported", "unit": unit, "topic": "",
                            "stage": "deliver", "department": "logistics",
                            "segment_1": region, "segment_2": "", "segment_3": "",
                            "bucket_start": calendar.day_bounds(day)[0], "date": day, "hour_start": None,
                            "bin": bin_, "n": n, "weight": n * 10_000, "weight_sq": n * 10**8, "total": n * bin_,
                        }
                    )  # fmt: skip
    return [row for row in rows if row["n"]]


@pytest.fixture
def url(warehouse_url: str, tmp_path: Path) -> Iterator[str]:
    """A warehouse with those weeks."""
    engine = open_engine(warehouse_url, write=True)
    apply_to(engine, load_governance(EXAMPLE_GOVERNANCE), Home(tmp_path / "home"))
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), facts())
    yield warehouse_url
    engine.dispose()


def call(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(vocbeam, [*arguments, "--warehouse", url], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def mark(url: str) -> None:
    groups = [part for region in TREATED for part in ("--group", f"region={region}")]
    start = (FIRST + timedelta(7 * FROM_WEEK)).isoformat()
    options = ["--stage", "deliver", "--date", start, "--metric", "late_delivery", *groups]
    assert "intervention 1" in call(url, "experiment", "mark", "Second courier", *options)


def case(number: int, day: date, **columns: object) -> dict[str, object]:
    moment = LocalCalendar(load_governance(EXAMPLE_GOVERNANCE).timezone).day_bounds(day)[0]
    texts = dict.fromkeys(("acknowledged_at", "acknowledged_by", "closed_at", "closed_by", "root_cause", "action"))
    return {
        "case_id": number, "fingerprint": str(number), "alert": "TargetMissed", "metric": "late_delivery",
        "stage": "deliver", "department": "logistics", "unit": "share", "window_length": "week", "summary": "late",
        "started_at": moment, "opened_at": moment, **texts, **columns,
    }  # fmt: skip


CASES = [
    case(1, date(2018, 7, 1), root_cause="The van broke down", action="A second van", closed_at=1, closed_by="Ana"),
    case(2, date(2018, 8, 1), root_cause="Of another month", action="None", closed_at=1, closed_by="Ana"),
]


class Page(HTMLParser):
    """Collects ids, inner links, tags, and the figures of tables and tiles that lead to no query."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.unlinked: list[str] = []
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids |= {str(found["id"])} if "id" in found else set()
        self.links += [str(found["href"])] if tag == "a" else []
        if tag in ("a", "td", "div"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("a", "td", "div"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and "a" not in self._open and any(letter.isdigit() for letter in data):
            self.unlinked.append(data)


def test_experiment_and_drivers__what_was_planted_is_found_and_shown(url: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.html"
    call(url, "report", "--month", "2018-07", "--executive", str(empty))
    for command in ("vocbeam value", "vocbeam drivers", "vocbeam experiment mark"):
        assert f"<code>{command}" in empty.read_text()

    mark(url)
    rows = {row["metric"]: row for row in json.loads(call(url, "experiment", "estimate", "1", "--json"))}
    late, csat = rows["late_delivery"], rows["csat"]
    assert (late["outcome"], csat["outcome"], csat["grade"]) == ("helped", "helped", "experiment")
    assert late["interval_low"] < -8 < late["interval_high"] < 0
    assert csat["interval_low"] < 8 * -EFFECT_SEEN < csat["interval_high"]
    assert (csat["treated_groups"], csat["untreated_groups"]) == (4, 6)
    assert csat["trend_low"] < 0 < csat["trend_high"]
    assert csat["placebo_low"] < 0 < csat["placebo_high"]
    assert rows["nps"]["outcome"] == "not enough data"
    listed = json.loads(call(url, "experiment", "list", "--json"))
    assert [(each["name"], len(each["effects"])) for each in listed] == [("Second courier", 3)]

    edges = {
        (row["driver"], row["outcome"], row["grade"]): row
        for row in json.loads(call(url, "drivers", "--lag-weeks", "1", "--json"))
    }
    edge = edges["late_delivery", "csat", "association"]
    assert (edge["verdict"], edge["method"], edge["lag_days"]) == ("proven", "groups", 7)
    assert edge["interval_low"] < EFFECT < edge["interval_high"]
    induced = edges["late_delivery", "csat", "experiment"]
    assert induced["verdict"] == "proven"
    assert induced["interval_low"] < EFFECT_SEEN < induced["interval_high"]
    assert edges["stock_out", "csat", "association"]["verdict"] == "not enough data"
    with snapshot(open_engine(url)) as connection:
        assert connection.execute(text("SELECT count(*) FROM metric_edge")).scalar_one() == len(edges)
        strongest = connection.execute(
            text("SELECT grade FROM metric_tree WHERE driver = 'late_delivery' AND outcome = 'csat' AND strongest = 1")
        ).scalars()
        assert list(strongest) == ["experiment"]

    with open_engine(url, write=True).begin() as connection:
        connection.execute(insert(tables.alert_case), CASES)
    content = board_of(url, "2018-07", tmp_path)
    page = Page(content)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert page.unlinked == []
    assert {f"d-{department}" for department in load_governance(EXAMPLE_GOVERNANCE).department_ids} <= page.ids
    for words in (
        "Second courier",
        "helped",
        "proven: experiment",
        "Late deliveries",
        "break-before: page",
        "<h3>Too little data</h3>",
        "The van broke down",
    ):
        assert words in content
    assert "Of another month" not in content


def fit(url: str, landmark: date, affected: int, payout_low: float = 50_000.0, left: float = 0.5) -> None:
    """A fit of one issue and the classes of two questions, of which one has too few answers to compare."""
    issue = {
        "payout_by": "leaving", "stage": "deliver", "department": "logistics", "topic": "parcel",
        "metric": "late_delivery", "currency": "BRL", "rank": 1, "status": "proven", "grade": "association",
        "customers": 4000, "affected": affected, "effect": 0.1, "interval_low": 0.05, "interval_high": 0.15,
        "payout": 90000.0, "payout_low": payout_low, "payout_high": 130000.0, "adjusted_for": "", "method": "",
    }  # fmt: skip
    empty = dict.fromkeys(("rank", "customers", "affected", "effect", "interval_low", "interval_high", "payout"))
    unknown = {**issue, **empty, "payout_by": "revenue", "status": "not enough data"}
    shown = [("csat", "satisfied", 0), ("csat", "dissatisfied", 0), ("ces", "no answer", 0), ("ces", "satisfied", 1)]
    classes = [
        {
            "metric": metric, "customer_class": name, "quantity": quantity, "unit": "share", "day": day,
            "n": None if hidden else 100 + day, "value": None if hidden else left, "interval_low": None,
            "interval_high": None, "p_value": 0.2, "suppressed": hidden,
        }
        for metric, name, hidden in shown
        for quantity, day in (("churn", 28), ("retention", 0), ("retention", 28))
    ]  # fmt: skip
    made = Provenance(1, None, "test", landmark.toordinal())
    replace_fit(open_engine(url, write=True), FitKey(landmark, 28, "restated", 28), made, classes, [issue, unknown])


def board_of(url: str, month: str, folder: Path) -> str:
    """The board's page of a month."""
    board = folder / f"{month}.html"
    call(url, "report", "--month", month, "--executive", str(board))
    return board.read_text()


def test_executive__tells_of_the_fit_that_the_month_could_know(url: str, tmp_path: Path) -> None:
    for landmark, affected in ((date(2018, 8, 5), 205), (date(2018, 6, 10), 206), (date(2018, 7, 10), 207)):
        fit(url, landmark, affected)
    for month, landmark, affected in (
        ("2018-05", "2018-06-10", 206), ("2018-07", "2018-07-10", 207), ("2018-08", "2018-08-05", 205),
    ):  # fmt: skip
        content = board_of(url, month, tmp_path)
        assert f"{affected} of 4,000" in content
        assert f'before <a class="also" href="#q-classes">{landmark}</a>' in content
        assert Page(content).unlinked == []
    assert ">1</a> kind of trouble there is too little data to tell." in content
    assert "costs money" in content
    assert content.count("Share of customers who stay</figcaption>") == 1
    assert "Too few customers answered to compare them by: Customer effort." in content


def test_executive__leaving_that_costs_nothing_is_not_said_to_cost_money(url: str, tmp_path: Path) -> None:
    fit(url, date(2018, 7, 10), 207, payout_low=0.0)
    content = board_of(url, "2018-07", tmp_path)
    assert "makes customers leave" in content
    assert "costs money" not in content
    assert "none is proven to cost money in this way" in content


def test_executive__what_nobody_writes_down_is_not_told_as_none(url: str, tmp_path: Path) -> None:
    fit(url, date(2018, 7, 10), 207, left=0.0)
    content = board_of(url, "2018-07", tmp_path)
    assert "hold not one case of: a customer who left, revenue, a customer who asked again" in content
    assert "Share of customers who stay</figcaption>" not in content
    assert ">0.0 %<" not in content
    assert ">128</a>" in content


def test_signed__as_many_decimals_as_the_interval_is_wide() -> None:
    assert [signed(value, decimals) for value, decimals in ((-1.25, 1), (0.0004, 2), (1234.5, 0))] == [
        "−1.2", "+0.00", "+1,234",
    ]  # fmt: skip
    assert [between(*ends) for ends in ((-10.73, -9.32), (0.0871, 0.128), (1.4, 16.9), (-0.2, 200.0), (2.0, 2.0))] == [
        "−10.7 to −9.3", "+0.087 to +0.128", "+1 to +17", "+0 to +200", "+2.0 to +2.0",
    ]  # fmt: skip


def test_experiment_and_drivers__what_can_not_be(tmp_path: Path, sqlite_url: str) -> None:
    apply_to(open_engine(sqlite_url, write=True), load_governance(EXAMPLE_GOVERNANCE), Home(tmp_path / "home"))
    for options, message in (
        (["--stage", "nowhere"], "there is no stage nowhere; allowed: discover,"),
        (["--stage", "deliver", "--group", "region=XX"], "there is no region XX; allowed: AC,"),
        (["--stage", "deliver", "--group", "colour=red"], "groups can't be told by colour"),
        (["--stage", "deliver", "--group", "region=SP", "--group", "department=legal"], "all of one kind"),
        (["--stage", "deliver", "--metric", "joy"], "there is no metric joy"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(sqlite_url, "experiment", "mark", "x", "--date", "2018-01-01", *options)
    with pytest.raises(ConfigError, match="there is no intervention 7"):
        call(sqlite_url, "experiment", "estimate", "7")
    with pytest.raises(ConfigError, match="there are no measures yet"):
        call(sqlite_url, "drivers")
    with pytest.raises(ConfigError, match="about a month"), snapshot(open_engine(sqlite_url)) as connection:
        build_executive(connection, Period("range", FIRST, FIRST), 0)
