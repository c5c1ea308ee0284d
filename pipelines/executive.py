"""The board's page: what experience is worth, where it fails, what was done and whether it helped.

Everything on it comes from named SQL queries, which stand at its end, so that each number can be looked up.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy import Connection, text

from vocbeam.pipelines.report import Period, latest_month
from vocbeam.pipelines.wording import NOTHING, format_interval, format_target, format_value, minor_digits
from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import LocalCalendar, from_micros
from vocbeam.schemas.value import PayoutBy
from vocbeam.sinks import read
from vocbeam.transforms.customers import NO_ANSWER
from vocbeam.transforms.statistics import Interval

TEMPLATES = Path(__file__).parent / "templates"
TOP_ISSUES, TOP_DRIVERS = 8, 10
MIN_CLASSES = 2
STEPS = 10
"""Percentage points or percent that a link is told for: one alone is too small a change to imagine."""

Row = Mapping[Any, Any]

WORDS = {
    "met": "met",
    "missed": "missed",
    "not proven": "too close to call",
    "not enough data": "too little data",
    "hidden": "hidden: too few answers",
}
"""Statuses in the board's words; what has no target is left out."""

STATUS_ORDER = ("missed", "not proven", "met", "not enough data", "hidden")
ONE_OF_MANY = "one of several figures looked at, so it may be chance"
"""Why a change is not proven although its own interval leaves out zero."""

RUN_VALUE = "vocbeam value"
RUN_DRIVERS = "vocbeam drivers"
RUN_MARK = "vocbeam experiment mark"


@dataclass(frozen=True)
class Query:
    """A named question to the warehouse as it is asked, and what it is about."""

    name: str
    about: str
    sql: str


@dataclass(frozen=True)
class Executive:
    """Everything on the page, read from one snapshot; `rows` holds the answers by the name of the query."""

    governance: Governance
    period: Period
    created_at: int
    metrics: Mapping[str, read.MetricRow]
    departments: Sequence[read.DepartmentRow]
    stages: Mapping[str, read.StageRow]
    queries: Sequence[Query]
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def queries_of(period: Period, calendar: LocalCalendar) -> list[Query]:
    """The questions of the page; both databases understand them."""
    month, last = period.first.isoformat(), period.last.isoformat()
    begin, end = calendar.day_bounds(period.first)[0], calendar.day_bounds(period.last)[1]
    return [
        Query(
            "targets",
            "Each target of the month, by department and stage.",
            "SELECT department, stage, metric, unit, n, value, interval_low, interval_high, target, status\n"
            f"FROM metric_by_month\nWHERE period_start = '{month}' AND target IS NOT NULL\n"
            "ORDER BY department, stage, metric",
        ),
        Query(
            "company",
            "The month of the whole company.",
            "SELECT metric, unit, n, value, interval_low, interval_high, target, status\n"
            f"FROM company_metric_by_month\nWHERE period_start = '{month}'\nORDER BY metric, unit",
        ),
        Query(
            "issues",
            "Trouble by the customers who leave for it and what these would have brought, the surest first.",
            _issues_by("leaving", last),
        ),
        Query(
            "lost",
            "Trouble by the revenue that is lost, the surest first.",
            _issues_by("revenue", last),
        ),
        Query(
            "classes",
            "Satisfied against dissatisfied customers over the time that follows.",
            "SELECT landmark, horizon_days, metric, name, customer_class, quantity, unit, n, value,\n"
            "       interval_low, interval_high, p_value\n"
            f"FROM value_by_class\nWHERE {_fit('value_by_class', last)} AND suppressed = 0\n"
            "ORDER BY metric, customer_class, quantity",
        ),
        Query(
            "retention",
            "Share of customers who stay, day by day.",
            "SELECT metric, customer_class, day, n, value, interval_low, interval_high\n"
            f"FROM retention_by_class\nWHERE {_fit('retention_by_class', last)} AND suppressed = 0\n"
            "ORDER BY metric, customer_class, day",
        ),
        Query(
            "drivers",
            "What goes with satisfaction and with money: the metric tree.",
            "SELECT driver, driver_name, outcome, outcome_name, outcome_level, grade, verdict, reason, driver_step,\n"
            "       outcome_step, lag_days, effect, interval_low, interval_high, smallest_effect, n, is_driver\n"
            "FROM metric_tree\nWHERE strongest = 1\n"
            "ORDER BY verdict = 'proven' DESC, weight IS NULL, weight DESC, driver, outcome",
        ),
        Query(
            "done",
            "What was done, and what it changed.",
            "SELECT intervention_id, name, stage, compared_by, treated, start_date, metric, metric_name, outcome,\n"
            "       reason, step, effect, interval_low, interval_high, grade, treated_groups, untreated_groups\n"
            "FROM intervention_result\nORDER BY start_date, intervention_id, metric",
        ),
        Query(
            "cases",
            "Cases that alerts on missed targets opened in the month, and what was done about them.",
            "SELECT case_id, metric, stage, department, root_cause, action, acknowledged_at, closed_at\n"
            f"FROM alert_case\nWHERE opened_at >= {begin} AND opened_at < {end}\nORDER BY opened_at, case_id",
        ),
    ]


