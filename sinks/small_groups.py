"""Which figures stay hidden because fewer than k answers stand behind them, or would be found by subtraction.

A *table* is what is published together: the stage × department cells of one period, metric and unit, with their three
margins (each stage, each department, the whole company). `protect` marks its cells and margins, in SQL that is the
same on both databases:

1. A table of fewer than k answers is hidden as a whole.
2. A stage of fewer than k answers is hidden with all its cells; then further stages are, the smallest first, until
   what is hidden of the company's figure is at least k answers, and more answers than cells.
3. A stage that is hidden, or has a cell of fewer than k answers, hides its smallest cells until they are at least k
   answers together, and more answers than cells.
4. A department is hidden where one of its cells is, unless all hidden cells of the table lie in this department.

Why nothing can be computed back: take stages and departments as the nodes of a graph, with one node more on either
side for "all of them", and hidden figures as its edges (a stage's margin joins the stage with "all departments"). Each
node is one published sum. Along a closed path figures can go up and down by one in turn without moving any sum, so what
lies on a closed path is not determined. By 3, a stage whose margin is published has at least two hidden cells, since
the smallest is no k answers, in two departments, whose margins are hidden by 4: a closed path. By 2, a stage whose
margin is hidden has a companion, and the path goes from stage to stage through "all departments" and back through a
department or "all stages". A listed figure is known to be at least 1, so the path needs a figure above 1 to take from:
that is why there must be more answers than cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Subquery,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
)

Expression = ColumnElement[Any]
Place = Literal["stage", "department"]

FLAGS: dict[frozenset[Place], str] = {
    frozenset({"stage", "department"}): "hides_cell",
    frozenset({"stage"}): "hides_stage",
    frozenset({"department"}): "hides_department",
    frozenset(): "hides_company",
}
"""The flag (0 or 1) of a figure that keeps these of stage and department."""


def with_sizes(rows: FromClause, table: Sequence[str]) -> CTE:
    """Adds what `protect` needs to rows, one a cell, whose every contribution is an answer of its own.

    `rows` have `stage`, `department`, `n` > 0 and the threshold `k`; the columns `table` say which table a row is in.
    """
    c = rows.c
    of_cell: dict[str, Expression] = {"people": c.n, "leads": literal(1), "cell_n": c.n, "size": c.n}
    sized = select(*c, *(value.label(name) for name, value in of_cell.items())).cte("cell_sizes")
    for name, places in (("stage_size", ["stage"]), ("department_size", ["department"]), ("company_size", [])):
        c = sized.c
        total = _sum(c.n, [c[column] for column in (*table, *places)])
        sized = select(*c, total.label(name)).cte(f"{name}s")
    return sized


def protect(rows: FromClause, table: Sequence[str]) -> CTE:
    """Adds to each row the flags of its cell and of the cell's margins: `FLAGS`.

    A cell may have several rows. Beside `stage`, `department`, the columns `table` and the threshold `k`, a row has
    `n`, which can be subtracted, and `people` (or answers), which are compared with k; `leads` is 1 in one row of each
    cell. Every row of a cell has the cell's sum of n, `cell_n`, and the people behind the cell and its margins:
    `size`, `stage_size`, `department_size`, `company_size`, which need not be sums.
    """
    c = rows.c
    stage = [*(c[name] for name in table), c.stage]
    # Rows of one cell are peers in this order, so each sees sums up to the end of its cell.
    order: list[Expression] = [c.size, c.cell_n, c.department]
    of_stages = select(
        *c,
        func.min(c.size).over(partition_by=stage).label("smallest_of_stage"),
        _sum(c.leads, stage).label("cells_of_stage"),
        _sum(c.n, stage).label("n_of_stage"),
        _sum(c.people, stage).label("people_of_stage"),
        (_sum(c.n, stage, order) - c.cell_n).label("n_before"),
        (_sum(c.people, stage, order) - c.size).label("people_before"),
        (_sum(c.leads, stage, order) - 1).label("cells_before"),
    ).cte("of_stages")

    c = of_stages.c
    whole = [c[name] for name in table]
    counted = select(
        *c,
        func.min(c.size).over(partition_by=whole).label("smallest"),
        _sum(c.leads, whole).label("cells"),
        _sum(c.n, whole).label("n_of_all"),
    ).cte("counted")

    c = counted.c
    hides_company = or_(c.company_size < c.k, and_(c.smallest < c.k, c.n_of_all <= c.cells))
    small_stage = or_(c.stage_size < c.k, and_(c.smallest_of_stage < c.k, c.n_of_stage <= c.cells_of_stage))
    flags = (_flag(hides_company).label("hides_company"), _flag(small_stage).label("small_stage"))
    judged = select(*c, *flags).cte("judged")

    # Rows of one stage are peers in this order, so each sees sums up to the end of its stage.
    c = judged.c
    whole = [c[name] for name in table]
    order = [c.small_stage.desc(), c.stage_size, c.stage]
    ranked = select(
        *c,
        func.max(c.small_stage).over(partition_by=whole).label("small_stages"),
        (_sum(c.people, whole, order) - c.people_of_stage).label("people_reached"),
        (_sum(c.n, whole, order) - c.n_of_stage).label("n_reached"),
        (_sum(c.leads, whole, order) - c.cells_of_stage).label("cells_reached"),
    ).cte("ranked")

    c = ranked.c
    enough_stages = and_(c.people_reached >= c.k, c.n_reached > c.cells_reached)
    hides_stage = or_(c.hides_company == 1, c.small_stage == 1, and_(c.small_stages == 1, ~enough_stages))
    enough_cells = and_(c.people_before >= c.k, c.n_before > c.cells_before)
    touched = or_(hides_stage, c.smallest_of_stage < c.k)
    hides_cell = or_(c.hides_company == 1, c.small_stage == 1, c.size < c.k, and_(touched, ~enough_cells))
    flags = (_flag(hides_stage).label("hides_stage"), _flag(hides_cell).label("hides_cell"))
    marked = select(*c, *flags).cte("marked")

    c = marked.c
    department = [*(c[name] for name in table), c.department]
    of_departments = select(*c, func.max(c.hides_cell).over(partition_by=department).label("department_hides")).cte(
        "of_departments"
    )

    c = of_departments.c
    whole = [c[name] for name in table]
    hidden_in = case((c.hides_cell == 1, c.department))
    spread = select(
        *c,
        func.max(_flag(c.department_size < c.k)).over(partition_by=whole).label("small_departments"),
        func.min(hidden_in).over(partition_by=whole).label("first_department"),
        func.max(hidden_in).over(partition_by=whole).label("last_department"),
    ).cte("spread")

    c = spread.c
    several = c.first_department != c.last_department
    # Only where sizes don't add up: the same few people stand behind all stages of the one department that hides.
    alone = and_(c.small_departments == 1, ~several)
    hides = {
        "hides_cell": or_(c.hides_cell == 1, alone),
        "hides_stage": or_(c.hides_stage == 1, alone),
        "hides_department": or_(c.hides_company == 1, alone, and_(c.department_hides == 1, several)),
        "hides_company": or_(c.hides_company == 1, alone),
    }
    return select(
        *(c[column.key] for column in rows.c),
        *(_flag(condition).label(name) for name, condition in hides.items()),
    ).cte("protected")


def suppressed(cells: FromClause, table: Sequence[str], by: frozenset[Place]) -> Subquery:
    """One row per table and figure that keeps `by` of stage and department, with `suppressed`: 1 hidden, 0 shown."""
    c = cells.c
    keys = [c[name] for name in (*table, *sorted(by))]
    return select(*keys, func.max(c[FLAGS[by]]).label("suppressed")).group_by(*keys).subquery("hidden")


def _flag(condition: Expression) -> Expression:
    return case((condition, 1), else_=0)


def _sum(column: Expression, within: Sequence[Expression], order: Sequence[Expression] | None = None) -> Expression:
    return _whole(func.sum(column).over(partition_by=within, order_by=order))


def _whole(expression: Expression) -> Expression:
    # PostgreSQL sums BIGINT into NUMERIC.
    return cast(expression, BigInteger)
