"""The views on real databases, held against the pure functions and against values worked out by hand."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, insert, text

from vocbeam.schemas.timebase import BUCKET_US, DAY_US, HOUR_US, LocalCalendar, bucket_of, from_micros, to_micros
from vocbeam.sinks import tables, views
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.measures import SUMS
from vocbeam.sinks.partitions import LATER
from vocbeam.transforms.bins import all_bins, bin_of
from vocbeam.transforms.statistics import Cell, MetricRule, estimate, kaplan_meier, status, wilson_interval

CALENDAR = LocalCalendar("America/Sao_Paulo")
BINS = {entry.bin: entry for entry in all_bins()}
STAGES = ("delivery", "returns")
DEPARTMENTS = ("logistics", "finance")

RULES = {
    "nps": MetricRule("nps", "higher", 5, satisfied_from=9, scale_min=0, scale_max=10),
    "csat": MetricRule("share", "higher", 5, satisfied_from=4, scale_min=1, scale_max=5),
    "easy": MetricRule("share", "higher", 5, satisfied_to=2, scale_min=1, scale_max=7),
    "rating": MetricRule("mean", "higher", 5, scale_min=1, scale_max=5),
    "late": MetricRule("rate", "lower", 5),
    "delivery_time": MetricRule("duration", "lower", 5, percentile=90),
    "response_time": MetricRule("duration", "lower", 5, percentile=50),
    "revenue": MetricRule("amount", "higher", 5),
    "contacts": MetricRule("count", "lower", 5),
    "responses": MetricRule("funnel", "higher", 5),
}
TARGETS = {"nps": 20.0, "csat": 0.5, "easy": 0.4, "rating": 3.0, "late": 0.4, "delivery_time": 40_000.0} | {
    "response_time": 20_000.0,
    "revenue": 100_000.0,
    "contacts": 40.0,
    "responses": 0.3,
}
"""Close to what random data give, so that every verdict comes up."""

Row = dict[str, Any]


def metric_rows() -> Iterator[Row]:
    for name, rule in RULES.items():
        yield {
            "metric": name,
            "name": name,
            "level": "cx",
            "kind": rule.kind,
            "definition": "",
            "unit": "BRL" if rule.kind == "amount" else "unit",
            "direction": rule.direction,
            "clock": "event_time",
            "scale_min": rule.scale_min,
            "scale_max": rule.scale_max,
            "satisfied_from": rule.satisfied_from,
            "satisfied_to": rule.satisfied_to,
            "percentile": rule.percentile,
            "min_n": rule.min_n,
        }


def date_rows(first: date, last: date) -> Iterator[Row]:
    day = first
    while day <= last:
        starts_at, ends_at = CALENDAR.day_bounds(day)
        year, week, weekday = day.isocalendar()
        yield {
            "date": day,
            "week_start": day - timedelta(days=weekday - 1),
            "iso_year": year,
            "iso_week": week,
            "month_start": day.replace(day=1),
            "quarter_start": day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1),
            "year": day.year,
            "weekday": weekday,
            "starts_at": starts_at,
            "ends_at": ends_at,
        }
        day += timedelta(days=1)


def create_tables(connection: Connection) -> None:
    """All tables without their migrations, and of the partitions the one that a view reads."""
    tables.metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"CREATE TABLE {LATER} (LIKE event)"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty_warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A warehouse with dimensions and views, without facts, for all tests of this module."""
    url = f"sqlite:///{tmp_path_factory.mktemp('views') / 'warehouse.db'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        maintenance = open_engine(server.url("postgres")).execution_options(isolation_level="AUTOCOMMIT")
        with maintenance.connect() as connection:
            connection.execute(text("CREATE DATABASE test_views"))
        maintenance.dispose()
        url = server.url("test_views")
    engine = open_engine(url, write=True)
    today = datetime.now(UTC).date()
    with engine.begin() as connection:
        create_tables(connection)
        connection.execute(insert(tables.metric), list(metric_rows()))
        # Nothing is hidden; test_small_groups.py has what is.
        connection.execute(insert(tables.privacy).values(only=1, k=1))
        connection.execute(
            insert(tables.calendar_date),
            [*date_rows(date(2017, 9, 1), date(2018, 2, 28)), *date_rows(today - timedelta(days=70), today)],
        )
        connection.execute(insert(tables.measure_bin), [entry._asdict() for entry in BINS.values()])
        views.create_views(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def warehouse(empty_warehouse: Engine) -> Iterator[Engine]:
    """The same, emptied again after each test."""
    yield empty_warehouse
    facts = ("measure", "measure_month", "target", "ticket", "customer_day", "dead_letter", "ingest_ledger", "event")
    with empty_warehouse.begin() as connection:
        for name in facts:
            connection.execute(delete(tables.metadata.tables[name]))


def random_measures(generator: random.Random, rows: int) -> list[Row]:
    """Rows of every grain and basis around two clock changes, a month's, a year's and an ISO week's end."""
    moments = [
        to_micros(datetime(2017, 10, 13, tzinfo=UTC)),
        to_micros(datetime(2017, 12, 29, tzinfo=UTC)),
        to_micros(datetime(2018, 2, 16, tzinfo=UTC)),
    ]
    found: dict[tuple[Any, ...], Row] = {}
    for _ in range(rows):
        metric = generator.choice(list(RULES))
        rule = RULES[metric]
        bucket = bucket_of(generator.choice(moments) + generator.randrange(3 * DAY_US))
        day, hour = CALENDAR.day_and_hour(bucket)
        grain = generator.choice(["bucket", "hour", "day"])
        n = generator.choice([1, 1, 2, 7])
        bin_, total = _random_bin(generator, rule, n)
        # Few kinds of answers are weighted; the others count 1 each.
        weight = generator.choice([5_000, 10_000, 31_234]) if metric in ("nps", "rating", "csat") else 10_000
        row = {
            "metric": metric,
            "grain": grain,
            "bucket_start": {
                "bucket": bucket,
                "hour": hour,
                "day": CALENDAR.day_bounds(date.fromisoformat(day))[0],
            }[grain],
            "basis": "as_reported",
            "stage": generator.choice(STAGES),
            "department": generator.choice(DEPARTMENTS),
            "topic": generator.choice(["", "parcel"]),
            "segment_1": generator.choice(["SP", "RJ"]),
            "segment_2": "",
            "segment_3": "",
            "unit": generator.choice(["BRL", "USD"]) if rule.kind == "amount" else "unit",
            "bin": bin_,
            "n": n,
            "weight": n * weight,
            "weight_sq": n * weight**2,
            "total": total,
            "date": date.fromisoformat(day),
            "hour_start": None if grain == "day" else hour,
        }
        found.setdefault(tuple(row[c.name] for c in tables.measure.primary_key), row)
    facts = list(found.values())
    # Later tags move some contributions, whole, from one department to the other.
    for row in generator.sample(facts, len(facts) // 5):
        moved = "finance" if row["department"] == "logistics" else "logistics"
        for sign, department in ((-1, row["department"]), (1, moved)):
            change = {name: sign * row[name] for name in ("n", "weight", "weight_sq", "total")}
            facts.append(row | change | {"basis": "restated", "department": department})
    return _folded(facts)


def _random_bin(generator: random.Random, rule: MetricRule, n: int) -> tuple[int, int]:
    if rule.kind in ("duration", "amount"):
        value = generator.choice([0, generator.randrange(1, 60_000), generator.randrange(1, 60_000), -40])
        return bin_of(value), value * n
    if rule.kind == "count":
        return 0, n
    low, high = {"rate": (0, 1), "funnel": (1, 4)}.get(rule.kind, (rule.scale_min, rule.scale_max))
    assert low is not None
    assert high is not None
    value = generator.randint(low, high)
    return value, value * n


def _folded(facts: list[Row]) -> list[Row]:
    """Rows that fell on one key, summed."""
    sums: dict[tuple[Any, ...], Row] = {}
    for row in facts:
        key = tuple(row[c.name] for c in tables.measure.primary_key)
        if key in sums:
            for name in ("n", "weight", "weight_sq", "total"):
                sums[key][name] += row[name]
        else:
            sums[key] = dict(row)
    return list(sums.values())


def months_of(facts: list[Row]) -> list[Row]:
    """What folding to hours or days has put into `measure_month` of these rows of `measure`."""
    sums: dict[tuple[Any, ...], Row] = {}
    key = [column.name for column in tables.measure_month.primary_key]
    for row in facts:
        if row["grain"] != "bucket":
            month = row | {"month_start": row["date"].replace(day=1)}
            place = tuple(month[name] for name in key)
            before = sums.setdefault(place, dict(zip(key, place, strict=True)) | dict.fromkeys(SUMS, 0))
            for name in SUMS:
                before[name] += month[name]
    return list(sums.values())


def insert_facts(connection: Connection, facts: list[Row]) -> None:
    """Rows of `measure`, and what belongs to them in `measure_month`."""
    connection.execute(insert(tables.measure), facts)
    months = months_of(facts)
    if months:
        connection.execute(insert(tables.measure_month), months)


def period_of(row: Row, period: str) -> Any:
    """Start of the period that a row of `measure` counts in, or None where it is kept too coarsely."""
    day: date = row["date"]
    if period == "bucket":
        return from_micros(row["bucket_start"]) if row["grain"] == "bucket" else None
    if period == "hour":
        return None if row["hour_start"] is None else from_micros(row["hour_start"])
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[period]


def read_view(connection: Connection, name: str) -> list[Row]:
    """Rows of a view with periods as date or datetime on either database."""
    rows = [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()]
    for row in rows:
        start = row.get("period_start")
        if isinstance(start, str):
            row["period_start"] = datetime.fromisoformat(start) if "T" in start else date.fromisoformat(start)
    return rows


EVERY_METRIC_VIEW = [
    (prefix, period, restated)
    for prefix in ("metric", "stage_metric", "department_metric", "company_metric")
    for period in (("bucket", "hour", "day", "week", "month") if prefix == "metric" else ("day", "week", "month"))
    for restated in ((False, True) if period in ("day", "week", "month") else (False,))
]


def test_metric_views__equal_the_pure_functions_on_random_measures(warehouse: Engine) -> None:
    generator = random.Random(7)
    facts = random_measures(generator, 2_500)
    places = [(s, d) for s in (*STAGES, "*") for d in (*DEPARTMENTS, "*")]
    held = [
        {"metric": metric, "stage": stage, "department": department, "valid_from": date(2017, 12, 1), "value": value}
        for metric, value in TARGETS.items()
        for stage, department in places
    ]
    ended = {"valid_from": date(2017, 9, 1), "valid_to": date(2017, 12, 1)}
    earlier = [row | ended | {"value": row["value"] * 1.2} for row in held if row["metric"] != "late"]
    with warehouse.begin() as connection:
        insert_facts(connection, facts)
        connection.execute(insert(tables.target), held)
        connection.execute(insert(tables.target), earlier)
    targets = {
        (row["metric"], row["stage"], row["department"], row["valid_from"]): row["value"] for row in held + earlier
    }
    verdicts = set()
    with warehouse.connect() as connection:
        for prefix, period, restated in EVERY_METRIC_VIEW:
            found = read_view(connection, f"{prefix}_by_{period}" + ("_restated" if restated else ""))
            by_key = {
                (row["period_start"], row["stage"], row["department"], row["metric"], row["unit"]): row for row in found
            }
            assert len(by_key) == len(found)
            expected = _expected_groups(facts, prefix, period, restated)
            assert by_key.keys() == expected.keys()
            for key, cells in expected.items():
                verdicts.add(_check_row(by_key[key], cells, targets, period))
    assert verdicts == {"met", "missed", "not proven", "not enough data", "no target"}


def _expected_groups(facts: list[Row], prefix: str, period: str, restated: bool) -> dict[Any, list[Cell]]:
    sums: dict[Any, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0, 0]))
    for row in facts:
        start = period_of(row, period)
        if start is None or (row["basis"] == "restated" and not restated):
            continue
        stage = row["stage"] if prefix in ("metric", "stage_metric") else "*"
        department = row["department"] if prefix in ("metric", "department_metric") else "*"
        cell = sums[start, stage, department, row["metric"], row["unit"]][row["bin"]]
        for i, name in enumerate(("n", "weight", "weight_sq", "total")):
            cell[i] += row[name]
    groups = {}
    for key, bins in sums.items():
        logarithmic = RULES[key[3]].kind in ("duration", "amount")
        cells = [
            Cell(b, *parts, *(BINS[b][1:] if logarithmic else (b, b, b))) for b, parts in bins.items() if parts[0] > 0
        ]
        if cells:
            groups[key] = cells
    return groups