def _fit(view: str, last: str) -> str:
    """Condition of the fit that tells of a month: with the latest landmark up to its last day, else the first after."""
    return (
        f"fitted_at = (\n  SELECT fitted_at FROM {view}\n"  # noqa: S608 (a date and our own words)
        f"  ORDER BY landmark > '{last}', CASE WHEN landmark <= '{last}' THEN landmark END DESC, landmark, "
        "fitted_at DESC LIMIT 1)"
    )


def _issues_by(payout_by: PayoutBy, last: str) -> str:
    return (
        "SELECT landmark, horizon_days, stage, stage_name, department, topic, metric, name, currency, status,\n"
        "       customers, affected, effect, interval_low, interval_high, payout, payout_low, payout_high\n"
        f"FROM issue_payout\nWHERE {_fit('issue_payout', last)} AND payout_by = '{payout_by}'\n"
        "ORDER BY rank IS NULL, rank, stage, metric"
    )


def build_executive(connection: Connection, period: Period | None, now: int) -> Executive:
    """Asks everything for one month; None takes the latest month of the data.

    Raises ConfigError where nothing has been loaded, or for a period that is no month: targets are judged by month.
    """
    governance = parse_governance(read.taxonomy(connection).governance_text)
    if period is None:
        period = latest_month(read.month_sizes(connection), read.last_date(connection) or date.min)
    if period.kind != "month":
        raise ConfigError("the board's page is about a month; choose it with --month")
    queries = queries_of(period, LocalCalendar(governance.timezone))
    return Executive(
        governance=governance,
        period=period,
        created_at=now,
        metrics={row.metric: row for row in read.metrics(connection)},
        departments=read.departments(connection),
        stages={row.stage: row for row in read.stages(connection)},
        queries=queries,
        rows={query.name: list(connection.execute(text(query.sql)).mappings()) for query in queries},
    )


