"""Small groups on real databases: worked examples, and an attacker who knows every figure that the views show."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from sqlalchemy import Connection, Engine, delete, insert, update

from tests.integration.test_views import Row, create_tables, date_rows, metric_rows, read_view, ticket
from vocbeam.schemas.timebase import HOUR_US, to_micros
from vocbeam.sinks import tables, views
from vocbeam.sinks.engine import open_engine
from vocbeam.transforms.bins import all_bins

K = 5
FIRST, LAST = date(2018, 1, 1), date(2018, 6, 30)
EVERYWHERE = "*"
MUCH = 10_000
"""More than any table holds."""

Cells = Mapping[tuple[str, str], int]
"""(stage, department) → answers."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty_warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A warehouse with dimensions and views under k = 5, without facts, for all tests of this module."""
    if request.param == "postgresql":
        with request.getfixturevalue("postgres_server").database() as url:
            yield from prepared(url)
    else:
        yield from prepared(f"sqlite:///{tmp_path_factory.mktemp('small_groups') / 'warehouse.db'}")


def prepared(url: str) -> Iterator[Engine]:
    """The warehouse at a URL, as long as its tests run."""
    engine = open_engine(url, write=True)
    with engine.begin() as connection:
        create_tables(connection)
        connection.execute(insert(tables.metric), list(metric_rows()))
        connection.execute(insert(tables.calendar_date), list(date_rows(FIRST, LAST)))
        connection.execute(insert(tables.measure_bin), [entry._asdict() for entry in all_bins()])
        views.create_views(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def warehouse(empty_warehouse: Engine) -> Iterator[Engine]:
    """The same, k = 5, emptied again after each test."""
    with empty_warehouse.begin() as connection:
        connection.execute(insert(tables.privacy).values(only=1, k=K))
    yield empty_warehouse
    with empty_warehouse.begin() as connection:
        for name in ("measure", "ticket", "customer_day", "privacy"):
            connection.execute(delete(tables.metadata.tables[name]))
        connection.execute(update(tables.metric).values(small_groups="hidden"))


def answers(day: date, cells: Cells, *, metric: str = "csat", score: int = 4, unit: str = "unit") -> list[Row]:
    """Rows of `measure`: so many answers with one score at each place."""
    row = {
        "metric": metric,
        "grain": "bucket",
        "bucket_start": to_micros(datetime(day.year, day.month, day.day, tzinfo=UTC)),
    }
    row |= {"basis": "as_reported", "topic": "", "segment_1": "", "segment_2": "", "segment_3": "", "unit": unit}
    row |= {"bin": score, "date": day, "hour_start": None}
    return [
        row | {"stage": s, "department": d, "n": n, "weight": n * 10_000, "weight_sq": n * 10**8, "total": n * score}
        for (s, d), n in cells.items()
    ]


PREFIXES = ("metric", "stage_metric", "department_metric", "company_metric")


def published(connection: Connection, period: str) -> dict[Any, dict[tuple[str, str], int | None]]:
    """Period start → (stage, department), '*' in margins → n as the four views have it, None where hidden."""
    found: dict[Any, dict[tuple[str, str], int | None]] = {}
    for prefix in PREFIXES:
        for row in read_view(connection, f"{prefix}_by_{period}"):
            assert (row["n"] is None) == (row["suppressed"] == 1) == (row["status"] == views.HIDDEN)
            found.setdefault(row["period_start"], {})[row["stage"], row["department"]] = row["n"]
    return found


def shown(warehouse: Engine, cells: Cells) -> dict[tuple[str, str], int | None]:
    """What the monthly views publish of one table."""
    with warehouse.begin() as connection:
        connection.execute(insert(tables.measure), answers(FIRST, cells))
        (table,) = published(connection, "month").values()
    return table


def test_views__large_groups_are_all_shown(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", "sales"): 5, ("order", "it"): 9, ("pay", "it"): 7})
    assert table == {
        ("order", "sales"): 5,
        ("order", "it"): 9,
        ("pay", "it"): 7,
        ("order", "*"): 14,
        ("pay", "*"): 7,
        ("*", "sales"): 5,
        ("*", "it"): 16,
        ("*", "*"): 21,
    }


def test_views__small_cell_takes_the_next_and_both_departments_with_it(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", "sales"): 2, ("order", "it"): 9, ("order", "hr"): 30, ("pay", "it"): 7})
    # 41 - 30 = 11 for two cells; were "it" shown as 16, 16 - 7 = 9 would give 11 - 9 = 2 away.
    assert table == {
        ("order", "sales"): None,
        ("order", "it"): None,
        ("order", "hr"): 30,
        ("pay", "it"): 7,
        ("order", "*"): 41,
        ("pay", "*"): 7,
        ("*", "sales"): None,
        ("*", "it"): None,
        ("*", "hr"): 30,
        ("*", "*"): 48,
    }


def test_views__small_stage_takes_the_next_stage_with_it(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", "sales"): 3, ("pay", "it"): 8, ("pay", "hr"): 20, ("use", "hr"): 40})
    # "pay" is the smallest companion: 71 - 40 = 31 for "order" and "pay"; of "pay" the smaller cell would tell its sum.
    assert {place for place, n in table.items() if n is None} == {
        ("order", "sales"),
        ("order", "*"),
        ("pay", "*"),
        ("pay", "it"),
        ("*", "sales"),
        ("*", "it"),
    }
    assert (table["use", "hr"], table["use", "*"], table["*", "*"]) == (40, 40, 71)


def test_views__small_cells_together_still_small_take_a_third(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", "sales"): 1, ("order", "it"): 2, ("order", "hr"): 6, ("order", "law"): 8})
    # 1 + 2 is itself a small group.
    assert {place for place, n in table.items() if n is None} == {
        (s, d) for s in ("order", "*") for d in ("sales", "it", "hr")
    }


def test_views__single_answers_only_are_hidden_up_to_their_total(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", d): 1 for d in "abcdef"})
    # A total of 6 in 6 listed cells would say that each holds one.
    assert set(table.values()) == {None}


def test_views__table_below_k_is_hidden_as_a_whole(warehouse: Engine) -> None:
    table = shown(warehouse, {("order", "sales"): 4})
    assert set(table.values()) == {None}


def test_views__hidden_rows_keep_place_and_target_only(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        connection.execute(insert(tables.measure), answers(FIRST, {("order", "sales"): 3}))
        (row,) = read_view(connection, "metric_by_month")
    kept = {"period_start", "stage", "department", "metric", "name", "level", "kind", "direction", "unit", "min_n"}
    assert {name for name, value in row.items() if value is not None} == kept | {"status", "suppressed"}


def test_views__telemetry_that_governance_frees_is_shown(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        connection.execute(update(tables.metric).where(tables.metric.c.metric == "late").values(small_groups="shown"))
        for metric in ("late", "csat"):
            connection.execute(insert(tables.measure), answers(FIRST, {("order", "sales"): 3}, metric=metric, score=1))
        rows = {row["metric"]: row["n"] for row in read_view(connection, "metric_by_day")}
    assert rows == {"late": 3, "csat": None}


def test_views__units_are_tables_of_their_own(warehouse: Engine) -> None:
    facts = [
        *answers(FIRST, {("pay", "it"): 3}, metric="revenue", unit="USD", score=1),
        *answers(FIRST, {("pay", "it"): 8}, metric="revenue", unit="BRL", score=1),
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.measure), facts)
        rows = {row["unit"]: row["n"] for row in read_view(connection, "company_metric_by_month")}
    assert rows == {"USD": None, "BRL": 8}


def test_views__without_a_threshold_nothing_is_shown(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        connection.execute(delete(tables.privacy))
        connection.execute(insert(tables.measure), answers(FIRST, {("order", "sales"): 300}))
        assert read_view(connection, "metric_by_month") == read_view(connection, "company_metric_by_month") == []


def test_score_distribution__rare_scores_are_one_row(warehouse: Engine) -> None:
    given = {1: 2, 2: 1, 3: 4, 4: 30, 5: 9}
    with warehouse.begin() as connection:
        for score, n in given.items():
            connection.execute(insert(tables.measure), answers(FIRST, {("use", "hr"): n}, score=score))
        connection.execute(insert(tables.measure), answers(date(2018, 2, 1), {("use", "hr"): 3}))
        rows = {
            (row["period_start"], row["score"]): (row["n"], row["suppressed"])
            for row in read_view(connection, "score_distribution_by_month")
        }
    assert rows == {
        (FIRST, 4): (30, 0),
        (FIRST, 5): (9, 0),
        (FIRST, None): (7, 0),
        (date(2018, 2, 1), None): (None, 1),
    }


def test_score_distribution__one_rare_score_takes_the_next(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        for score, n in {1: 2, 4: 30, 5: 9}.items():
            connection.execute(insert(tables.measure), answers(FIRST, {("use", "hr"): n}, score=score))
        rows = {row["score"]: row["n"] for row in read_view(connection, "score_distribution_by_month")}
    assert rows == {4: 30, None: 11}


def test_response_funnel__few_invited_are_hidden(warehouse: Engine) -> None:
    with warehouse.begin() as connection:
        for score, n in ((1, 20), (4, 10)):
            cells = {("use", "hr"): n, ("pay", "it"): 2 * n, ("stay", "hr"): score}
            connection.execute(insert(tables.measure), answers(FIRST, cells, metric="responses", score=score))
        connection.execute(insert(tables.measure), answers(date(2018, 2, 1), {("use", "hr"): 4}, metric="responses"))
        rows = read_view(connection, "response_funnel_by_month")
        company = connection.execute(views.company_funnel(FIRST, LAST)).one()
    sent = {(row["period_start"], row["stage"]): (row["sent"], row["complete"]) for row in rows}
    # "stay" has 1 + 4 invitations, exactly k.
    assert sent == {
        (FIRST, "use"): (30, 10),
        (FIRST, "pay"): (60, 20),
        (FIRST, "stay"): (5, 4),
        (date(2018, 2, 1), "use"): (None, None),
    }
    assert (company.sent, company.suppressed) == (99, 0)


def test_ticket_views__few_tickets_are_hidden(warehouse: Engine) -> None:
    opened_at = to_micros(datetime(2018, 1, 10, tzinfo=UTC))
    counts = {("use", "hr"): 3, ("use", "it"): 12, ("pay", "it"): 6, ("stay", "law"): 9}
    rows = []
    for (stage, department), n in counts.items():
        for _ in range(n):
            due = {"resolution_due_at": opened_at + HOUR_US, "opened_at": opened_at}
            rows.append(ticket(len(rows), stage=stage, department=department, **due))
    with warehouse.begin() as connection:
        connection.execute(insert(tables.ticket), rows)
        backlog = {(row["stage"], row["department"]): row["open"] for row in read_view(connection, "ticket_backlog")}
        levels = {(row["stage"], row["department"]): row["missed"] for row in read_view(connection, "ticket_sla")}
        cohorts = {(row["department"], row["n"]) for row in read_view(connection, "ticket_resolution_km")}
        by_department = {row.department: row.open for row in connection.execute(views.department_backlog())}
        sla = {row.department: row.missed for row in connection.execute(views.department_sla(FIRST, LAST))}
    # 15 in "use" are shown nowhere here, but in the metrics' margins: its two cells hide each other.
    cells = {("use", "hr"): None, ("use", "it"): None, ("pay", "it"): 6, ("stay", "law"): 9}
    departments = {"hr": None, "it": None, "law": 9}
    assert backlog == levels == cells
    assert by_department == sla == departments
    assert cohorts == {*departments.items(), ("*", 30)}


def test_customers__few_people_are_hidden_though_they_did_much(warehouse: Engine) -> None:
    def seen(stage: str, department: str, customers: range, n: int) -> list[Row]:
        place = {"date": FIRST, "stage": stage, "department": department, "n": n}
        return [place | {"customer_key": str(customer)} for customer in customers]

    facts = [
        *seen("use", "hr", range(4), 100),
        *seen("use", "it", range(2, 10), 1),
        *seen("pay", "law", range(20, 30), 1),
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.customer_day), facts)
        rows = {
            (row["stage"], row["department"]): (row["customers"], row["events"])
            for row in read_view(connection, "customers_by_month")
        }
    assert rows == {
        ("use", "hr"): (None, None),
        ("use", "it"): (None, None),
        ("pay", "law"): (10, 10),
        ("use", "*"): (10, 408),
        ("pay", "*"): (10, 10),
        ("*", "hr"): (None, None),
        ("*", "it"): (None, None),
        ("*", "law"): (10, 10),
        ("*", "*"): (20, 418),
    }


def test_customers__the_same_few_in_one_department_hide_the_table(warehouse: Engine) -> None:
    facts = [
        {"date": FIRST, "stage": stage, "department": "hr", "customer_key": str(customer), "n": 2}
        for stage in ("use", "pay", "stay")
        for customer in range(3)
    ]
    with warehouse.begin() as connection:
        connection.execute(insert(tables.customer_day), facts)
        assert {row["events"] for row in read_view(connection, "customers_by_day")} == {None}


# --- The attacker -----------------------------------------------------------------------------------------------------


def random_table(generator: random.Random) -> dict[tuple[str, str], int]:
    """Cells of a table, sparse or dense, with many small ones."""
    stages, departments = generator.randint(1, 5), generator.randint(1, 5)
    density = generator.choice([0.3, 0.6, 1.0])
    sizes = generator.choice([[1], [1, 2], [1, 1, 1, 9], [1, 2, 6, 40], [2, 30, 300], [2, 3, 4]])
    cells = {
        (f"s{s}", f"d{d}"): generator.choice(sizes)
        for s in range(stages)
        for d in range(departments)
        if generator.random() < density
    }
    return cells or {("s0", "d0"): generator.choice(sizes)}


def sums_of(table: Mapping[tuple[str, str], Any]) -> list[tuple[list[tuple[str, str]], tuple[str, str]]]:
    """(parts, their sum) of each line that a reader of the four views can add up, as places."""
    stages = sorted({stage for stage, _ in table} - {EVERYWHERE})
    departments = sorted({department for _, department in table} - {EVERYWHERE})
    lines = [([(s, d) for d in departments if (s, d) in table], (s, EVERYWHERE)) for s in stages]
    lines += [([(s, d) for s in stages if (s, d) in table], (EVERYWHERE, d)) for d in departments]
    lines.append(([(s, EVERYWHERE) for s in stages], (EVERYWHERE, EVERYWHERE)))
    lines.append(([(EVERYWHERE, d) for d in departments], (EVERYWHERE, EVERYWHERE)))
    return lines


def ranges(table: Mapping[tuple[str, str], int | None]) -> dict[tuple[str, str], tuple[int, int]]:
    """Least and greatest value of each hidden place that agrees with everything that is published.

    The attacker knows that a listed figure is at least 1. The sums form a network, so that the ends of these ranges are
    whole numbers that some table really has.
    """
    hidden = [place for place, n in table.items() if n is None]
    index = {place: i for i, place in enumerate(hidden)}
    left, right = [], []
    for parts, whole in sums_of(table):
        row = np.zeros(len(hidden))
        known = 0
        for sign, place in [*((1, part) for part in parts), (-1, whole)]:
            if table[place] is None:
                row[index[place]] += sign
            else:
                known += sign * (table[place] or 0)
        if row.any():
            left.append(row)
            right.append(-known)
    found = {}
    for place in hidden:
        ends = []
        for sign in (1, -1):
            cost = np.zeros(len(hidden))
            cost[index[place]] = sign
            solved = linprog(cost, A_eq=np.array(left), b_eq=np.array(right), bounds=(1, MUCH), method="highs")
            assert solved.success
            ends.append(sign * round(solved.fun))
        found[place] = (ends[0], ends[1])
    return found


def test_ranges__finds_what_subtraction_gives_away() -> None:
    # One cell of a line: 10 - 7 = 3. The department's margin doesn't help, it is hidden too.
    table = {("a", "x"): None, ("a", "y"): 7, ("a", "*"): 10, ("*", "x"): None, ("*", "y"): 7, ("*", "*"): None}
    assert ranges(table)["a", "x"] == (3, 3)


def test_metric_views__no_attacker_finds_a_hidden_figure(warehouse: Engine) -> None:
    # Small, so that k answers of one each, in as many cells, come up too.
    k = 3
    generator = random.Random(20)
    truth = {FIRST + timedelta(days=i): random_table(generator) for i in range(90)}
    with warehouse.begin() as connection:
        connection.execute(update(tables.privacy).values(k=k))
        facts = [fact for day, cells in truth.items() for fact in answers(day, cells)]
        connection.execute(insert(tables.measure), facts)
        found = published(connection, "day")
    assert found.keys() == truth.keys()
    hidden = 0
    for day, table in found.items():
        cells = truth[day]
        real = {
            place: sum(n for (s, d), n in cells.items() if place[0] in (s, EVERYWHERE) and place[1] in (d, EVERYWHERE))
            for place in table
        }
        assert {place for place in table if EVERYWHERE not in place} == cells.keys()
        assert all(n is None or n == real[place] >= k for place, n in table.items())
        for parts, whole in sums_of(table):
            together = sum(real[part] for part in parts if table[part] is None)
            assert table[whole] is None or together == 0 or together >= k
        for place, (least, greatest) in ranges(table).items():
            hidden += 1
            assert least < greatest, f"{place} is {least}: {cells} as {table}"
    assert hidden > 300
    # Not by hiding everything: most tables with large groups show some.
    assert sum(n is not None for table in found.values() for n in table.values()) > 200
