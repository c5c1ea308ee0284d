"""Doing it again: what a database refuses for a while is repeated with growing, random waits, up to a limit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from vocbeam.schemas.errors import SinkUnavailable
from vocbeam.sinks.engine import driver_error, is_contention, is_transient

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_LIMIT_S = 60.0
"""How long one piece of work is tried before the failure goes to the runner and its supervisor."""

LONGEST_WAIT_S = 5.0

RETRY_CAUSES = ("contention", "outage")
"""Why an attempt is repeated: others work on the same rows, or the database can't be used at all."""


def with_retries(
    what: str,
    attempt: Callable[[], T],
    limit_s: float = RETRY_LIMIT_S,
    retried: Callable[[str], None] = lambda _cause: None,
) -> T:
    """Calls `attempt`, which is one whole transaction, until it succeeds; what it returns.

    Transient failures (connection, contention, room, shutdown) are repeated for `limit_s` seconds, counted from the
    first; others are raised as they are. `retried` is told the cause of each repetition, one of RETRY_CAUSES. Raises
    SinkUnavailable when the limit is reached; `what` names the work in that message.
    """

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        retried("contention" if error is not None and is_contention(error) else "outage")
        log.warning("the warehouse refused %s (%s); attempt %d follows", what, _kind(error), state.attempt_number + 1)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(limit_s),
        before_sleep=before_sleep,
    )
    try:
        return retrying(attempt)
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        raise SinkUnavailable(
            f"the warehouse refused {what}: {error.last_attempt.attempt_number} attempts over {limit_s:.0f} s "
            f"({_kind(cause)}); nothing was lost: see that the database is up and has room, and start vocbeam again"
        ) from cause


def _kind(error: BaseException | None) -> str:
    return "no error" if error is None else type(driver_error(error)).__name__