def _check_row(row: Row, cells: list[Cell], targets: dict[Any, float], period: str) -> str:
    rule = RULES[row["metric"]]
    found = estimate(rule, cells)
    start = row["period_start"]
    day = row.get("day", start)
    day = date.fromisoformat(day) if isinstance(day, str) else day
    since = date(2017, 12, 1) if day >= date(2017, 12, 1) else date(2017, 9, 1)
    target = targets.get((row["metric"], row["stage"], row["department"], since))
    if (rule.kind in ("amount", "count") and period != "month") or row["unit"] == "USD":
        target = None
    expected = {
        "n": found.n,
        "value": found.value,
        "interval_low": found.interval.low,
        "interval_high": found.interval.high,
        "mean": found.mean,
        "total": found.total,
        "numerator": found.numerator,
        "denominator": found.denominator,
        "weighted_value": found.weighted_value,
        "weighted_interval_low": found.weighted_interval.low,
        "weighted_interval_high": found.weighted_interval.high,
        "weighted_n_effective": found.n_effective,
        "weight": sum(cell.weight for cell in cells),
        "weight_sq": sum(cell.weight_sq for cell in cells),
        "target": target,
        "status": status(rule.direction, found.n, rule.min_n, found.interval, target),
    }
    for name, value in expected.items():
        same = row[name] == value if value is None or isinstance(value, str) else row[name] is not None
        if same and isinstance(value, int | float):
            same = row[name] == pytest.approx(value, rel=1e-9, abs=1e-9)
        assert same, f"{name} of {row['metric']} ({row['stage']}, {row['department']}, {start}): {row[name]} != {value}"
    return str(row["status"])


