"""The report as one self-contained HTML page: jinja2 for words, matplotlib for plots, nothing from elsewhere."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vocbeam.pipelines.report import (
    EVERYWHERE,
    STATUSES,
    Line,
    Report,
    count_of,
    interval_of,
    overall,
    size_of,
    value_of,
)
from vocbeam.pipelines.wording import format_target, format_value, minor_digits, step_of
from vocbeam.schemas.records import UNASSIGNED
from vocbeam.schemas.timebase import SECOND_US, from_micros
from vocbeam.sinks.read import StageRow, TrendRow
from vocbeam.transforms.statistics import Status, wilson_interval
from vocbeam.transforms.tickets import DURATION_UNITS

TEMPLATES = Path(__file__).parent / "templates"

PLOTS_PER_STAGE = 4
"""More small plots than a row of the page holds hide what matters."""

_INK, _MUTED, _LINE, _TARGET = "#010101", "#020202", "#030303", "#040404"
"""Colours that stand for the page's own, so that plots follow light and dark."""

_PAGE_COLOURS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--accent)", _TARGET: "var(--target)"}

SYMBOLS: dict[Status, str] = {
    "met": "✓",
    "missed": "✗",
    "not proven": "~",
    "not enough data": "…",
    "no target": "○",
    "hidden": "■",
}


