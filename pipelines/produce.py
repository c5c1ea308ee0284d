"""`vocbeam produce`: files to events on Kafka, through a mapping file or ready-made."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import click
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vocbeam.deploy.broker import create_topics
from vocbeam.pipelines.settings import (
    Home,
    bootstrap_option,
    home_option,
    read_text,
    registry_option,
    topic_prefix_option,
)
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError, SchemaError, SourceError, VocbeamError
from vocbeam.schemas.records import EventType
from vocbeam.schemas.registry import Registry, open_registry
from vocbeam.schemas.secrets import Hidden
from vocbeam.schemas.timebase import from_micros
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.kafka_settings import (
    CONNECT_TIMEOUT_MS,
    SECRETS,
    check_tls_files,
    no_answer,
    noting_refusals,
)
from vocbeam.transforms.mapping import BadRow, EventMapping, MappedEvent, load_mapping, open_mapping

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""Largest request of the producer; the broker's own limit is what refuses a record."""

SHOWN_BAD_ROWS = 20
"""Bad rows that are listed; all are counted."""

DRY_RUN_EVENTS = 2
"""Events of each type that a dry run prints."""

_OWNED = {"acks", "bootstrap_servers", "enable_idempotence", "key_serializer", "value_serializer"}
_REFERENCE = re.compile(r"\$\{(\w+)\}")

Events = Iterable[MappedEvent | BadRow]


class BadRows(VocbeamError):
    """Records of the input files that give no event."""


@dataclass
class Summary:
    """What was produced, for each event type, and what was not."""

    topics: dict[str, dict[str, Any]] = field(default_factory=dict)
    bad_rows: int = 0

    def count(self, event: MappedEvent, topic: str) -> None:
        """Add one event; times are UTC microseconds."""
        moment = event.record["event_time"]
        row = self.topics.setdefault(
            event.event_type, {"topic": topic, "events": 0, "first_event_time": moment, "last_event_time": moment}
        )
        row["events"] += 1
        row["first_event_time"] = min(row["first_event_time"], moment)
        row["last_event_time"] = max(row["last_event_time"], moment)

    @property
    def events(self) -> int:
        """Of all types."""
        return sum(row["events"] for row in self.topics.values())

    def as_json(self) -> dict[str, Any]:
        """The same with times as ISO 8601."""
        return {
            "events": self.events,
            "bad_rows": self.bad_rows,
            "types": {
                event_type: {
                    **row,
                    "first_event_time": from_micros(row["first_event_time"]).isoformat(),
                    "last_event_time": from_micros(row["last_event_time"]).isoformat(),
                }
                for event_type, row in self.topics.items()
            },
        }


class Sender(Protocol):
    """Takes encoded events."""

    def __call__(self, topic: str, key: bytes, value: bytes) -> None:
        """Send, or queue for sending; raises SourceError once something could not be delivered."""
        ...


