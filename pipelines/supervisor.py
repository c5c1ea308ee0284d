"""Runs a pipeline again when it fails, within limits, and ends it cleanly when the process is asked to."""

from __future__ import annotations

import logging
import os
import random
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import click
import tenacity
from rich.console import Console
from rich.live import Live
from rich.text import Text

from vocbeam.schemas.errors import (
    ConfigError,
    Fenced,
    GovernanceError,
    TaxonomyChanged,
    TopicChanged,
    VocbeamError,
    WrongKey,
)
from vocbeam.transforms.progress import Progress

log = logging.getLogger(__name__)

PERMANENT = (ConfigError, GovernanceError, TopicChanged, Fenced, TaxonomyChanged, WrongKey)
"""Errors that another attempt would meet again, or that forbid one."""

STOP_GRACE_SECONDS = 10.0
"""From the request to stop to the forced end; orchestrators kill after 30 s by default."""

LAST_LINE_SECONDS = 2.0
"""How long the end of a run waits for the line of progress in hand, which nobody may be reading."""

_STEP = re.compile(r"\s*\[while running '([^']*)'\]")
_IN_TRACEBACK = re.compile(r"^vocbeam\.[\w.]*\b(\w+): (.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often and how fast a failed pipeline is run again.

    `max_restarts` failures in a row are forgiven; a run that lasted `healthy_seconds` begins a new row. The delay
    doubles from `first_delay_seconds` to `longest_delay_seconds`, of which a random half is taken away.
    """

    max_restarts: int = 5
    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    healthy_seconds: float = 600.0

    def delay(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures in a row; `chance` is uniform in 0 to 1."""
        doubled = self.first_delay_seconds * 2.0 ** min(failures - 1, 30)
        return min(self.longest_delay_seconds, doubled) * (0.5 + chance / 2)


def original_error(error: BaseException | None) -> VocbeamError | None:
    """The error of ours that a runner's exception stands for, or None.

    Beam raises it again with the step's name appended, or, from another process, as a RuntimeError that holds the
    traceback as text.
    """
    seen: set[int] = set()
    link = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, VocbeamError):
            return type(link)(_STEP.sub("", str(link)))
        for name, message in reversed(_IN_TRACEBACK.findall(str(link))):
            kind = _errors_of_ours().get(name)
            if kind is not None:
                return kind(_STEP.sub("", message))
        link = link.__cause__ or link.__context__
    return None


def _errors_of_ours() -> dict[str, type[VocbeamError]]:
    found: dict[str, type[VocbeamError]] = {}
    new: list[type[VocbeamError]] = [VocbeamError]
    while new:
        kind = new.pop()
        found[kind.__name__] = kind
        new.extend(kind.__subclasses__())
    return found


def failing_step(error: BaseException) -> str | None:
    """Label of the innermost step that a runner's exception names, or None."""
    steps = _STEP.findall(str(error))
    return steps[-1] if steps else None


def supervise(
    run_once: Callable[[], None],
    policy: RestartPolicy,
    *,
    stop_requested: Callable[[], bool],
    sleep: Callable[[float], None],
    monotonic: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> int:
    """Runs `run_once` until it returns; the number of restarts that it took.

    Raises the original error at once if it is permanent or a stop was requested, and after the last restart otherwise:
    a VocbeamError with its own exit code, whatever the runner made of it.
    """
    in_a_row = total = 0
    started = monotonic()

    def attempt() -> None:
        nonlocal started
        started = monotonic()
        if not stop_requested():
            run_once()

    def may_retry(error: BaseException) -> bool:
        nonlocal in_a_row, total
        in_a_row = 1 if monotonic() - started >= policy.healthy_seconds else in_a_row + 1
        permanent = isinstance(original_error(error), PERMANENT)
        retried = isinstance(error, Exception) and not permanent and not stop_requested()
        total += retried and in_a_row <= policy.max_restarts
        return retried

    def announce(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None, "called after an attempt"
        error = state.outcome.exception()
        cause = original_error(error)
        log.warning(
            "the pipeline failed (%s) and is started again in %.1f s (%d of %d restarts)",
            cause or type(error).__name__,
            state.upcoming_sleep,
            in_a_row,
            policy.max_restarts,
            exc_info=error if cause is None else None,
        )

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_retry),
        wait=lambda _state: policy.delay(in_a_row, chance()),
        stop=lambda _state: in_a_row > policy.max_restarts,
        sleep=sleep,
        before_sleep=announce,
        reraise=True,
    )
    try:
        retrying(attempt)
    except Exception as error:
        raise _final(error, in_a_row, policy) from error
    return total


def _final(error: Exception, in_a_row: int, policy: RestartPolicy) -> VocbeamError:
    cause = original_error(error)
    given_up = f" (given up after {policy.max_restarts} restarts)" if in_a_row > policy.max_restarts else ""
    if cause is not None:
        return type(cause)(f"{cause}{given_up}")
    log.error("the pipeline failed", exc_info=error)
    step = failing_step(error)
    where = f" in step {step}" if step else ""
    return VocbeamError(
        f"the pipeline failed with {type(error).__name__}{where}{given_up}; the log holds the traceback. "
        "What was committed stays, and the next run goes on from there"
    )


@contextmanager
def stop_on_signals(
    progress: Progress,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    grace_seconds: float = STOP_GRACE_SECONDS,
) -> Iterator[None]:
    """Makes `signals` request a stop; a second one, or the end of the grace time, ends the process at once.

    Ending hard is safe: what isn't committed is read again. It is told by the exit code: 128 + signal, or 1 after the
    grace time.
    """

    def end_hard() -> None:
        # Whoever reads stderr may be what the work hangs on: a full pipe must not keep the process here.
        if select.select([], [sys.stderr.fileno()], [], 0)[1]:
            os.write(
                sys.stderr.fileno(), b"vocbeam: the group in hand did not end in time; uncommitted work is read again\n"
            )
        os._exit(1)

    deadline = threading.Timer(grace_seconds, end_hard)
    deadline.daemon = True

    def handle(signum: int, _frame: FrameType | None) -> None:
        if progress.stop_requested():
            os._exit(128 + signum)
        # The timer first: the request needs a lock that the interrupted code may hold.
        deadline.start()
        progress.request_stop()

    former = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        deadline.cancel()
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def show_progress(progress: Progress, every_seconds: float, console: Console) -> Iterator[None]:
    """Shows records, records/s and lag: a line that changes on a terminal, else a line every so many seconds."""
    ended = threading.Event()

    def line(previous: int, seconds: float) -> tuple[str, int]:
        now = progress.snapshot()
        rate = (now.records - previous) / seconds
        return f"{now.records:,} records, {rate:,.0f}/s, {now.lag:,} offsets behind", now.records

    def show_lines() -> None:
        records = 0
        while not ended.wait(every_seconds):
            text, records = line(records, every_seconds)
            click.echo(text, err=True)

    def show_live() -> None:
        records = 0
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while not ended.wait(1.0):
                text, records = line(records, 1.0)
                live.update(Text(text), refresh=True)

    thread = threading.Thread(target=show_live if console.is_terminal else show_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_LINE_SECONDS)
