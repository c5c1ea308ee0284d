"""One look at the warehouse for the exporter: a snapshot that costs what is new since the last one, not all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import psycopg
from sqlalchemy import Connection, Engine, func, literal_column, select

from vocbeam.schemas.errors import ConfigError, VocbeamError
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.timebase import DAY_US, HOUR_US, MINUTE_US, SECOND_US, LocalCalendar
from vocbeam.sinks import read, tables
from vocbeam.sinks.catalog import schema_state
from vocbeam.sinks.engine import driver_error, is_forbidden, is_transient
from vocbeam.sinks.reconcile import Check, reconcile
from vocbeam.sinks.target_windows import (
    Charting,
    Closed,
    Judgement,
    Length,
    Place,
    TargetRow,
    Verdicts,
    closed_windows,
    judgements,
    target_rows,
    usual_lengths,
)
from vocbeam.sinks.worker_metric import WorkerRow, read_workers

RECENT_US = DAY_US
"""Tag coverage is that of events loaded within this time."""

START_OVER_US = HOUR_US
"""How often all events are read again and windows chosen anew: what was healed, re-tagged or deleted shows by then."""

OFFSETS_A_STATEMENT = 500_000
"""Offsets that one statement reads the events of: a second or two, far below the limits on statements and answers."""

OFFSETS_A_LOOK = 2_000_000
"""Offsets read anew in one look, so that none of them takes long; until all are, the former figures are shown."""

Problem = Literal["unreachable", "refused", "missing", "older_schema", "newer_schema", "no_governance", "unreadable"]
PROBLEMS: tuple[Problem, ...] = (
    "unreachable", "refused", "missing", "older_schema", "newer_schema", "no_governance", "unreadable",
)  # fmt: skip
"""Why the warehouse can't be read: its server doesn't answer or has no room; it refuses this account; there is no
warehouse; its schema is another release's; no governance file is in force; anything else."""


class Unusable(Exception):
    """The warehouse can't be read now: `problem` says why in a word, the message in a sentence."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem: Problem = problem


@dataclass(frozen=True, slots=True)
class Names:
    """What the governance file in force knows, and the sources named in its rules and demands of freshness."""

    stages: frozenset[str]
    departments: frozenset[str]
    metrics: frozenset[str]
    sources: frozenset[str]


@dataclass(frozen=True, slots=True)
class WarehouseLook:
    """What one snapshot of the warehouse says. Times are UTC microseconds.

    `newest` maps (event type, source) to the latest event time of events that are there; `recent` counts events loaded
    within RECENT_US by (event type, tag method).
    """

    names: Names
    taxonomy_version: int
    model_version: str | None
    ledger: Sequence[read.LedgerRow]
    letters: Sequence[read.DeadLetterRow]
    runs: Sequence[read.RunRow]
    workers: Sequence[WorkerRow]
    newest: dict[tuple[str, str], int]
    recent: Counter[tuple[str, str]]
    targets: Sequence[TargetRow]
    judgements: Sequence[Judgement]
    flags: Sequence[read.FlagCounts]
    flag_limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BooksLook:
    """What the full reconciliation said."""

    checks: Sequence[Check]

    @property
    def failed(self) -> int:
        """Comparisons that don't balance."""
        return sum(not check.balances for check in self.checks)

    @property
    def difference(self) -> int:
        """Sum of what the two sides of all comparisons differ by."""
        return sum(abs(check.expected - check.found) for check in self.checks)