@dataclass(frozen=True, slots=True)
class StageCard:
    """A stage on the journey map: the status that speaks for its lines, and how many have each."""

    stage: StageRow
    owner: str
    verdict: Status
    counts: Sequence[tuple[Status, int]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A small plot with what it shows in words."""

    title: str
    summary: str
    svg: Markup


def render_page(report: Report) -> str:
    """The whole page as text; no script, no font, no image and no style from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["symbol"] = lambda verdict: SYMBOLS[verdict]
    environment.filters["slug"] = lambda verdict: verdict.replace(" ", "-")
    names = {row.department: row.name for row in report.departments}
    stage_names = {row.stage: row.name for row in report.stages}
    by_department = {
        row.department: [line for line in report.lines if line.department == row.department]
        for row in report.departments
    }
    order = {row.stage: number for number, row in enumerate(report.stages)}
    for lines in by_department.values():
        lines.sort(key=lambda line: order.get(line.stage, len(order)))
    return environment.get_template("report.html.j2").render(
        report=report,
        created_at=f"{from_micros(report.created_at):%Y-%m-%d %H:%M} UTC",
        names=names,
        stage_names=stage_names,
        metric_names={row.metric: row.name for row in report.metrics},
        counts=_count(report.lines),
        cards=_cards(report, names),
        by_department=by_department,
        departments=sorted(report.departments, key=lambda row: (row.department == UNASSIGNED, row.name)),
        plots=_plots(report),
        wilson=wilson_interval,
        resolution=_resolution(report),
        books=_books(report),
        value=value_of,
        interval=interval_of,
        size=size_of,
        count=count_of,
        target=lambda line: format_target(line.metric, line.unit, line.target),
        everywhere=EVERYWHERE,
        unassigned=UNASSIGNED,
    )


def _count(lines: Sequence[Line]) -> list[tuple[Status, int]]:
    return [(verdict, sum(line.status == verdict for line in lines)) for verdict in STATUSES]


def _cards(report: Report, names: dict[str, str]) -> list[StageCard]:
    cards = []
    for stage in report.stages:
        lines = [line for line in report.lines if line.stage == stage.stage]
        if stage.stage == UNASSIGNED:
            continue
        owner = names.get(stage.owner or "", stage.owner or "nobody")
        counts = [(verdict, n) for verdict, n in _count(lines) if n and verdict != "no target"]
        cards.append(StageCard(stage, owner, overall(lines), counts))
    return cards


def _resolution(report: Report) -> dict[str, dict[int, Any]]:
    """Department → percentile → row of the latest cohort in the period."""
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for row in report.resolution_times:
        found[row.department][row.percentile] = row
    return dict(found)


def _books(report: Report) -> list[dict[str, Any]]:
    """The ledger summed to topics."""
    names = ("loaded", "duplicates", "dead_lettered", "dropped", "lost", "without_record")
    topics: dict[str, dict[str, Any]] = {}
    for row in report.ledger:
        book = topics.setdefault(row.topic, {"topic": row.topic, "offsets": 0} | dict.fromkeys(names, 0))
        book["offsets"] += row.next_offset - row.first_offset
        for name in names:
            book[name] += getattr(row, name)
    return [book | {"balances": book["offsets"] == sum(book[name] for name in names)} for book in topics.values()]


def _plots(report: Report) -> dict[str, list[Plot]]:
    """Stage → small plots of its metrics over time; those with a target and most data first."""
    series: dict[tuple[str, str, str], list[TrendRow]] = defaultdict(list)
    for row in report.trends:
        series[row.stage, row.metric, row.unit].append(row)
    targets = {(line.stage, line.metric.metric, line.unit): line for line in report.lines if line.target is not None}
    plots: dict[str, list[Plot]] = {}
    for stage in report.stages:
        own = [line for line in report.stage_lines if line.stage == stage.stage]
        own = [line for line in own if len(series[stage.stage, line.metric.metric, line.unit]) > 1]
        own.sort(
            key=lambda line: (
                (line.stage, line.metric.metric, line.unit) not in targets,
                line.metric.level != "cx",
                -(line.estimate.n if line.estimate else 0),
            )
        )
        for line in own[:PLOTS_PER_STAGE]:
            key = (line.stage, line.metric.metric, line.unit)
            held = targets.get(key)
            number = sum(len(found) for found in plots.values())
            plots.setdefault(stage.stage, []).append(
                _plot(line, series[key], held.target if held else None, report.trend_period, number)
            )
    return plots


def _plot(line: Line, rows: Sequence[TrendRow], target: float | None, period: str, number: int) -> Plot:
    """Value over time with its interval as a band and the target as a dashed line."""
    days: list[date] = [row.period_start for row in rows]
    values = [row.value for row in rows]
    scale, label = value_axis(line, rows)
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 8.0, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(3.3, 1.75), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        banded = [row for row in rows if row.interval_low is not None and row.interval_high is not None]
        axes.fill_between(
            _numbers([row.period_start for row in banded]),
            [(row.interval_low or 0.0) / scale for row in banded],
            [(row.interval_high or 0.0) / scale for row in banded],
            color=_LINE,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(
            _numbers(days), [value / scale for value in values], color=_LINE, linewidth=1.4, marker="o", markersize=2.4
        )
        if target is not None:
            axes.axhline(target / scale, color=_TARGET, linewidth=1.0, linestyle=(0, (4, 3)))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_MUTED)
        axes.tick_params(colors=_MUTED, length=2, width=0.6)
        axes.margins(x=0.03)
        locator = AutoDateLocator(minticks=3, maxticks=5)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: label(y)))
        svg = _svg(figure, f"p{number}")
    latest = format_value(line.metric, line.unit, values[-1])
    summary = (
        f"{line.metric.name} by {period}, {days[0].isoformat()} to {days[-1].isoformat()}: "
        f"from {format_value(line.metric, line.unit, values[0])} to {latest}"
    )
    if target is not None:
        summary += f"; target {format_target(line.metric, line.unit, target)}"
    return Plot(line.metric.name, summary, svg)


def _numbers(days: Sequence[date]) -> Any:
    return date2num(list(days))


def value_axis(line: Line, rows: Sequence[TrendRow]) -> tuple[float, Callable[[float], str]]:
    """What to divide the values by, and how a tick of the value axis is written."""
    if line.metric.kind == "amount":
        scale = 10.0 ** minor_digits(line.unit)
        return scale, lambda y: f"{y:,.0f}"
    if line.metric.kind == "duration" and line.unit in DURATION_UNITS:
        seconds = DURATION_UNITS[line.unit] / SECOND_US
        name, length = step_of(seconds * max(abs(row.value) for row in rows))
        return length / seconds, lambda y: f"{y:g} {name}"
    return 1.0, lambda y: format_value(line.metric, line.unit, y).replace(".0 ", " ").removesuffix(".0")


def _svg(figure: Figure, prefix: str) -> Markup:
    """SVG to stand inside a page: its own ids made unique, sizes left to the page, colours taken from it."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", '<svg aria-hidden="true"', 1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    for mark, colour in _PAGE_COLOURS.items():
        text = text.replace(mark, colour)
    # Drawn by matplotlib from numbers and metric formats alone; names stand outside the plots.
    return Markup(text)  # noqa: S704
