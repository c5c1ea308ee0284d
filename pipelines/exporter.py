"""`vocbeam exporter`: the state of warehouse, Kafka and pipeline for Prometheus, from a process of its own.

Three threads look at the warehouse, at Kafka and at the books, each with connections of its own. A scrape shows the
last looks and waits for none; a look that failed, or that takes too long, leaves nothing behind to be shown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import click
import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    consumer_config_option,
    home_option,
    topic_prefix_option,
    warehouse_option,
)
from vocbeam.pipelines.supervisor import stop_on_signals
from vocbeam.schemas import contracts
from vocbeam.schemas.errors import ConfigError, SourceError
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.exposition import Exposed, KafkaLook, Known, Looked, Waiting, families
from vocbeam.sinks.monitor import BooksLook, Unusable, WarehouseLook, WarehouseMonitor, look_at_books, read_positions
from vocbeam.sinks.target_windows import Charting, ChartWindows
from vocbeam.transforms.backlog import find_backlog
from vocbeam.transforms.control_chart import NEEDED, Series, signals
from vocbeam.transforms.kafka_settings import SourceConfig
from vocbeam.transforms.progress import PROGRESS

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""Longest wait for an answer of the warehouse to one question of a look; a look asks about thirty."""

STUCK_LOOKS = 3
"""After so many refresh times (and no less than STUCK_SECONDS) without an end, a look counts as stuck."""

STUCK_SECONDS = 60.0