def render_executive(found: Executive) -> str:
    """The page as text: one file, no script, nothing from elsewhere; prints on A4, one page or more a department."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    rows = found.rows
    targets = [_target(found, row) for row in rows["targets"] if row["status"] in WORDS]
    ways = [_way(found, *way) for way in WAYS]
    done = _done(found)
    cases = [_case(found, row) for row in rows["cases"]]
    edges = [_edge(row) for row in rows["drivers"]]
    comparisons, too_few = _comparisons(found)
    known = [edge for edge in edges if edge["verdict"] != "not enough data"]
    sections: dict[str, dict[str, Any]] = {
        row.department: {
            "row": row,
            "stages": [stage.name for stage in found.stages.values() if stage.owner == row.department],
            "targets": [line for line in targets if line["department"] == row.department],
            "ways": [
                {
                    **way,
                    "issues": [issue for issue in way["issues"] if issue["department"] == row.department],
                    "unknown": sum(issue["department"] == row.department for issue in way["unknown"]),
                }
                for way in ways
            ],
            "done": [each for each in done if each["owner"] == row.department],
            "cases": [case for case in cases if case["department"] == row.department],
        }
        for row in found.departments
        if row.department != UNASSIGNED
    }
    measured = {department: {line["metric"] for line in section["targets"]} for department, section in sections.items()}
    for department, section in sections.items():
        own = [edge for edge in edges if edge["driver"] in measured[department]]
        section["edges"] = [edge for edge in own if edge["verdict"] != "not enough data"]
        section["untold"] = len(own) - len(section["edges"])
    return environment.get_template("executive.html.j2").render(
        company=found.governance.company,
        period=found.period,
        timezone=found.governance.timezone,
        created_at=f"{from_micros(found.created_at):%Y-%m-%d %H:%M} UTC",
        queries=found.queries,
        sections=sections,
        tally=_tally(sections, targets),
        statuses=[(status, WORDS[status]) for status in STATUS_ORDER],
        headlines=_headlines(found),
        ways=[
            {
                **way,
                "stake": _stake(way["issues"]),
                "issues": way["issues"][:TOP_ISSUES],
                "left": max(0, len(way["issues"]) - TOP_ISSUES),
                "unknown": len(way["unknown"]),
            }
            for way in ways
        ],
        priced=bool(rows["issues"]),
        comparisons=comparisons,
        too_few=too_few,
        unrecorded=[words for quantity, words in QUANTITY_WORDS.items() if quantity not in _recorded(found)],
        edges=known[:TOP_DRIVERS],
        unproven=[edge for edge in known if edge["verdict"] == "not proven"],
        untold=[edge for edge in edges if edge["verdict"] == "not enough data"],
        all_edges=len(edges),
        done=done,
        cases=cases,
        run_value=RUN_VALUE,
        run_drivers=RUN_DRIVERS,
        run_mark=RUN_MARK,
        nothing=NOTHING,
    )


def _target(found: Executive, row: Row) -> dict[str, Any]:
    metric, unit = found.metrics[row["metric"]], row["unit"]
    stage = found.stages.get(row["stage"])
    return {
        "department": row["department"],
        "stage": stage.name if stage else row["stage"],
        "metric": row["metric"],
        "name": metric.name,
        "value": format_value(metric, unit, row["value"]),
        "interval": format_interval(metric, unit, Interval(row["interval_low"], row["interval_high"])),
        "target": format_target(metric, unit, row["target"]),
        "status": row["status"],
        "word": WORDS[row["status"]],
    }


WAYS: tuple[tuple[str, PayoutBy, str, str], ...] = (
    ("issues", "leaving", "Customers who leave for it", "More of them leave"),
    ("lost", "revenue", "Revenue that is lost", "What each brings"),
)
"""Of counting what trouble costs: name of the query, what it goes by, its heading and that of the effect."""


def _way(found: Executive, query: str, payout_by: PayoutBy, heading: str, effect: str) -> dict[str, Any]:
    """All trouble as one way of counting tells it; `unknown` is what there is too little data for."""
    issues = [_issue(found, row, payout_by) for row in found.rows[query]]
    first = found.rows[query][0] if found.rows[query] else {"horizon_days": None, "landmark": None}
    return {
        "query": query,
        "heading": heading,
        "effect": effect,
        "days": first["horizon_days"],
        "landmark": first["landmark"],
        "issues": [issue for issue in issues if issue["status"] != "not enough data"],
        "unknown": [issue for issue in issues if issue["status"] == "not enough data"],
    }


def _issue(found: Executive, row: Row, payout_by: PayoutBy) -> dict[str, Any]:
    enough = row["effect"] is not None
    effect, interval = NOTHING, NOTHING
    if enough and payout_by == "leaving":
        effect = f"{_in_hundred(row['effect'])} in 100"
        interval = f"{_in_hundred(row['interval_low'])} to {_in_hundred(row['interval_high'])}"
    elif enough:
        # A loss is less of it.
        effect, low, high = (money(row["currency"], -row[name]) for name in ("effect", "interval_high", "interval_low"))
        interval = f"{low} to {_bare(high)}"
    return {
        "department": row["department"],
        "place": " · ".join(
            part for part in (row["stage_name"] or row["stage"], (row["topic"] or "").replace("_", " ")) if part
        ),
        "name": row["name"] or row["metric"],
        "status": row["status"],
        "affected": f"{row['affected']:,} of {row['customers']:,}" if enough else NOTHING,
        "effect": effect,
        "interval": interval,
        "payout": money(row["currency"], row["payout"])
        if row["payout"] is None or row["payout"] > 0
        else "nothing seen",
        "payout_low": money(row["currency"], row["payout_low"]),
        "low": row["payout_low"],
        "verdict": _verdict(row),
        "currency": row["currency"],
    }


def _verdict(row: Row) -> str:
    """What a proven issue does: leaving costs nothing where those who stay bring nothing, or nobody knows what."""
    if row["status"] != "proven":
        return str(row["status"])
    return "costs money" if row["payout_low"] is not None and row["payout_low"] > 0 else "makes customers leave"


def _edge(row: Row) -> dict[str, Any]:
    """A link for several steps of its driver."""
    known = row["effect"] is not None
    steps = 1 if row["driver_step"] == "point" else STEPS
    low, high, effect, smallest = (
        steps * (row[name] or 0.0) for name in ("interval_low", "interval_high", "effect", "smallest_effect")
    )
    return {
        "driver": row["driver"],
        "driver_name": row["driver_name"] or row["driver"],
        "outcome_name": row["outcome_name"] or row["outcome"],
        "verdict": row["verdict"],
        "reason": row["reason"],
        "grade": {"association": "goes together", "before_after": "before and after", "experiment": "experiment"}[
            row["grade"]
        ],
        "step": f"+{steps} {row['driver_step'] if steps == 1 else _plural(row['driver_step'])}",
        "effect": f"{signed(effect, _decimals(low, high))} {_plural(row['outcome_step'])}" if known else NOTHING,
        "interval": between(low, high) if known else NOTHING,
        "smallest": signed(smallest, _decimals(low, high)).lstrip("+") if known else NOTHING,
        "is_driver": bool(row["is_driver"]),
    }


def _done(found: Executive) -> list[dict[str, Any]]:
    """Interventions, each with what was looked at."""
    grouped: dict[int, dict[str, Any]] = {}
    for row in found.rows["done"]:
        stage = found.stages.get(row["stage"])
        entry = grouped.setdefault(
            row["intervention_id"],
            {
                "number": row["intervention_id"],
                "name": row["name"],
                "stage": stage.name if stage else row["stage"],
                "owner": stage.owner if stage else None,
                "from": row["start_date"],
                "where": f"{row['compared_by']}: {row['treated'].strip('[]').replace(chr(34), '')}",
                "results": [],
            },
        )
        if row["metric"] is not None:
            known = row["effect"] is not None
            low, high = row["interval_low"], row["interval_high"]
            one_of_many = known and row["outcome"] == "no change proven" and not low <= 0 <= high
            entry["results"].append(
                {
                    "metric": row["metric_name"] or row["metric"],
                    "outcome": row["outcome"],
                    "reason": ONE_OF_MANY if one_of_many else row["reason"],
                    "effect": f"{signed(row['effect'], _decimals(low, high))} {_plural(row['step'])}"
                    if known
                    else NOTHING,
                    "interval": between(low, high) if known else NOTHING,
                    "against": f"{row['treated_groups']} groups against {row['untreated_groups']}"
                    if row["grade"] == "experiment"
                    else "before and after only" if known else NOTHING,
                }
            )  # fmt: skip
    return list(grouped.values())


def _case(found: Executive, row: Row) -> dict[str, Any]:
    stage, metric = found.stages.get(row["stage"]), found.metrics.get(row["metric"])
    open_word = "open" if row["acknowledged_at"] is None else "taken on"
    return {
        "number": row["case_id"],
        "department": row["department"],
        "stage": stage.name if stage else row["stage"],
        "metric": metric.name if metric else row["metric"],
        "state": open_word if row["closed_at"] is None else "closed",
        "root_cause": row["root_cause"] or NOTHING,
        "action": row["action"] or NOTHING,
    }


def _tally(sections: Mapping[str, Any], targets: Sequence[Row]) -> list[dict[str, Any]]:
    """Targets by department and status; the bar of each is as long as its share."""
    rows = []
    for department, section in sections.items():
        counts = {status: sum(line["status"] == status for line in section["targets"]) for status in STATUS_ORDER}
        total = sum(counts.values())
        rows.append({"department": department, "name": section["row"].name, "counts": counts, "total": total})
    return sorted(rows, key=lambda row: (-row["counts"]["missed"], row["name"]))


def _headlines(found: Executive) -> list[dict[str, str]]:
    """The month of the company's satisfaction and money in a few figures."""
    lines = []
    for row in found.rows["company"]:
        metric = found.metrics[row["metric"]]
        wanted = (metric.level == "cx" and metric.kind in ("nps", "share")) or metric.level == "financial"
        if wanted and row["value"] is not None and row["unit"] == metric.unit:
            value = format_value(metric, row["unit"], row["value"])
            interval = format_interval(metric, row["unit"], Interval(row["interval_low"], row["interval_high"]))
            if metric.kind == "amount":
                low, high = (money(row["unit"], row[end]) for end in ("interval_low", "interval_high"))
                value, interval = money(row["unit"], row["value"]), f"{low} to {_bare(high)}"
            lines.append(
                {
                    "name": metric.name,
                    "value": value,
                    "interval": interval,
                    "target": format_target(metric, row["unit"], row["target"]),
                    "status": row["status"],
                    "word": WORDS.get(row["status"], ""),
                    "level": metric.level,
                }
            )
    return sorted(lines, key=lambda line: line["level"] != "cx")


