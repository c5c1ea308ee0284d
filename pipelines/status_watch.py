"""`vocbeam status --watch`: the state of everything for the person on call, drawn again every few seconds.

Looks as the exporter does, from threads: a page never waits for a database or a broker, and says which is away.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.exporter import ANSWER_SECONDS, Exporter, Settings, Watcher
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.pipelines.wording import NOTHING, format_micros
from vocbeam.schemas.errors import ConfigError, VocbeamError
from vocbeam.schemas.timebase import SECOND_US, from_micros
from vocbeam.sinks import read
from vocbeam.sinks.cases import cases
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.exposition import KafkaLook, Known, Looked, pipeline_problem
from vocbeam.sinks.flags import flags
from vocbeam.sinks.monitor import WarehouseLook, unusable
from vocbeam.transforms.progress import PROGRESS

RATE_US = 60 * SECOND_US
"""Records a second are those of the last minute."""

MANY = 1_000
"""Open flags that are counted; beyond that the page says so."""


@dataclass(frozen=True)
class Work:
    """What waits for people: open flags, those nobody acknowledged in time, open cases, those nobody acknowledged."""

    flags: int
    overdue: int
    cases: int
    unacknowledged: int


@dataclass(frozen=True)
class View:
    """What one page shows; `rates` maps a topic to records a second. `now` is UTC microseconds."""

    now: int
    known: Known
    work: Looked[Work] | None
    rates: Mapping[str, float]


class Rates:
    """Records a second of each topic, from the ledgers of the looks of the last minute."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, dict[str, int]]] = deque()

    def add(self, at: int, ledger: Sequence[read.LedgerRow]) -> dict[str, float]:
        """Takes in the ledger of a look (UTC microseconds); the rates up to it, none after the first look."""
        if not self._looks or self._looks[-1][0] < at:
            totals: dict[str, int] = {}
            for row in ledger:
                totals[row.topic] = totals.get(row.topic, 0) + row.next_offset - row.first_offset
            self._looks.append((at, totals))
        while len(self._looks) > 2 and self._looks[1][0] <= at - RATE_US:
            self._looks.popleft()
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        if last == first:
            return {}
        return {topic: (n - before.get(topic, 0)) * SECOND_US / (last - first) for topic, n in after.items()}