def test_metric_views__finer_than_the_grain_return_no_row(warehouse: Engine) -> None:
    bucket = to_micros(datetime(2017, 10, 20, 12, tzinfo=UTC))
    row = random_measures(random.Random(1), 1)[0] | {"metric": "contacts", "bin": 0, "bucket_start": bucket}
    seen = {}
    with warehouse.begin() as connection:
        for grain, hour in (("bucket", bucket), ("hour", bucket), ("day", None)):
            connection.execute(delete(tables.measure))
            connection.execute(delete(tables.measure_month))
            fact = row | {"grain": grain, "hour_start": hour, "date": date(2017, 10, 20)}
            insert_facts(connection, [fact])
            seen[grain] = [
                period
                for period in ("bucket", "hour", "day", "week", "month")
                if read_view(connection, f"metric_by_{period}")
            ]
    assert seen == {
        "bucket": ["bucket", "hour", "day", "week", "month"],
        "hour": ["hour", "day", "week", "month"],
        "day": ["day", "week", "month"],
    }


def test_response_funnel__rate_and_wilson_interval(warehouse: Engine) -> None:
    base = random_measures(random.Random(1), 1)[0] | {"metric": "responses", "unit": "unit", "date": date(2017, 10, 3)}
    facts = [base | {"bin": b, "n": n} for b, n in ((1, 60), (2, 6), (3, 4), (4, 30))]
    with warehouse.begin() as connection:
        insert_facts(connection, facts)
        (row,) = read_view(connection, "response_funnel_by_month")
    assert row["period_start"] == date(2017, 10, 1)
    assert [row[name] for name in ("sent", "started", "partial", "complete")] == [100, 40, 4, 30]
    assert row["response_rate"] == pytest.approx(0.3)
    assert (row["interval_low"], row["interval_high"]) == pytest.approx(wilson_interval(100, 30))


