"""What the processes that write count of themselves, and how the exporter gets to know it on every runner.

Counting is cheap and in memory (`COUNTS`, one registry a process). A thread writes the sums every few seconds into the
process's own row of `worker_metric`, which is its heartbeat too. Rows of processes that are gone are added to one row a
command, so that the sums over all rows never go down and the table stays small.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from vocbeam.schemas.timebase import HOUR_US
from vocbeam.sinks import tables
from vocbeam.sinks.engine import driver_error, is_transient, shared_engine
from vocbeam.sinks.tables import worker_metric

log = logging.getLogger(__name__)

Command = Literal["run", "backfill"]
COMMANDS: tuple[Command, ...] = ("run", "backfill")

FLUSH_SECONDS = 10.0
"""Between two writes of a process's row; a process that is killed takes what it counted since with it."""

GONE_AFTER_US = HOUR_US
"""A row that was not written for so long is added to the sum of its command."""

WRITE_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram of what writing a group takes; most groups take 0.1 to 2 s."""

WRITE_SECONDS = "write_seconds"
RECORDS_READ = "records_read"
STEP_SECONDS = "step_seconds"
RETRIES = "retries"
WRITE_BUCKET = "write_bucket"
"""Names of counts; the last three are followed by a colon and step, cause or upper bound."""

Counts = dict[str, float]


class WorkerCounts:
    """Sums by name since the process started. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    def add(self, name: str, amount: float) -> None:
        """Adds to one sum."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0) + amount

    def snapshot(self) -> dict[str, float]:
        """All sums at one moment."""
        with self._lock:
            return dict(self._sums)


COUNTS = WorkerCounts()
"""The registry of this process. Steps name it by import, so a pickled step finds that of the process it runs in."""


def count_step(step: str, seconds: float) -> None:
    """A step (decode, tag or write) took so long for a group."""
    COUNTS.add(f"{STEP_SECONDS}:{step}", seconds)


def count_write(seconds: float) -> None:
    """Writing a group took so long, with all its repetitions."""
    COUNTS.add(WRITE_SECONDS, seconds)
    place = bisect_left(WRITE_BOUNDS_S, seconds)
    COUNTS.add(f"{WRITE_BUCKET}:{WRITE_BOUNDS_S[place] if place < len(WRITE_BOUNDS_S) else 'inf'}", 1)
    count_step("write", seconds)


def count_retry(cause: str) -> None:
    """A transaction is repeated; `cause` is one of RETRY_CAUSES."""
    COUNTS.add(f"{RETRIES}:{cause}", 1)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A process as it last told of itself; of those that are gone, one row a command, and `gone` is true.

    `ended_at` is when it ended, or its whole run if it couldn't tell: Flink doesn't let its workers say goodbye.
    """

    gone: bool
    command: str
    run_epoch: int
    flushed_at: int
    ended_at: int | None
    counts: Mapping[str, float]


def read_workers(connection: Connection) -> list[WorkerRow]:
    """All rows."""
    c, runs = worker_metric.c, tables.run_epoch.c
    ended_at = func.coalesce(c.ended_at, runs.ended_at).label("ended_at")
    query = (
        select(c.process, c.command, c.run_epoch, c.flushed_at, ended_at, c.counts)
        .outerjoin_from(worker_metric, tables.run_epoch, runs.run_epoch == c.run_epoch)
        .order_by(c.process)
    )
    return [
        WorkerRow(
            row.process.startswith(_ENDED), row.command, row.run_epoch, row.flushed_at, row.ended_at, _parsed(row[5])
        )
        for row in connection.execute(query)
    ]