def _stake(issues: Sequence[Row]) -> dict[str, Any]:
    """The dearest proven issue by the lower end of what it costs, if any, and how many are proven."""
    proven = [
        issue for issue in issues if issue["status"] == "proven" and issue["low"] is not None and issue["low"] > 0
    ]
    return {"proven": len(proven), "all": len(issues), "first": proven[0] if proven else None}


CLASS_WORDS = {
    "promoter": "Promoters (9 or 10)",
    "passive": "Passives (7 or 8)",
    "detractor": "Detractors (0 to 6)",
    "satisfied": "Satisfied",
    "dissatisfied": "Dissatisfied",
    "no answer": "Did not answer",
}
CLASS_COLOURS = {
    "promoter": "good",
    "satisfied": "good",
    "passive": "middle",
    "detractor": "bad",
    "dissatisfied": "bad",
    "no answer": "quiet",
}


QUANTITY_WORDS = {
    "churn": "a customer who left",
    "revenue": "revenue",
    "repeat_contacts": "a customer who asked again",
    "cost_to_serve": "a cost to serve",
}
"""What is told of classes, in words for what the data don't hold."""


def _recorded(found: Executive) -> set[str]:
    """Quantities of which any class has some: where none has, it may be that nobody writes them down."""
    return {row["quantity"] for row in found.rows["classes"] if row["value"]}