def test_score_distribution__counts_without_what_was_taken_back(warehouse: Engine) -> None:
    base = random_measures(random.Random(1), 1)[0] | {"metric": "nps", "unit": "unit", "date": date(2017, 10, 3)}
    facts = [base | {"bin": b, "n": n, "weight": n * 10_000} for b, n in ((10, 3), (4, 0), (0, 2))]
    with warehouse.begin() as connection:
        insert_facts(connection, facts)
        rows = read_view(connection, "score_distribution_by_month")
    assert {row["score"]: row["n"] for row in rows} == {10: 3, 0: 2}


def ticket(number: int, **values: Any) -> Row:
    """A row of `ticket`, open unless said."""
    blank = {column.name: None if column.nullable else "" for column in tables.ticket.c if column.name != "subject_key"}
    counters = {"reopen_count": 0, "reassign_count": 0, "last_event_at": 0, "events": 1, "is_open": 1}
    place = {"stage": "delivery", "department": "logistics", "ticket_id": str(number)}
    return blank | counters | place | {"subject_key": number.to_bytes(16, "big")} | values


def hours_ago(hours: float) -> int:
    return to_micros(datetime.now(UTC)) - int(hours * HOUR_US)


def test_ticket_backlog__open_and_overdue_as_of_now(warehouse: Engine) -> None:
    rows = [
        ticket(1, opened_at=hours_ago(5), first_response_due_at=hours_ago(4), resolution_due_at=hours_ago(-20)),
        ticket(2, opened_at=hours_ago(50), first_response_at=hours_ago(49), resolution_due_at=hours_ago(1)),
        ticket(3, opened_at=hours_ago(2)),
        ticket(4, opened_at=hours_ago(90), is_open=0, resolution_due_at=hours_ago(1), resolved_at=hours_ago(60)),
        ticket(5, is_open=None),
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.ticket), rows)
        (row,) = read_view(connection, "ticket_backlog")
    assert (row["open"], row["unanswered"]) == (3, 2)
    assert (row["overdue_first_response"], row["overdue_resolution"]) == (1, 1)