@dataclass
class _Events:
    """What is known of the events, up to an offset of each topic-partition."""

    next_offset: dict[int, int] = field(default_factory=dict)
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    loaded: dict[int, Counter[tuple[str, str]]] = field(default_factory=dict)
    """Minute of loading → events by (event type, tag method)."""

    def beyond(self, ledger: Sequence[read.LedgerRow]) -> bool:
        """Whether more is known than the ledger says: it was set back."""
        return any(row.next_offset < self.next_offset.get(row.ledger_id, 0) for row in ledger)

    def advance(
        self, connection: Connection, ledger: Sequence[read.LedgerRow], now: int, offsets: int | None = None
    ) -> bool:
        """Takes in events beyond the known offsets, of at most so many offsets; whether all are known now."""
        left = offsets
        for row in ledger:
            start = self.next_offset.get(row.ledger_id, row.first_offset)
            while start < row.next_offset:
                if left is not None and left <= 0:
                    return False
                end = min(row.next_offset, start + OFFSETS_A_STATEMENT)
                self._add(connection, row.ledger_id, start, end)
                left = None if left is None else left - (end - start)
                self.next_offset[row.ledger_id] = start = end
        for minute in [minute for minute in self.loaded if (minute + 1) * MINUTE_US <= now - RECENT_US]:
            del self.loaded[minute]
        return True

    def _add(self, connection: Connection, ledger_id: int, start: int, end: int) -> None:
        c = tables.event.c
        # A literal: PostgreSQL would take two parameters for two expressions, and group by another than it selects.
        minute = c.loaded_at.op("/")(literal_column(str(MINUTE_US))).label("minute")
        groups = (c.event_type, c.source, c.tag_method, minute)
        query = select(*groups, func.count(), func.max(c.event_time)).where(
            c.ledger_id == ledger_id, c.kafka_offset >= start, c.kafka_offset < end
        )
        for event_type, source, method, at, n, newest in connection.execute(query.group_by(*groups)):
            place = (event_type, source)
            self.newest[place] = max(newest, self.newest.get(place, newest))
            self.loaded.setdefault(at, Counter())[event_type, method] += n

    def recent(self) -> Counter[tuple[str, str]]:
        total: Counter[tuple[str, str]] = Counter()
        for counts in self.loaded.values():
            total.update(counts)
        return total


class WarehouseMonitor:
    """Looks at a warehouse again and again; not thread-safe."""

    def __init__(self, engine: Engine, now: Callable[[], int], charting: Charting) -> None:
        """`now` gives UTC microseconds."""
        self._engine = engine
        self._now = now
        self._charting = charting
        self._events: _Events | None = None
        self._anew: _Events | None = _Events()
        self._lengths: dict[Place, Length] = {}
        self._renewed_at = now()
        self._judged: tuple[int, Mapping[Place, Length], Closed] | None = None
        self._judgements: Sequence[Judgement] = ()
        self._verdicts: Verdicts = {}
        # Reading the file takes longer than all queries of a look.
        self._governance = lru_cache(maxsize=1)(parse_governance)

    def look(self) -> WarehouseLook:
        """One snapshot. Raises Unusable where the warehouse can't be read; the next look begins with a new connection.

        On PostgreSQL the auditor's rights suffice.
        """
        try:
            with read.snapshot(self._engine) as connection:
                return self._look(connection)
        except VocbeamError as error:
            raise unusable(error) from error
        finally:
            # Seen at once: another file under the same name, another server behind the same address, new passwords.
            self._engine.dispose()

    def _look(self, connection: Connection) -> WarehouseLook:
        state = schema_state(connection)
        if state != "current":
            problem: Problem = "older_schema" if state == "older" else "newer_schema"
            remedy = "have its owner run: vocbeam apply" if state == "older" else "start the exporter of that release"
            raise Unusable(problem, f"the warehouse's schema is {state} than that of this release; {remedy}")
        now = self._now()
        taxonomy, ledger = read.taxonomy(connection), read.ledger(connection)
        calendar = LocalCalendar(read.timezone(connection))
        renewed = now - self._renewed_at >= START_OVER_US
        if renewed:
            self._anew = self._anew or _Events()
            self._renewed_at = now
        if renewed or not self._lengths:
            # A warehouse that was empty is judged as soon as it holds something.
            self._lengths = usual_lengths(connection, calendar, now)
        self._read_events(connection, ledger, now)
        governance = self._governance(taxonomy.governance_text)
        delays = {metric.id: metric.delay * SECOND_US for metric in governance.metrics}
        closed = closed_windows(calendar, self._lengths, delays, now)
        self._judge(connection, calendar, taxonomy.taxonomy_version, self._lengths, closed)
        return WarehouseLook(
            names=_names(connection, governance),
            taxonomy_version=taxonomy.taxonomy_version,
            model_version=taxonomy.model_version,
            ledger=ledger,
            letters=read.dead_letters(connection),
            runs=read.last_runs(connection, 1),
            workers=read_workers(connection),
            newest=dict(self._events.newest) if self._events else {},
            recent=self._events.recent() if self._events else Counter(),
            targets=target_rows(connection, self._lengths, closed),
            judgements=self._judgements,
            flags=read.flag_counts(connection, now),
            flag_limits=read.flag_limits(connection),
        )

    def _judge(
        self,
        connection: Connection,
        calendar: LocalCalendar,
        taxonomy_version: int,
        lengths: Mapping[Place, Length],
        closed: Closed,
    ) -> None:
        """Judges anew only where a window has closed, windows were chosen anew or the governance file has changed."""
        state = (taxonomy_version, lengths, closed)
        if self._judged is not None and self._judged[0] != taxonomy_version:
            self._verdicts.clear()
        if self._judged != state:
            self._judgements = judgements(connection, calendar, lengths, closed, self._charting, self._verdicts)
            self._judged = state

    def _read_events(self, connection: Connection, ledger: Sequence[read.LedgerRow], now: int) -> None:
        """Takes in new events; beside that, and piece by piece, reads all of them anew where that is due."""
        if any(events is not None and events.beyond(ledger) for events in (self._events, self._anew)):
            self._events, self._anew = None, _Events()
        if self._events is not None:
            self._events.advance(connection, ledger, now)
        if self._anew is not None and self._anew.advance(connection, ledger, now, OFFSETS_A_LOOK):
            self._events, self._anew = self._anew, None