class Page:
    """A view as the screen can hold it: what doesn't fit is left out below, and counted."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        group = Group(*sections(self._view))
        lines = console.render_lines(group, options.update(height=None), pad=False)
        room = options.height or options.max_height
        if len(lines) > room:
            left = len(lines) - room + 1
            lines = [*lines[: room - 1], [Segment(f"… {left} lines more; make the window taller"[: options.max_width])]]
        for number, line in enumerate(lines):
            yield from line
            if number < len(lines) - 1:
                yield Segment.line()


def sections(view: View) -> Iterator[Text | Table]:
    """The parts of a page, what matters most first."""
    found = view.known.warehouse.found if view.known.warehouse else None
    yield _heading(view, found)
    yield _components(view, found)
    if found is None:
        return
    yield _topics(view, found)
    if view.work is not None:
        yield _work(view.work)
    missed = _targets(found)
    if missed.row_count:
        yield missed
    if found.letters:
        yield _letters(found)
    if found.newest:
        yield _newest(view, found)


def _heading(view: View, found: WarehouseLook | None) -> Text:
    line = Text(f"vocbeam at {from_micros(view.now):%Y-%m-%d %H:%M:%S} UTC", style="bold")
    if found is not None:
        line.append(
            f"   taxonomy {found.taxonomy_version}, text model {found.model_version or 'none'}", style="not bold"
        )
    return line


def _components(view: View, found: WarehouseLook | None) -> Text:
    line = Text()
    for name, looked in (("warehouse", view.known.warehouse), ("Kafka", view.known.kafka)):
        if looked is None:
            line.append(f"{name} not looked at yet   ", style="dim")
        elif looked.found is None:
            since = "" if looked.good_at is None else f", last seen {_ago(view, looked.good_at)}"
            line.append(f"{name} DOWN ({looked.problem}{since})   ", style="bold red")
        else:
            line.append(f"{name} up   ", style="green")
    if found is not None:
        problem = pipeline_problem(found.runs, found.workers, view.now)
        told = f"pipeline DOWN ({problem})" if problem else "pipeline up"
        line.append(told, style="bold red" if problem else "green")
        if found.runs and found.runs[0].ended_at is not None:
            line.append(f", {found.runs[0].outcome} {_ago(view, found.runs[0].ended_at)}")
    return line


def _topics(view: View, found: WarehouseLook) -> Table:
    table = _table(
        "topic", waiting="right", oldest="right", **{"a second": "right", "written": "right", "lost": "right"}
    )
    waiting = view.known.kafka.found if view.known.kafka else None
    lost: dict[str, int] = {}
    written: dict[str, int] = {}
    for row in found.ledger:
        lost[row.topic] = lost.get(row.topic, 0) + row.lost
        written[row.topic] = max(row.updated_at, written.get(row.topic, 0))
    for topic in sorted(lost.keys() | {topic for topic, _ in waiting or ()}):
        offsets, oldest = _lag(view, waiting, topic)
        rate = view.rates.get(topic)
        table.add_row(
            escape(topic),
            offsets,
            oldest,
            NOTHING if rate is None else f"{rate:,.1f}",
            _ago(view, written[topic]) if topic in written else "never",
            f"[bold red]{lost[topic]:,}[/]" if lost.get(topic) else "0",
        )
    return table


def _lag(view: View, waiting: KafkaLook | None, topic: str) -> tuple[str, str]:
    partitions = [found for (name, _), found in (waiting or {}).items() if name == topic]
    if not partitions:
        return NOTHING, NOTHING
    if any(found.offsets < 0 for found in partitions):
        return "[bold red]cut[/]", NOTHING
    oldest = [found.oldest_at for found in partitions if found.oldest_at is not None]
    age = format_micros(max(0, view.now - min(oldest))) if oldest else NOTHING
    return f"{sum(found.offsets for found in partitions):,}", age


def _work(work: Looked[Work]) -> Text:
    if work.found is None:
        return Text(f"flags and cases not known ({work.problem})", style="yellow")
    found = work.found
    line = Text(f"{found.flags:,}{'+' if found.flags >= MANY else ''} open flags")
    line.append(f", {found.overdue:,} overdue", style="bold red" if found.overdue else "")
    line.append(f"; {found.cases:,} open cases")
    line.append(f", {found.unacknowledged:,} not acknowledged", style="bold red" if found.unacknowledged else "")
    return line


def _targets(found: WarehouseLook) -> Table:
    figures = {(row.place, row.length): row for row in found.targets}
    table = _table("target missed at", department="left", value="right", target="right", windows="right", chart="left")
    for judged in sorted(found.judgements, key=lambda judged: (-judged.missed, judged.place)):
        signals = [rule for rule, signalled in judged.signals.items() if signalled]
        row = figures.get((judged.place, judged.length))
        if row is None or row.value is None or not (judged.missed or signals):
            continue
        style = "bold red" if judged.missed > 1 else ""
        table.add_row(
            f"{judged.place.stage} {judged.place.metric}",
            judged.place.department,
            f"{row.value:.4g}",
            f"{row.target:.4g}",
            f"{judged.missed} {judged.length}{'s' if judged.missed != 1 else ''}",
            ", ".join(signals) or NOTHING,
            style=style,
        )
    return table


def _letters(found: WarehouseLook) -> Table:
    table = _table("dead letters of", step="left", cause="left", records="right")
    for row in sorted(found.letters, key=lambda row: -row.records):
        table.add_row(escape(row.topic), row.step, row.error_class, f"{row.records:,}")
    return table


def _newest(view: View, found: WarehouseLook) -> Table:
    table = _table("newest event of", source="left", age="right")
    for (event_type, source), at in sorted(found.newest.items()):
        ahead = at > view.now
        age = format_micros(abs(view.now - at)) + (" ahead" if ahead else "")
        table.add_row(event_type, escape(source), age)
    return table


def _table(first: str, **columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for heading, side in columns.items():
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True, overflow="ellipsis")
    return table


def _ago(view: View, moment: int) -> str:
    return f"{format_micros(max(0, view.now - moment))} ago"


def read_work(url: str) -> Work:
    """Open flags and cases. Raises Unusable where the warehouse can't be read."""
    engine = open_engine(url, answer_s=ANSWER_SECONDS)
    now = now_us()
    try:
        with read.snapshot(engine) as connection:
            raised = flags(connection, state="open", limit=MANY)
            waiting = cases(connection, state="open")
            return Work(
                flags=len(raised),
                overdue=sum(flag.overdue(now) for flag in raised),
                cases=len(waiting) + len(cases(connection, state="acknowledged")),
                unacknowledged=len(waiting),
            )
    except VocbeamError as error:
        raise unusable(error) from error
    finally:
        engine.dispose()


def watch(settings: Settings, console: Console) -> None:
    """Draws a page every `settings.refresh_seconds` until SIGTERM or Ctrl-C, and leaves the terminal as it was.

    Raises ConfigError where there is no terminal to draw on.
    """
    if not console.is_terminal:
        raise ConfigError("--watch draws on a terminal, and this is none; leave it out for one page")
    if sys.stderr.isatty():
        # What the page says in a word needs no line across it.
        logging.disable(logging.WARNING)
    looks = Exporter(settings)
    work = Watcher("work", lambda: read_work(settings.warehouse_url), settings.refresh_seconds)
    watchers = [*looks.watchers, work]
    rates = Rates()
    shown: dict[str, float] = {}
    for watcher in watchers:
        watcher.start()
    try:
        with (
            stop_on_signals(PROGRESS),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while not PROGRESS.stop_requested():
                known = Known(looks.warehouse.last(), looks.kafka.last())
                if known.warehouse is not None and known.warehouse.found is not None:
                    shown = rates.add(known.warehouse.at, known.warehouse.found.ledger)
                live.update(Page(View(now_us(), known, work.last(), shown)), refresh=True)
                first = known.warehouse is None or known.kafka is None
                PROGRESS.sleep(min(0.5, settings.refresh_seconds) if first else settings.refresh_seconds)
    finally:
        for watcher in watchers:
            watcher.stop()