def test_ticket_sla__open_and_overdue_counts_as_missed(warehouse: Engine) -> None:
    opened_at = hours_ago(24 * 40)
    due = {"opened_at": opened_at, "resolution_due_at": hours_ago(10)}
    rows = [
        *(ticket(i, **due, is_open=0, resolved_in_sla=1) for i in range(6)),
        ticket(10, **due, is_open=0, resolved_in_sla=0),
        ticket(11, **due),
        ticket(12, opened_at=opened_at, resolution_due_at=hours_ago(-10)),
        ticket(13, opened_at=opened_at),
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.ticket), rows)
        (row,) = read_view(connection, "ticket_sla")
    day = date.fromisoformat(CALENDAR.day(opened_at))
    assert row["period_start"] == day.replace(day=1)
    assert (row["promise"], row["met"], row["missed"], row["pending"]) == ("resolution", 6, 2, 1)
    assert row["attainment"] == pytest.approx(0.75)
    assert (row["interval_low"], row["interval_high"]) == pytest.approx(wilson_interval(8, 6))


def test_ticket_resolution_km__equals_the_product_limit(warehouse: Engine) -> None:
    generator = random.Random(3)
    opened_at = to_micros(datetime(2017, 10, 20, 12, tzinfo=UTC))
    rows, spans = [], []
    for number in range(80):
        # Few different durations, so that ends coincide; every fourth ticket is still open, years later.
        hours = generator.choice([1, 2, 3, 5, 8, 13, 21, 34])
        done = number % 4 > 0
        end = {"resolution_us": hours * HOUR_US, "resolved_at": opened_at + hours * HOUR_US} if done else {}
        rows.append(ticket(number, opened_at=opened_at, is_open=int(not done), **end))
        spans.append((hours if done else 10**6, done))
    # Another department where everything is resolved: the curve comes down to nothing.
    rows += [
        ticket(n, opened_at=opened_at, is_open=0, resolution_us=n % 7 * HOUR_US, department="finance")
        for n in range(100, 121)
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.ticket), rows)
        found = {(row["department"], row["percentile"]): row for row in read_view(connection, "ticket_resolution_km")}
    finance = [(n % 7, True) for n in range(100, 121)]
    cohorts = {"logistics": spans, "finance": finance, "*": spans + finance}
    assert found.keys() == {(department, percentile) for department in cohorts for percentile in (50, 90)}
    for (department, percentile), row in found.items():
        durations, ended = zip(*cohorts[department], strict=True)
        value, (low, high) = kaplan_meier(durations, ended, percentile)
        assert (row["hours"], row["interval_low"], row["interval_high"]) == (value, low, high)
        assert (row["n"], row["open"]) == (len(ended), len(ended) - sum(ended))
        assert row["period_start"] == date(2017, 10, 1)