def _comparisons(found: Executive) -> tuple[list[dict[str, Any]], list[str]]:
    """For each survey metric the classes of customers with what became of them, and the curve of who stays.

    And the names of metrics of which fewer than two classes that answered are large enough to show.
    """
    by_metric: dict[str, dict[str, dict[str, Row]]] = {}
    for row in found.rows["classes"]:
        by_metric.setdefault(row["metric"], {}).setdefault(row["customer_class"], {})[row["quantity"]] = row
    comparisons, too_few = [], []
    recorded = _recorded(found)
    order = {entry.id: place for place, entry in enumerate(found.governance.metrics)}
    for metric in sorted(by_metric, key=lambda metric: order.get(metric, len(order))):
        classes = by_metric[metric]
        any_row = next(iter(next(iter(classes.values())).values()))
        if len(classes.keys() - {NO_ANSWER}) < MIN_CLASSES:
            too_few.append(any_row["name"] or metric)
            continue
        curve = [row for row in found.rows["retention"] if row["metric"] == metric and "churn" in recorded]
        lines = []
        for name in CLASS_WORDS:
            if name not in classes:
                continue
            counted = classes[name].get("churn")
            figures = {quantity: row for quantity, row in classes[name].items() if quantity in recorded}
            churn, revenue = figures.get("churn"), figures.get("revenue")
            contacts, cost = figures.get("repeat_contacts"), figures.get("cost_to_serve")
            lines.append(
                {
                    "name": CLASS_WORDS[name],
                    "colour": CLASS_COLOURS[name],
                    "n": f"{counted['n']:,}" if counted else NOTHING,
                    "left": _with_interval(churn, lambda row, at: f"{100 * row[at]:.1f} %"),
                    "revenue": _with_interval(revenue, lambda row, at: money(row["unit"], row[at])),
                    "contacts": _with_interval(contacts, lambda row, at: f"{row[at]:.2f}"),
                    "cost": _with_interval(cost, lambda row, at: money(row["unit"], row[at])),
                }
            )
        tested = [figures["churn"]["p_value"] for figures in classes.values() if "churn" in figures]
        p_value = next((p for p in tested if p is not None), None)
        comparisons.append(
            {
                "name": any_row["name"] or metric,
                "landmark": any_row["landmark"],
                "days": any_row["horizon_days"],
                "lines": lines,
                "chance": None
                if p_value is None
                else ("fewer than 1 of 1,000" if p_value < 0.001 else f"{1000 * p_value:.0f} of 1,000"),
                "differs": p_value is not None and p_value < 0.05,
                "svg": curves(curve) if curve else None,
            }
        )
    return comparisons, too_few


