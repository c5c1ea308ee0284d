"""A warehouse under the smallest governance file, and tagged chunks to write into it."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, Table, inspect, make_url, select, text

from tests.support.postgres import USER
from vocbeam.schemas.contracts import defaults, fields
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.governance_model import Governance
from vocbeam.schemas.records import EventType, PartitionKey, TaggedChunk
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.catalog import apply_governance
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.letter_writer import LetterWriter
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.tables import (
    customer_day,
    event,
    measure,
    survey_answer,
    survey_response,
    ticket,
)
from vocbeam.sinks.writer import ChunkWriter, Failpoint
from vocbeam.transforms.answers import survey_versions
from vocbeam.transforms.bins import all_bins
from vocbeam.transforms.measures import Measurer
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.tickets import ticket_versions

MINI = Path(__file__).parent / "mini.yaml"
NOW = 1_600_000_000_000_000
"""Load time of every row a test writes; provenance, so no result depends on it."""

PROVENANCE = {"ledger_id", "kafka_offset", "loaded_at"}
"""Columns of `event` that tell how a row came in, not what it says."""

Event = Mapping[str, Any]


def mini() -> Governance:
    """The governance file of these tests."""
    return load_governance(MINI)


def new_warehouse(url: str, governance: Governance) -> Engine:
    """A migrated warehouse under `governance`; a copy of one that this process has made before, where that can be."""
    fill = _fill_file if url.startswith("sqlite") else _fill_database
    if not fill(make_url(url), governance):
        migrated(url, governance).dispose()
    return open_engine(url, write=True)


def migrated(url: str, governance: Governance) -> Engine:
    """A warehouse under `governance`, which was migrated, or created, for this test alone."""
    engine = open_engine(url, write=True)
    apply_governance(engine, governance, key_fingerprint="fingerprint", bins=all_bins(), now=lambda: NOW)
    return engine


_FILES: dict[str, bytes] = {}
"""Governance → a SQLite warehouse."""

_DATABASES: dict[tuple[int | None, str], str] = {}
"""Port of a server and governance → name of a PostgreSQL warehouse, which goes with the server."""


def _fill_file(url: URL, governance: Governance) -> bool:
    """Whether there was no file yet and a copy was put there."""
    path, key = Path(str(url.database)), governance.model_dump_json()
    if path.exists():
        return False
    if key not in _FILES:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "warehouse.db"
            engine = migrated(f"sqlite:///{made}", governance)
            with engine.connect() as connection:
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            engine.dispose()
            _FILES[key] = made.read_bytes()
    path.write_bytes(_FILES[key])
    return True


def _fill_database(url: URL, governance: Governance) -> bool:
    """Whether the database was empty and the superuser's, and a copy took its place: with the roles of the first."""
    if url.username != USER:
        return False
    with psycopg.connect(_plain(url)) as connection:
        tables = connection.execute("SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchone()
    if tables is not None:
        return False
    key = (url.port, governance.model_dump_json())
    with psycopg.connect(_plain(url.set(database="postgres")), autocommit=True) as connection:
        if key not in _DATABASES:
            name = f"template_{uuid.uuid4().hex[:12]}"
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            migrated(url.set(database=name).render_as_string(hide_password=False), governance).dispose()
            _DATABASES[key] = name
        names = (sql.Identifier(str(url.database)), sql.Identifier(_DATABASES[key]))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
    return True


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def writer(
    url: str,
    governance: Governance,
    *,
    run_epoch: int = 1,
    reach: Callable[[str], None] = lambda _moment: None,
    model_changed: Callable[[], None] = lambda: None,
) -> ChunkWriter:
    """A writer with connections of its own."""
    return ChunkWriter(
        open_engine(url, write=True),
        rules=subject_rules(governance),
        encrypt=lambda raw: b"sealed:" + raw,
        calendar=LocalCalendar(governance.timezone),
        run_epoch=run_epoch,
        now=lambda: NOW,
        failpoint=Failpoint(reach),
        retry_limit_s=5,
        model_changed=model_changed,
    )


def letter_writer(
    url: str, governance: Governance, *, run_epoch: int, reach: Callable[[str], None] = lambda _moment: None
) -> LetterWriter:
    """A writer of dead letters, with connections of its own."""
    return LetterWriter(
        open_engine(url, write=True),
        rules=subject_rules(governance),
        encrypt=lambda raw: b"sealed:" + raw,
        calendar=LocalCalendar(governance.timezone),
        run_epoch=run_epoch,
        now=lambda: NOW,
        failpoint=Failpoint(reach),
        retry_limit_s=30,
    )


def partition(event_type: EventType, number: int = 0) -> PartitionKey:
    """A topic-partition of the tests' only cluster."""
    return PartitionKey("cluster", f"id-of-{event_type}", f"voc.{event_type}", number)


def chunk(
    governance: Governance,
    event_type: EventType,
    events: Sequence[Event],
    *,
    number: int = 0,
    first_offset: int = 0,
    offsets: Sequence[int] | None = None,
    next_offset: int | None = None,
    lost: int = 0,
) -> TaggedChunk:
    """Events as a tagged chunk; contract defaults fill what an event leaves out, tags come with the event."""
    n = len(events)
    offsets = list(range(first_offset + lost, first_offset + lost + n)) if offsets is None else list(offsets)
    added = {
        "customer_key": None,
        "hint_stage": None,
        "hint_department": None,
        "stage": "deliver",
        "department": "logistics",
        "topic": "",
        "tag_method": "hint",
        "tag_confidence": 1.0,
        "tag_words": None,
        "sentiment": None,
        "segment_1": "SP",
        "segment_2": "",
        "segment_3": "",
    }
    names = [name for name in fields(event_type) if name != "customer_id"]
    filled = {**defaults(event_type), "source": "test", **added}
    columns = {name: [entry.get(name, filled.get(name)) for entry in events] for name in (*names, *added)}
    versions = {"ticket": ticket_versions, "survey": survey_versions}.get(event_type)
    return TaggedChunk(
        partition=partition(event_type, number),
        first_offset=first_offset,
        next_offset=first_offset + lost + n if next_offset is None else next_offset,
        lost=lost,
        event_type=event_type,
        taxonomy_version=governance.version,
        model_version=None,
        offsets=offsets,
        columns=columns,
        event_keys=[_digest(event_type, entry["event_id"]) for entry in events],
        content_digests=[_digest(*sorted(map(str, entry.items()))) for entry in events],
        contributions=Measurer(governance).contributions(event_type, columns),
        subjects=versions(columns) if versions else [[] for _ in events],
        dead=[],
        dropped=[],
        raw=[repr(dict(entry)).encode() for entry in events],
    )


def _digest(*parts: str) -> bytes:
    return blake2b("\x1f".join(parts).encode(), digest_size=16).digest()


CONTENT: tuple[Table, ...] = (event, ticket, survey_answer, survey_response, customer_day, measure)
"""Tables that must not depend on how their events came in."""


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of every content table, sorted, without provenance."""
    with engine.connect() as connection:
        return {table.name: _rows(connection, table) for table in CONTENT}


def _rows(connection: Connection, table: Table) -> list[tuple[Any, ...]]:
    columns = [column for column in table.columns if column.name not in PROVENANCE]
    rows = [tuple(row) for row in connection.execute(select(*columns))]
    return sorted(rows, key=repr)


def books_that_fail(engine: Engine) -> list[str]:
    """Comparisons of reconcile that fail."""
    return [
        f"{check.what} {check.where} {check.expected}≠{check.found}"
        for check in reconcile(engine)
        if not check.balances
    ]


def partition_tables(engine: Engine) -> set[str]:
    """Names of the tables that are partitions of others."""
    if engine.dialect.name != "postgresql":
        return set()
    with engine.connect() as connection:
        return set(connection.execute(text("SELECT relname FROM pg_class WHERE relispartition")).scalars())


def table_names(engine: Engine) -> set[str]:
    """Names of the tables that are there."""
    return set(inspect(engine).get_table_names())