class Reporter:
    """Writes what a process counts from now on into its row of `worker_metric`, from a thread of its own."""

    def __init__(
        self,
        engine: Engine,
        *,
        command: Command,
        run_epoch: int,
        now: Callable[[], int],
        snapshot: Callable[[], Mapping[str, float]],
        every_seconds: float = FLUSH_SECONDS,
    ) -> None:
        """`now` gives UTC microseconds; `snapshot` the sums of this process."""
        self._engine = engine
        self._command: Command = command
        self._run_epoch = run_epoch
        self._now = now
        self._snapshot = snapshot
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="vocbeam-worker-metric", daemon=True)
        self._warned = False
        self._lock = threading.Lock()
        self._written: Counts | None = None
        self._begin(snapshot())

    def start(self) -> None:
        """Writes the first row soon, and goes on until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and marks the process as ended; waits for no more than one write."""
        self._stop.set()
        self._thread.join()
        self._try(ended=True)
        self._engine.dispose()

    def flush(self, *, ended: bool = False) -> None:
        """Writes the sums. Raises SQLAlchemyError where the warehouse can't be written; the next one makes up."""
        with self._lock:
            sums = dict(self._snapshot())
            now = self._now()
            with self._engine.begin() as connection:
                if not self._update(connection, sums, now, ended):
                    if self._written is not None:
                        # This process was silent for so long that its row was added to those of the gone.
                        self._begin(self._written)
                    connection.execute(
                        insert(worker_metric).values(
                            process=self._process,
                            command=self._command,
                            run_epoch=self._run_epoch,
                            started_at=now,
                            flushed_at=now,
                            ended_at=now if ended else None,
                            counts=_text(_since(sums, self._base)),
                        )
                    )
                    _fold(connection, self._command, now)
            self._written = sums

    def _begin(self, base: Mapping[str, float]) -> None:
        self._process = uuid.uuid4().hex
        self._base = dict(base)
        self._written = None

    def _update(self, connection: Connection, sums: Counts, now: int, ended: bool) -> bool:
        c = worker_metric.c
        values = {
            "flushed_at": now,
            "ended_at": now if ended else None,
            "counts": _text(_since(sums, self._base)),
        }
        return connection.execute(update(worker_metric).where(c.process == self._process).values(**values)).rowcount > 0

    def _go_on(self) -> None:
        while True:
            self._try()
            if self._stop.wait(self._every_seconds):
                return

    def _try(self, *, ended: bool = False) -> None:
        try:
            self.flush(ended=ended)
        except SQLAlchemyError as error:
            # The writer itself tells of an outage, and ends the run where it must.
            level = logging.INFO if self._warned or is_transient(error) else logging.WARNING
            self._warned = self._warned or level == logging.WARNING
            log.log(
                level, "what this process counted is not in the warehouse yet: %s", type(driver_error(error)).__name__
            )


@dataclass
class _Shared:
    reporter: Reporter
    users: int


_SHARED: dict[tuple[str, Command, int], _Shared] = {}
_SHARED_LOCK = threading.Lock()


@contextmanager
def reporting(
    warehouse_url: str,
    *,
    command: Command,
    run_epoch: int,
    now: Callable[[], int],
    also: Callable[[], Mapping[str, float]],
) -> Iterator[None]:
    """While any context of a run is open in this process, one Reporter writes for all of them.

    A runner may give a process several copies of a step. `also` gives sums that are counted elsewhere.
    """
    key = (warehouse_url, command, run_epoch)
    with _SHARED_LOCK:
        shared = _SHARED.get(key)
        if shared is None:
            reporter = Reporter(
                shared_engine(warehouse_url),
                command=command,
                run_epoch=run_epoch,
                now=now,
                snapshot=lambda: {**COUNTS.snapshot(), **also()},
            )
            shared = _SHARED[key] = _Shared(reporter, 0)
            reporter.start()
        shared.users += 1
    try:
        yield
    finally:
        with _SHARED_LOCK:
            shared.users -= 1
            last = shared.users == 0 and _SHARED.pop(key, None) is shared
        if last:
            shared.reporter.stop()


def stop_reporting() -> None:
    """Writes the last counts of this process and ends its reporters: for the end of a run, whatever the runner left."""
    with _SHARED_LOCK:
        left = [shared.reporter for shared in _SHARED.values()]
        _SHARED.clear()
    for reporter in left:
        reporter.stop()


_ENDED = "ended:"


def _fold(connection: Connection, command: Command, now: int) -> None:
    """Adds the rows of a command's processes that are gone to the one row of all of them, which is locked first."""
    c = worker_metric.c
    name = _ENDED + command
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    empty = {"command": command, "run_epoch": 0, "started_at": now, "flushed_at": now, "ended_at": now, "counts": "{}"}
    connection.execute(make(worker_metric).values(process=name, **empty).on_conflict_do_nothing())
    sums = _parsed(connection.execute(select(c.counts).where(c.process == name).with_for_update()).scalar_one())
    gone = connection.execute(
        select(c.process, c.counts)
        .where(c.command == command, c.process != name, c.flushed_at < now - GONE_AFTER_US)
        .order_by(c.process)
        .with_for_update()
    ).all()
    if not gone:
        return
    total = add_counts([sums, *(_parsed(row.counts) for row in gone)])
    connection.execute(update(worker_metric).where(c.process == name).values(flushed_at=now, counts=_text(total)))
    connection.execute(delete(worker_metric).where(c.process.in_([row.process for row in gone])))


def _since(sums: Mapping[str, float], base: Mapping[str, float]) -> Counts:
    """What came after `base`; a sum that was set back counts from zero."""
    former = {name: base.get(name, 0) for name in sums}
    return {name: value - former[name] if value >= former[name] else value for name, value in sums.items()}


def add_counts(parts: Iterable[Mapping[str, float]]) -> Counts:
    """Sums of several processes, by name."""
    total: Counts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def _text(counts: Counts) -> str:
    return json.dumps({name: round(value, 6) for name, value in sorted(counts.items())}, separators=(",", ":"))


def _parsed(text: str) -> Counts:
    counts: Counts = json.loads(text)
    return counts