def test_customers__distinct_in_each_period_never_summed(warehouse: Engine) -> None:
    seen = [
        (date(2017, 10, 2), "delivery", "logistics", "a"),
        (date(2017, 10, 3), "delivery", "logistics", "a"),
        (date(2017, 10, 3), "returns", "finance", "a"),
        (date(2017, 10, 9), "delivery", "logistics", "b"),
    ]
    names = ("date", "stage", "department", "customer_key")
    with warehouse.begin() as connection:
        connection.execute(insert(tables.customer_day), [dict(zip(names, row, strict=True)) | {"n": 2} for row in seen])
        month = {
            (row["stage"], row["department"]): (row["customers"], row["events"])
            for row in read_view(connection, "customers_by_month")
        }
        weeks = {
            row["period_start"]: row["customers"]
            for row in read_view(connection, "customers_by_week")
            if row["stage"] == row["department"] == "*"
        }
    assert month == {
        ("delivery", "logistics"): (2, 6),
        ("returns", "finance"): (1, 2),
        ("delivery", "*"): (2, 6),
        ("returns", "*"): (1, 2),
        ("*", "logistics"): (2, 6),
        ("*", "finance"): (1, 2),
        ("*", "*"): (2, 8),
    }
    assert weeks == {date(2017, 10, 2): 1, date(2017, 10, 9): 1}


def test_data_quality__shares_of_a_topic(warehouse: Engine) -> None:
    counts = {"loaded": 90, "duplicates": 5, "dead_lettered": 3, "dropped": 1, "lost": 0, "without_record": 1}
    ledger = {"cluster_id": "c", "topic_id": "t", "topic": "voc.survey", "first_offset": 0, "run_epoch": 1}
    letter = {"event_type": "survey", "step": "validate", "raw": b"x", "raw_bytes": 1, "dead_at": 0, "run_epoch": 1}
    with warehouse.begin() as connection:
        rows = [ledger | counts | {"ledger_id": i, "partition": i, "next_offset": 100, "updated_at": 0} for i in (1, 2)]
        connection.execute(insert(tables.ingest_ledger), rows)
        causes = ["impossible score"] * 2 + ["oversized text"]
        connection.execute(
            insert(tables.dead_letter),
            [
                letter | {"ledger_id": 1, "kafka_offset": i, "error_class": cause, "message": cause}
                for i, cause in enumerate(causes)
            ],
        )
        quality = {row["outcome"]: row for row in read_view(connection, "data_quality")}
        letters = {row["error_class"]: row["records"] for row in read_view(connection, "dead_letter_by_cause")}
    assert {outcome: row["offsets"] for outcome, row in quality.items()} == {k: 2 * v for k, v in counts.items()}
    assert quality["loaded"]["share"] == pytest.approx(0.9)
    assert letters == {"impossible score": 2, "oversized text": 1}


def test_event_export__readable_times_and_no_plumbing(warehouse: Engine) -> None:
    needed = {c.name: "" for c in tables.event.c if not c.nullable}
    moment = to_micros(datetime(2017, 10, 3, 4, 5, 6, tzinfo=UTC))
    numbers = {"taxonomy_version": 1, "ledger_id": 1, "kafka_offset": 1, "loaded_at": moment, "event_time": moment}
    with warehouse.begin() as connection:
        connection.execute(insert(tables.event), [needed | numbers | {"event_key": b"0" * 16, "text": "late again"}])
        (row,) = read_view(connection, "event_export")
    readable = row["event_time"]
    readable = datetime.fromisoformat(readable) if isinstance(readable, str) else readable
    assert readable == from_micros(moment)
    assert row["text"] == "late again"
    assert not {"event_key", "contributions", "kafka_offset"} & row.keys()