class Watcher(Generic[T]):
    """Looks at one component every so many seconds, from a thread; keeps what the last look found."""

    def __init__(
        self,
        component: str,
        look: Callable[[], T],
        every_seconds: float,
        *,
        now: Callable[[], int] = now_us,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look` raises Unusable, SourceError or ConfigError where the component can't be used."""
        self._component = component
        self._look = look
        self._every_seconds = every_seconds
        self._now = now
        self._monotonic = monotonic
        self._last: Looked[T] | None = None
        self._last_end = monotonic()
        self._told: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=f"vocbeam-{component}", daemon=True)

    def start(self) -> None:
        """Looks at once, and then again and again until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end after the look in hand; does not wait for it."""
        self._stop.set()

    def look(self) -> None:
        """One look; what goes wrong is kept as the component's problem, told once in the log, and never raised."""
        started, began = self._monotonic(), self._now()
        found: T | None = None
        problem: str | None = None
        said = ""
        try:
            found = self._look()
        except Unusable as error:
            problem, said = error.problem, str(error)
        except SourceError as error:
            problem, said = "unreachable", str(error)
        except ConfigError as error:
            problem, said = "misconfigured", str(error)
        except Exception as error:
            # The exporter must outlive what nobody thought of, and say that there is something.
            problem, said = "unexpected", f"{type(error).__name__}: {error}"
            if self._told != problem:
                log.exception("a look at the %s failed unexpectedly", self._component)
        good_at = began if problem is None else self._last.good_at if self._last else None
        self._last = Looked(found, problem, began, self._monotonic() - started, good_at)
        self._last_end = self._monotonic()
        if problem != self._told:
            self._told = problem
            level, what = (logging.WARNING, said) if problem else (logging.WARNING, "answers again")
            log.log(level, "%s: %s", self._component, what)

    def last(self) -> Looked[T] | None:
        """The last look, without what it found if it has been overdue for long; None before the first one ended."""
        last = self._last
        overdue = self._monotonic() - self._last_end - self._every_seconds
        if last is None or overdue < max(STUCK_SECONDS, STUCK_LOOKS * self._every_seconds):
            return last
        return replace(last, found=None, problem="stuck", seconds=last.seconds + overdue)

    def _go_on(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every_seconds)


def chart_rules(windows: ChartWindows) -> dict[str, bool]:
    """Which rules of the control chart signal in the last of these windows."""
    series = Series(*(np.asarray(values) for values in windows[1:]))
    return {rule: bool(flags[-1]) for rule, flags in signals(series, windows.direction)._asdict().items()}


CHARTING = Charting(NEEDED, chart_rules)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the exporter looks at, how often, and what labels may hold. `reconcile_seconds` 0 never reconciles."""

    warehouse_url: str
    source: SourceConfig
    sources: frozenset[str] = frozenset()
    by_partition: bool = False
    refresh_seconds: float
    reconcile_seconds: float


class Exporter(Collector):
    """The watchers of one installation, and a collector that shows their last looks."""

    def __init__(self, settings: Settings, *, now: Callable[[], int] = now_us) -> None:
        """`now` gives UTC microseconds."""
        self._settings = settings
        self._now = now
        self._exposed = Exposed(
            version=version("vocbeam"),
            topics=frozenset(settings.source.topics),
            sources=settings.sources,
            by_partition=settings.by_partition,
        )
        monitor = WarehouseMonitor(open_engine(settings.warehouse_url, answer_s=ANSWER_SECONDS), now, CHARTING)
        self.warehouse: Watcher[WarehouseLook] = Watcher("warehouse", monitor.look, settings.refresh_seconds, now=now)
        self.kafka: Watcher[KafkaLook] = Watcher("kafka", self._look_at_kafka, settings.refresh_seconds, now=now)
        self.books: Watcher[BooksLook] = Watcher("books", self._look_at_books, settings.reconcile_seconds, now=now)

    @property
    def watchers(self) -> list[Watcher[Any]]:
        """Those that are to look."""
        return [self.warehouse, self.kafka, *([self.books] if self._settings.reconcile_seconds else [])]

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at each scrape."""
        known = Known(self.warehouse.last(), self.kafka.last(), self.books.last())
        return families(known, self._exposed, self._now())

    def describe(self) -> list[Metric]:
        """Called once by prometheus-client; nothing, so that it needn't collect before anything is known."""
        return []

    def _look_at_kafka(self) -> KafkaLook:
        # Read here, right before Kafka is asked: against older positions a lag would be overstated.
        positions = None
        with suppress(Unusable):
            positions = read_positions(open_engine(self._settings.warehouse_url, answer_s=ANSWER_SECONDS))
        found = find_backlog(self._settings.source, positions)
        return {key: Waiting(backlog.waiting, backlog.oldest_at) for key, backlog in found.items()}

    def _look_at_books(self) -> BooksLook:
        return look_at_books(open_engine(self._settings.warehouse_url))


@contextmanager
def serving(exporter: Exporter, address: str, port: int) -> Iterator[int]:
    """Starts the watchers and a web server at `address`; gives its port, which is chosen where `port` is 0.

    Raises ConfigError where it can't listen there.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(exporter)
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"can't listen at {address}:{port}: {error.strerror or error}; choose another --port or --address"
        ) from error
    try:
        for watcher in exporter.watchers:
            watcher.start()
        yield server.server_port
    finally:
        for watcher in exporter.watchers:
            watcher.stop()
        server.shutdown()
        server.server_close()
        thread.join()


@click.command()
@home_option
@warehouse_option
@bootstrap_option
@consumer_config_option
@topic_prefix_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen at; there is no password.")
@click.option("--port", default=9464, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--refresh-seconds", default=15.0, show_default=True, type=click.FloatRange(1), help="Between two looks.")
@click.option(
    "--reconcile-seconds", default=3600.0, show_default=True, type=click.FloatRange(0),
    help="Between two full reconciliations; 0 for none.",
)  # fmt: skip
@click.option(
    "--source", "sources", multiple=True, help="A source shown by its name beside those in rules; repeatable."
)
@click.option("--by-partition", is_flag=True, help="Show the lag of each partition too.")
def exporter(
    *,
    home: Home,
    warehouse: str | None,
    bootstrap: str,
    consumer: Mapping[str, Any],
    topic_prefix: str,
    address: str,
    port: int,
    refresh_seconds: float,
    reconcile_seconds: float,
    sources: tuple[str, ...],
    by_partition: bool,
) -> None:
    """Serve metrics to Prometheus at /metrics until SIGTERM or Ctrl-C.

    Reads warehouse and Kafka only, goes on while they or the pipeline are down, and says which is. On PostgreSQL the
    role `auditor` suffices.
    """
    settings = Settings(
        warehouse_url=warehouse or home.warehouse_url,
        source=SourceConfig(
            topics=tuple(contracts.topic(kind, topic_prefix) for kind in EVENT_TYPES),
            bootstrap=bootstrap,
            consumer=consumer,
        ),
        sources=frozenset(sources),
        by_partition=by_partition,
        refresh_seconds=refresh_seconds,
        reconcile_seconds=reconcile_seconds,
    )
    if not logging.getLogger().isEnabledFor(logging.INFO):
        # A broker that is down is told in a sentence; the client's own log would tell it a dozen times.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with stop_on_signals(PROGRESS), serving(Exporter(settings), address, port) as chosen:
        click.echo(f"metrics at http://{address}:{chosen}/metrics", err=True)
        while not PROGRESS.stop_requested():
            PROGRESS.sleep(3600)
