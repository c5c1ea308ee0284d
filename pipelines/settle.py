"""`vocbeam settle`: give events without a stage of their own that of the customer's latest touchpoint.

`vocbeam run` does the same in the background (`settling`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from vocbeam.pipelines.settings import Home, home_option, warehouse_option
from vocbeam.schemas.errors import SinkUnavailable, TaxonomyChanged, VocbeamError
from vocbeam.schemas.governance import Governance, parse_governance
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks import read
from vocbeam.sinks.catalog import require_current
from vocbeam.sinks.engine import driver_error, is_contention, is_forbidden, open_engine
from vocbeam.sinks.restate import Restater
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.sinks.settle import Settled, Settler
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.touchpoints import Attributor

log = logging.getLogger(__name__)

BACKGROUND_RETRY_S = 5.0
"""How long the background tries one transaction: the next turn tries again, and a stop must not wait for it."""

STOP_WAIT_S = 3.0
"""How long the end of a run waits for the transaction in hand; what it leaves is undone and settled by the next run."""


def open_settler(url: str, governance: Governance, retry_limit_s: float = RETRY_LIMIT_S) -> Settler:
    """A settler under a governance file, with connections of its own."""
    engine = open_engine(url, write=True)
    restater = Restater(
        engine,
        rules=subject_rules(governance),
        calendar=LocalCalendar(governance.timezone),
        words=False,
        retry_limit_s=retry_limit_s,
    )
    return Settler(
        open_engine(url),
        engine,
        restater,
        governance=governance,
        attribute=Attributor(governance),
        retry_limit_s=retry_limit_s,
    )


@contextmanager
def settling(
    url: str, governance: Governance, every_seconds: float, stop_requested: Callable[[], bool]
) -> Iterator[None]:
    """Settles every so many seconds on a thread of its own while the context lasts; 0 never does.

    Once more when the context is left, unless by an error or because a stop was requested. No failure comes through: it
    is logged in one sentence, and the next turn tries again.
    """
    if not every_seconds:
        yield
        return
    background = _Background(url, governance, every_seconds, stop_requested)
    background.start()
    try:
        yield
    except BaseException:
        background.end()
        raise
    background.end()
    background.turn()


class _Background:
    """The thread that settles now and then, each time with connections of its own."""

    def __init__(
        self, url: str, governance: Governance, every_seconds: float, stop_requested: Callable[[], bool]
    ) -> None:
        self._url = url
        self._governance = governance
        self._every_seconds = every_seconds
        self._stop_requested = stop_requested
        self._ended = threading.Event()
        self._useless = False
        self._thread = threading.Thread(target=self._work, name="settle", daemon=True)

    def start(self) -> None:
        """Begins; the first turn comes after the first wait."""
        self._thread.start()

    def end(self) -> None:
        """Ends the thread after the transaction in hand, or leaves it to the end of the process if that takes long."""
        self._ended.set()
        self._thread.join(STOP_WAIT_S)

    def turn(self) -> None:
        """Settles once, if that can be of use and no stop was requested."""
        self._settle(self._stop_requested)

    def _work(self) -> None:
        while not self._ended.wait(self._every_seconds):
            self._settle(lambda: self._ended.is_set() or self._stop_requested())

    def _settle(self, stop: Callable[[], bool]) -> None:
        if self._useless or stop():
            return
        settler = open_settler(self._url, self._governance, BACKGROUND_RETRY_S)
        try:
            log.info("%s", described(settler.settle(stop)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end what the run is there for
            self._report(error)
        finally:
            settler.close()

    def _report(self, error: Exception) -> None:
        if is_forbidden(error):
            self._useless = True
            log.warning(
                "this account may not change tags, so touchpoints are not settled here; let it be a member of the role "
                "`writer` and have the warehouse's owner run `vocbeam migrate`, or give --settle-seconds 0"
            )
        elif isinstance(error, TaxonomyChanged):
            self._useless = True
            log.warning("touchpoints are settled no more: %s", error)
        elif isinstance(error, SinkUnavailable) and is_contention(error.__cause__ or error):
            log.info("touchpoints are settled later: %s", error)
        else:
            what = error if isinstance(error, VocbeamError) else type(driver_error(error)).__name__
            log.warning("touchpoints were not settled, the next turn tries again: %s", what)


@click.command()
@home_option
@warehouse_option
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def settle(home: Home, warehouse: str | None, as_json: bool) -> None:
    """Give events without a stage of their own that of the customer's latest touchpoint.

    Which events are touchpoints, and for how long, is under `attribution` in the governance file. Looks at what came
    since the last time. `vocbeam run` does the same in the background. Safe beside a running pipeline, and to be run
    again when interrupted. On PostgreSQL the role `writer` suffices.
    """
    url = warehouse or home.warehouse_url
    engine = open_engine(url)
    require_current(engine)
    with engine.connect() as connection:
        governance = parse_governance(read.taxonomy(connection).governance_text)
    engine.dispose()
    settler = open_settler(url, governance)
    try:
        settled = settler.settle()
    finally:
        settler.close()
    if as_json:
        click.echo(json.dumps({"taxonomy_version": governance.version, **vars(settled)}, indent=2))
        return
    click.echo(described(settled))
    if governance.attribution is None:
        click.echo("the governance file in force has no attribution, so there are no touchpoints")


def described(settled: Settled) -> str:
    """What a settle did, in words."""
    departments = ", ".join(f"{department} {n:,}" for department, n in sorted(settled.departments.items()))
    return (
        f"{settled.looked_at:,} events without a stage of their own looked at: {settled.placed:,} placed, "
        f"{settled.moved:,} moved, {settled.returned:,} returned" + (f"; to {departments}" if departments else "")
    )