def test_create_views__repeatable_and_leaves_others_alone(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        connection.execute(text("CREATE VIEW view_of_others AS SELECT 1 AS one"))
        views.create_views(connection)
        views.drop_views(connection)
        left = _present_views(connection)
        views.create_views(connection)
        made = _present_views(connection)
        connection.execute(text("DROP VIEW view_of_others"))
    assert left & {*views.view_names(), "view_of_others"} == {"view_of_others"}
    assert set(views.view_names()) <= made


def test_aggregate_views__none_names_a_customer_a_text_or_an_event(warehouse: Engine) -> None:
    row_level = {"customer_key", "text", "subject", "event_id", "ticket_id", "response_id", "session_id"}
    with warehouse.connect() as connection:
        columns = {name: set(connection.execute(text(f"SELECT * FROM {name}")).keys()) for name in views.view_names()}
    assert {name for name, found in columns.items() if found & row_level} == views.ROW_LEVEL_VIEWS
    assert {*views.aggregate_views(), *views.ROW_LEVEL_VIEWS} == set(views.view_names())


def _present_views(connection: Connection) -> set[str]:
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'view'",
        "postgresql": "SELECT viewname FROM pg_views",
    }[connection.dialect.name]
    return set(connection.execute(text(catalogue)).scalars())


def test_view_comments__every_view_and_column_has_one(warehouse: Engine) -> None:
    told = {(view, column): comment for view, column, comment in views.view_comments()}
    assert all(told.values())
    with warehouse.connect() as connection:
        for name in views.view_names():
            columns = connection.execute(text(f"SELECT * FROM {name}")).keys()
            assert {(name, column) for column in columns} <= told.keys()
        if connection.dialect.name == "postgresql":
            stored = connection.execute(text("SELECT obj_description('metric_by_month'::regclass)")).scalar_one()
            assert stored == told["metric_by_month", ""]


@pytest.mark.parametrize(
    "view",
    [*(f"{prefix}_by_month" for prefix in ("metric", "stage_metric", "company_metric")), "score_distribution_by_month"],
)
def test_views_by_month__sqlite_reads_only_the_metric_that_is_asked_for(tmp_path: Path, view: str) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'warehouse.db'}", write=True)
    with engine.begin() as connection:
        tables.metadata.create_all(connection)
        views.create_views(connection)
        asked = f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE metric = 'nps'"
        plan = [row[3] for row in connection.exec_driver_sql(asked)]
    engine.dispose()
    read = [step for step in plan if re.match(r"(SCAN|SEARCH) measure(_month)?\b", step)]
    assert {step.split()[1] for step in read} == {"measure", "measure_month"}
    assert all("USING PRIMARY KEY (metric=?" in step for step in read), read


def test_metric_by_month__sqlite_looks_for_percentiles_by_the_whole_key_of_a_place(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'warehouse.db'}", write=True)
    with engine.begin() as connection:
        tables.metadata.create_all(connection)
        views.create_views(connection)
        asked = "EXPLAIN QUERY PLAN SELECT * FROM metric_by_month WHERE metric = 'resolution'"
        plan = [row[3] for row in connection.exec_driver_sql(asked)]
    engine.dispose()
    keys = [re.findall(r"(\w+)=\?", step) for step in plan if step.startswith("SEARCH measure_month ")]
    # Once to add up, in the order of the key, and once for each place.
    assert keys == [["metric"], ["metric", "month_start", "basis", "stage", "department", "unit"]]
    assert plan.count("USE TEMP B-TREE FOR GROUP BY") == 1, "only what was not folded is sorted"


def test_metric_by_month__a_year_of_hours_is_quick(warehouse: Engine) -> None:
    base = random_measures(random.Random(1), 1)[0] | {"metric": "nps", "grain": "hour", "unit": "unit"}
    facts = []
    for hour in range(0, 24 * 120, 2):
        start = to_micros(datetime(2017, 9, 5, tzinfo=UTC)) + hour * HOUR_US
        day, hour_start = CALENDAR.day_and_hour(start - start % BUCKET_US)
        place = {"bucket_start": start, "date": date.fromisoformat(day), "hour_start": hour_start}
        facts += [base | place | {"stage": s, "bin": b} for s in STAGES for b in range(11)]
    with warehouse.begin() as connection:
        insert_facts(connection, facts)
    started = datetime.now(UTC)
    with warehouse.connect() as connection:
        rows = read_view(connection, "metric_by_month")
    assert sum(row["n"] for row in rows) == sum(fact["n"] for fact in facts)
    assert datetime.now(UTC) - started < timedelta(seconds=5)