def read_positions(engine: Engine) -> dict[tuple[str, int], int]:
    """(topic, partition) → offset at which reading goes on. Raises Unusable where the warehouse can't be read."""
    try:
        with read.snapshot(engine) as connection:
            return {(row.topic, row.partition): row.next_offset for row in read.ledger(connection)}
    except VocbeamError as error:
        raise unusable(error) from error
    finally:
        engine.dispose()


def look_at_books(engine: Engine) -> BooksLook:
    """The full reconciliation. Raises Unusable where the warehouse can't be read."""
    try:
        return BooksLook(reconcile(engine))
    except VocbeamError as error:
        raise unusable(error) from error
    finally:
        engine.dispose()


def unusable(error: VocbeamError) -> Unusable:
    """Which of the problems an error of ours stands for; its message is kept."""
    cause = driver_error(error.__cause__) if error.__cause__ is not None else None
    problem: Problem = "unreadable"
    if isinstance(error, ConfigError):
        problem = "no_governance"
    elif cause is None:
        problem = "missing"
    elif is_forbidden(cause) or _is_refused_login(cause):
        problem = "refused"
    elif is_transient(cause):
        problem = "unreachable"
    return Unusable(problem, str(error))


def _is_refused_login(cause: BaseException) -> bool:
    # libpq tells a failed login in words alone, those of the server's language; the states are psycopg's own.
    told = str(cause)
    return isinstance(cause, psycopg.OperationalError) and any(
        words in told for words in ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf")
    )


def _names(connection: Connection, governance: Governance) -> Names:
    return Names(
        stages=frozenset(row.stage for row in read.stages(connection)),
        departments=frozenset(row.department for row in read.departments(connection)),
        metrics=frozenset(row.metric for row in read.metrics(connection)),
        sources=frozenset(
            [source for rule in governance.rules for source in rule.when.source or ()]
            + [entry.source for entry in governance.freshness if entry.source is not None]
        ),
    )
