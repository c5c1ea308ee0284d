"""What the pages show of the measures: read at intervals in a thread of its own, so that no page waits for it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine

from vocbeam.pipelines.report import EVERYWHERE, STATUSES, Line, Period, latest_month, lines_at
from vocbeam.schemas.errors import VocbeamError
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.issues import IssueRow, issues

log = logging.getLogger(__name__)

TREND_WEEKS = 13
"""A quarter."""

Trends = Mapping[tuple[str, str, str], Sequence[read.TrendRow]]
"""(stage or department, metric, unit) → weeks in order of time."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one snapshot of the warehouse says, for all pages. `period` is None where nothing was measured yet."""

    read_at: int
    governance: Governance
    period: Period | None
    stages: Sequence[read.StageRow]
    departments: Sequence[read.DepartmentRow]
    metrics: Sequence[read.MetricRow]
    company_lines: Sequence[Line]
    stage_lines: Sequence[Line]
    department_lines: Sequence[Line]
    lines: Sequence[Line]
    stage_trends: Trends
    department_trends: Trends
    issues: Sequence[IssueRow]

    def stage(self, stage: str) -> read.StageRow | None:
        """A stage by its id."""
        return next((row for row in self.stages if row.stage == stage), None)

    def department(self, department: str) -> read.DepartmentRow | None:
        """A department by its id."""
        return next((row for row in self.departments if row.department == department), None)


def read_figures(connection: Connection, now: int) -> Figures:
    """Reads and computes all figures of the latest complete month, and the 13 weeks up to the newest data.

    Raises ConfigError where no governance file is in force.
    """
    governance = parse_governance(read.taxonomy(connection).governance_text)
    last = read.last_date(connection)
    period = None if last is None else latest_month(read.month_sizes(connection), last)
    cells, targets, hidden, metrics = [], {}, set(), read.metrics(connection)
    by_stage: Trends = {}
    by_department: Trends = {}
    found: list[IssueRow] = []
    if period is not None and last is not None:
        cells = read.cells(connection, period.first, period.last)
        targets = read.targets_on(connection, period.first)
        hidden = read.hidden_places(connection, period.first, period.last)
        monday = last - timedelta(days=last.weekday())
        weeks = (monday - timedelta(weeks=TREND_WEEKS - 1), monday)
        by_stage = _grouped(read.trends(connection, "week", "stage", *weeks), lambda row: row.stage)
        by_department = _grouped(read.trends(connection, "week", "department", *weeks), lambda row: row.department)
        found = issues(connection, period.first, period.last, hidden)

    def at(place: Callable[[read.CellRow], tuple[str, str]]) -> list[Line]:
        return lines_at(metrics, targets, cells, hidden, place)

    return Figures(
        read_at=now,
        governance=governance,
        period=period,
        stages=read.stages(connection),
        departments=read.departments(connection),
        metrics=metrics,
        company_lines=at(lambda _cell: (EVERYWHERE, EVERYWHERE)),
        stage_lines=at(lambda cell: (cell.stage, EVERYWHERE)),
        department_lines=at(lambda cell: (EVERYWHERE, cell.department)),
        lines=at(lambda cell: (cell.stage, cell.department)),
        stage_trends=by_stage,
        department_trends=by_department,
        issues=found,
    )


def _grouped(rows: Iterable[read.TrendRow], place: Callable[[read.TrendRow], str]) -> Trends:
    grouped: dict[tuple[str, str, str], list[read.TrendRow]] = defaultdict(list)
    for row in rows:
        grouped[place(row), row.metric, row.unit].append(row)
    return grouped


def worst(lines: Iterable[Line]) -> Line | None:
    """The line that stands worst against its target; None where none has one."""
    return min((line for line in lines if line.target is not None), key=standing, default=None)


def standing(line: Line) -> tuple[int, float]:
    """Orders lines, the worst first: by status, then by how far the value lies on the wrong side of its target,
    measured in halves of its interval.
    """
    distance = 0.0
    if line.estimate is not None and line.estimate.value is not None and line.target is not None:
        low, high = line.estimate.interval
        half = (high - low) / 2 if low is not None and high is not None else 0.0
        good = (
            line.estimate.value - line.target
            if line.metric.direction == "higher"
            else line.target - line.estimate.value
        )
        distance = good / half if half else good
    return STATUSES.index(line.status), distance


class FigureKeeper:
    """Keeps the figures of the last look at the warehouse; looks again every so many seconds, or when asked."""

    def __init__(self, engine: Engine, now: Callable[[], int], every_seconds: float) -> None:
        """`now` gives UTC microseconds."""
        self._engine, self._now, self._every_seconds = engine, now, every_seconds
        self._found: Figures | None = None
        self.problem: str | None = None
        self._looks = 0
        self._looked = threading.Condition()
        self._asked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._go_on, name="vocbeam-figures", daemon=True)

    def start(self) -> None:
        """Looks at once, and then again and again until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end after the look in hand."""
        self._stopped = True
        self._asked.set()

    def look(self) -> None:
        """One look. What goes wrong is kept as `problem` and told once in the log; then there are no figures."""
        found: Figures | None = None
        problem: str | None = None
        try:
            with read.snapshot(self._engine) as connection:
                require_current(self._engine)
                found = read_figures(connection, self._now())
        except VocbeamError as error:
            problem = str(error)
        except Exception as error:  # the pages must outlive what nobody thought of, and say that there is something
            problem = f"the figures can't be read ({type(error).__name__}); the log says more"
            log.exception("reading the figures failed unexpectedly")
        if problem != self.problem:
            log.warning("%s", problem or "the warehouse answers again")
        with self._looked:
            self._found, self.problem = found, problem
            self._looks += 1
            self._looked.notify_all()

    def figures(self, wait_seconds: float) -> Figures | None:
        """The figures of the last look; where there are none, asks for another and waits at most so long for it."""
        with self._looked:
            if self._found is None:
                looks = self._looks
                self._asked.set()
                self._looked.wait_for(lambda: self._looks > looks, timeout=wait_seconds)
            return self._found

    def _go_on(self) -> None:
        while not self._stopped:
            self._asked.clear()
            self.look()
            self._asked.wait(self._every_seconds)