@click.command()
@click.argument("mapping", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=Path(),
    show_default="the current folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the mapping's paths start from.",
)
@click.option(
    "--events",
    "event_files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Instead of a mapping: JSON lines of ready-made events. Repeatable.",
)
@home_option
@bootstrap_option
@registry_option
@topic_prefix_option
@click.option("--partitions", default=4, show_default=True, type=click.IntRange(1), help="Of topics it must create.")
@click.option(
    "--on-error", default="stop", show_default=True, type=click.Choice(["stop", "skip"]), help="At a bad row."
)
@click.option("--only", multiple=True, metavar="TABLE", help="Only events from the rows of this table. Repeatable.")
@click.option("--limit", type=click.IntRange(1), help="At most so many events of each type.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="At most so many events a second.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, print the first events, send nothing.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
@click.option(
    "-X", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of kafka-python's producer. Repeatable."
)
@click.option(
    "--producer-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of KEY=VALUE lines for the producer; ${NAME} is that environment variable.",
)
def produce(
    mapping: Path | None,
    data: Path,
    event_files: tuple[Path, ...],
    home: Home,
    bootstrap: str,
    registry: str | None,
    topic_prefix: str,
    partitions: int,
    on_error: Literal["stop", "skip"],
    only: tuple[str, ...],
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    as_json: bool,
    settings: tuple[str, ...],
    producer_config: Path | None,
) -> None:
    """Turn files into events on Kafka.

    MAPPING is a mapping file (examples/mappings/ has some); its comments and the notes in it say what it makes of the
    data. Topics and schemas that are missing are created. A bad row ends the run unless --on-error skip; the events
    before it have been sent then.
    """
    if (mapping is None) == (not event_files):
        raise click.UsageError("give either a MAPPING file or --events")
    if only and mapping is None:
        raise click.UsageError("--only chooses among the tables of a MAPPING file")
    settings_of_producer = producer_settings(producer_config, settings, os.environ)
    reporter = _Reporter(on_error)
    summary = Summary()
    with _events(mapping, data, event_files, only, limit, reporter) as events:
        if dry_run:
            _preview(events, topic_prefix, summary, reporter)
        else:
            with sender(bootstrap, settings_of_producer) as send, _progress(as_json) as progress:
                events = _paced(events, rate, time.monotonic, time.sleep) if rate else events
                router = Router(
                    open_registry(registry, home.registry), topic_prefix, bootstrap, partitions, settings_of_producer
                )
                for event in events:
                    topic, schema_id = router.route(event.event_type)
                    value = reporter.encode(event, schema_id)
                    if value is not None:
                        send(topic, key_of(event), value)
                        summary.count(event, topic)
                        progress(summary.events, event.event_type)
    summary.bad_rows = reporter.bad_rows
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    else:
        _print(summary, dry_run)


def key_of(event: MappedEvent) -> bytes:
    """The partitioning key: all events of a ticket, and otherwise of a customer, keep their order."""
    if event.event_type == "ticket":
        key = event.record["ticket_id"]
    else:
        key = event.record.get("customer_id") or event.record["event_id"]
    return str(key).encode("utf-8", "surrogatepass")


class _Reporter:
    """Lists bad rows on stderr as they come, and stops at the first unless they are to be skipped."""

    def __init__(self, on_error: Literal["stop", "skip"]) -> None:
        self._on_error = on_error
        self.bad_rows = 0

    def report(self, bad: BadRow) -> None:
        self.bad_rows += 1
        if self._on_error == "stop":
            raise BadRows(f"{bad}; correct the row, or leave such rows out with --on-error skip")
        if self.bad_rows <= SHOWN_BAD_ROWS:
            click.echo(f"skipped {bad}", err=True)
        elif self.bad_rows == SHOWN_BAD_ROWS + 1:
            click.echo("skipped more rows, which are counted only", err=True)

    def encode(self, event: MappedEvent, schema_id: int) -> bytes | None:
        """The event's Kafka value, or None when a value does not fit the contract and such rows are skipped."""
        try:
            return wire.encode(event.event_type, event.record, schema_id)
        except SchemaError as error:
            self.report(BadRow(event.place, str(error)))
            return None

    def filter(self, events: Events) -> Iterator[MappedEvent]:
        for event in events:
            if isinstance(event, BadRow):
                self.report(event)
            else:
                yield event


@contextmanager
def _events(
    mapping: Path | None,
    data: Path,
    event_files: tuple[Path, ...],
    only: tuple[str, ...],
    limit: int | None,
    reporter: _Reporter,
) -> Iterator[Iterator[MappedEvent]]:
    """The good events of all inputs, at most `limit` of each type."""
    if mapping is None:
        ready_made = (event for path in event_files for event in reporter.filter(read_events(path)))
        yield _limited(ready_made, limit)
        return
    loaded = load_mapping(mapping)
    if only:
        loaded = _restricted(loaded, only)
    with open_mapping(loaded, data) as files:
        for bad in files.rejected:
            reporter.report(bad)
        yield (
            event
            for event_type in loaded.event_types
            for event in islice(reporter.filter(files.events(event_type)), limit)
        )


def _restricted(mapping: EventMapping, only: tuple[str, ...]) -> EventMapping:
    """The mapping with events from the rows of some tables alone; its files stay, since SELECTs may join them."""
    queries = tuple(query for query in mapping.events if query.rows in only)
    missing = set(only) - {query.rows for query in queries}
    if missing:
        known = ", ".join(dict.fromkeys(query.rows for query in mapping.events))
        raise ConfigError(f"--only {min(missing)}: the mapping makes no events from such a table; there are {known}")
    return mapping.model_copy(update={"events": queries})


def _limited(events: Iterator[MappedEvent], limit: int | None) -> Iterator[MappedEvent]:
    seen: dict[EventType, int] = {}
    for event in events:
        seen[event.event_type] = seen.get(event.event_type, 0) + 1
        if limit is None or seen[event.event_type] <= limit:
            yield event


def _paced(
    events: Iterator[MappedEvent], rate: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[MappedEvent]:
    """Events at no more than `rate` a second; `clock` and `sleep` are in seconds."""
    begin = clock()
    for number, event in enumerate(events):
        ahead = begin + number / rate - clock()
        if ahead > 0:
            sleep(ahead)
        yield event


class Router:
    """Topic and schema id of each event type; creates and registers what is missing on first use."""

    def __init__(
        self, registry: Registry, prefix: str, bootstrap: str, partitions: int, settings: Mapping[str, Any]
    ) -> None:
        """`partitions` and the producer's `settings` are for topics that must be created."""
        self._registry, self._prefix, self._bootstrap, self._partitions = registry, prefix, bootstrap, partitions
        self._client = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        self._known: dict[EventType, tuple[str, int]] = {}

    def route(self, event_type: EventType) -> tuple[str, int]:
        """(topic, schema id) of an event type."""
        if event_type not in self._known:
            topic = contracts.topic(event_type, self._prefix)
            create_topics(self._bootstrap, {topic: self._partitions}, client=self._client)
            schema_id = self._registry.register(contracts.subject(topic), contracts.schema_text(event_type))
            self._known[event_type] = topic, schema_id
        return self._known[event_type]


def _preview(events: Iterator[MappedEvent], prefix: str, summary: Summary, reporter: _Reporter) -> None:
    """Check that every event can be encoded; print the first ones of each type."""
    shown: dict[EventType, int] = {}
    for event in events:
        if reporter.encode(event, schema_id=1) is None:
            continue
        summary.count(event, contracts.topic(event.event_type, prefix))
        shown[event.event_type] = shown.get(event.event_type, 0) + 1
        if shown[event.event_type] <= DRY_RUN_EVENTS:
            click.echo(json.dumps({"event_type": event.event_type, **event.record}, ensure_ascii=False))


@contextmanager
def sender(bootstrap: str, settings: Mapping[str, Any]) -> Iterator[Sender]:
    """A producer that waits for all in-sync replicas; leaving the context waits until everything is delivered."""
    check_tls_files(settings)
    with noting_refusals() as refusals:
        try:
            producer = KafkaProducer(
                **{
                    "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
                    "linger_ms": 20,
                    "max_request_size": MAX_RECORD_BYTES,
                    **settings,
                    "bootstrap_servers": bootstrap.split(","),
                    "acks": "all",
                }
            )
        except KafkaTimeoutError as error:
            raise SourceError(no_answer(bootstrap, settings, refusals)) from error
        except (KafkaError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"Kafka at {bootstrap} can't be used: {error}; check -X and --producer-config") from error
    failures: list[Exception] = []

    def send(topic: str, key: bytes, value: bytes) -> None:
        try:
            producer.send(topic, key=key, value=value).add_errback(failures.append)
        except KafkaError as error:
            failures.append(error)
        _raise_first(failures, bootstrap)

    try:
        yield send
        producer.flush()
        _raise_first(failures, bootstrap)
    finally:
        producer.close(timeout=10)


def _raise_first(failures: list[Exception], bootstrap: str) -> None:
    if failures:
        raise SourceError(
            f"Kafka at {bootstrap} did not take an event: {type(failures[0]).__name__}; earlier ones may be there, and "
            "sending all of them again does no harm (event ids are stable)"
        ) from failures[0]


def producer_settings(file: Path | None, options: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a file and then of -X, with ${NAME} filled in; numbers and true/false take their type."""
    lines = [(f"{file}:{n}", line) for n, line in enumerate(read_text(file).splitlines(), 1)] if file else []
    settings: dict[str, Any] = {}
    for place, line in [*lines, *(("-X", option) for option in options)]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or name not in KafkaProducer.DEFAULT_CONFIG:
            raise ConfigError(
                f"{place}: not a setting of kafka-python's producer; write KEY=VALUE, for example linger_ms=50"
            )
        if name in _OWNED:
            raise ConfigError(f"{place}: {name} is set by vocbeam itself; leave it out")
        if name in SECRETS and not _REFERENCE.fullmatch(value):
            raise ConfigError(f"{place}: {name} must be ${{NAME}}, an environment variable, not the secret itself")
        settings[name] = _value(place, value, environment)
    return settings


def _value(place: str, text: str, environment: Mapping[str, str]) -> Any:
    unset = [name for name in _REFERENCE.findall(text) if name not in environment]
    if unset:
        raise ConfigError(f"{place}: the environment variable {unset[0]} is not set")
    filled = _REFERENCE.sub(lambda match: environment[match[1]], text)
    if filled != text:
        return Hidden(filled)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Shows a count on stderr while it runs, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _number, _what: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} events"), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(number: int, what: str) -> None:
            if number % 500 == 0:
                bar.update(task, completed=number, description=what)

        yield show


def _print(summary: Summary, dry_run: bool) -> None:
    for event_type, row in summary.topics.items():
        first, last = (
            from_micros(row[name]).isoformat(timespec="seconds") for name in ("first_event_time", "last_event_time")
        )
        click.echo(f"{event_type:<10} {row['events']:>9,} events  {row['topic']:<16} {first} to {last}")
    bad = f", {summary.bad_rows:,} rows skipped" if summary.bad_rows else ""
    click.echo(f"{summary.events:,} events {'would be sent' if dry_run else 'sent'}{bad}")