def _with_interval(row: Row | None, write: Callable[[Row, str], str]) -> dict[str, str]:
    if row is None or row["value"] is None:
        return {"value": NOTHING, "interval": ""}
    known = row["interval_low"] is not None and row["interval_high"] is not None
    interval = f"{write(row, 'interval_low')} to {_bare(write(row, 'interval_high'))}" if known else ""
    return {"value": write(row, "value"), "interval": interval}


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620.0, 190.0, 46.0, 120.0, 10.0, 24.0
"""Size and margins of a curve's picture, in its own units."""

LABEL_GAP = 12.0

MOST_DECIMALS = 3
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.25)
MOST_TICKS = 5
"""A curve's axis has at most so many steps, of the first of these lengths that suffices."""

SMALL_SUM = 100
"""Major units below which minor units are told."""


def curves(rows: Sequence[Row]) -> Markup:
    """Retention of each class as steps with a band, as SVG that takes its colours from the page."""
    last = max(row["day"] for row in rows) or 1
    lowest: float = min(row["value"] if row["interval_low"] is None else row["interval_low"] for row in rows)
    step = next((step for step in TICK_STEPS if 1 - lowest <= MOST_TICKS * step), TICK_STEPS[-1])
    # What is at a tick within the precision of numbers takes no further one.
    ticks = max(1, math.ceil((1 - lowest) / step - 1e-9))
    floor = 1 - ticks * step

    def x(day: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * day / last

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share) / (1 - floor)

    parts = []
    for tick in range(ticks + 1):
        share = floor + tick * step
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y(share) + 3.5:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
        )
    parts += [
        f'<text class="tick" x="{x(day):.1f}" y="{HEIGHT - 8}" text-anchor="middle">day {day}</text>'
        for day in sorted({0, round(last / 2), last})
    ]
    names = [name for name in CLASS_WORDS if any(row["customer_class"] == name for row in rows)]
    ends = []
    for name in names:
        own = [row for row in rows if row["customer_class"] == name]
        banded = [row for row in own if row["interval_low"] is not None and row["interval_high"] is not None]
        upper = _steps([(x(row["day"]), y(row["interval_high"])) for row in banded])
        lower = _steps([(x(row["day"]), y(row["interval_low"])) for row in banded])
        colour = CLASS_COLOURS[name]
        if banded:
            points_of = " ".join(f"{a:.1f},{b:.1f}" for a, b in upper + lower[::-1])
            parts.append(f'<polygon class="band {colour}" points="{points_of}"/>')
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in _steps([(x(row["day"]), y(row["value"])) for row in own]))
        parts.append(f'<polyline class="curve {colour}" points="{line}"/>')
        ends.append((y(own[-1]["value"]), name, colour))
    at = -LABEL_GAP
    for height, name, colour in sorted(ends):
        at = max(height + 4, at + LABEL_GAP)
        label = html.escape(CLASS_WORDS[name].split(" (")[0])
        parts.append(f'<text class="label {colour}" x="{WIDTH - RIGHT + 8}" y="{at:.1f}">{label}</text>')
    # Drawn from numbers and our own words alone.
    return Markup(  # noqa: S704
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="Share of customers who stay, by day">'
        + "".join(parts)
        + "</svg>"
    )


def _bare(text_of: str) -> str:
    """The upper end of an interval without the currency that the lower end has told."""
    return text_of.partition(" ")[2] if text_of[:3].isalpha() else text_of


def _steps(points_of: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve that stays level between its points."""
    steps: list[tuple[float, float]] = []
    for at, height in points_of:
        if steps:
            steps.append((at, steps[-1][1]))
        steps.append((at, height))
    return steps


def money(currency: str, value: float | None) -> str:
    """Minor units for people, small sums to the minor unit: BRL 1,234, BRL 1.20; a dash for None."""
    if value is None:
        return NOTHING
    digits = minor_digits(currency)
    major = value / 10**digits
    return f"{currency} {major:,.{digits if abs(major) < SMALL_SUM else 0}f}".replace("-", "−")


def _in_hundred(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _plural(step: str) -> str:
    return step if step == "%" else f"{step}s"


def between(low: float, high: float) -> str:
    """An interval, with no more decimals than its width gives a meaning."""
    return " to ".join(signed(end, _decimals(low, high)) for end in (low, high))


def _decimals(low: float, high: float) -> int:
    """Decimals that leave the width of an interval two digits: more would pretend to know more."""
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(high - low)))) if high > low else 1


def signed(value: float, decimals: int) -> str:
    """A number with its sign."""
    return f"{round(value, decimals) + 0.0:+,.{decimals}f}".replace("-", "−")
