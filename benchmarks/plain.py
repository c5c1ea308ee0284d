"""The main job's work as a plain loop by hand: poll, decode, redact, tag, deduplicate, and the same rows by COPY.

What it leaves out is what vocbeam promises beyond the rows: validation and dead letters, the ledger's claim and trim,
digests of the content, contributions that can be taken back, erasure, fencing, governed restarts. It keeps tickets and
answers in memory, so it can't be stopped and started again. Redaction, tagging rules, text model and the rules of
tickets and answers are vocbeam's own; PostgreSQL only.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import Any

import psycopg
from fastavro import schemaless_reader
from sqlalchemy.engine import make_url

from benchmarks.floor import Watch, poll_all
from vocbeam.deploy.garbage import collect_seldom
from vocbeam.pipelines.job_steps import WarehouseModels
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.governance import TEXT_FIELDS, parse_governance
from vocbeam.schemas.records import EVENT_TYPES, Columns, EventType
from vocbeam.schemas.secrets import pseudonym_key, pseudonym_source
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.contributions import AS_REPORTED, Delta, add_booked
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.grains import cell_key
from vocbeam.sinks.tables import metadata
from vocbeam.sinks.writer import COMMON, EVENT_COLUMNS
from vocbeam.transforms.measures import Measurer
from vocbeam.transforms.pseudonym import Pseudonyms
from vocbeam.transforms.redact import Redactor, phone_regions
from vocbeam.transforms.steps import SUBJECT_VERSIONS
from vocbeam.transforms.subject_rules import subject_rules
from vocbeam.transforms.tag import Tagger

TRANSACTION_RECORDS = 20_000
"""As many as the main job takes into one transaction."""


class Loop:
    """One connection, one transaction for every batch that was polled."""

    def __init__(self, url: str, governance_text: str, key: bytes) -> None:
        governance = parse_governance(governance_text)
        engine = open_engine(url)
        models = WarehouseModels(engine)
        version = models.active_model()
        self._tagger = Tagger(governance, None if version is None else models.load_model(version))
        engine.dispose()
        self._redactor = Redactor(phone_regions(governance.timezone))
        self._pseudonyms = Pseudonyms(key)
        self._measurer = Measurer(governance)
        self._rules = {rule.table: rule for rule in subject_rules(governance)}
        self._calendar = LocalCalendar(governance.timezone)
        self._versions: dict[str, dict[bytes, list[Any]]] = {table: {} for table in self._rules}
        self._booked: dict[bytes, list[Any]] = {}
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain)
        self._cursor = self._connection.cursor()
        for table in ("event_key", "customer_day", "measure", *self._rules):
            self._cursor.execute(
                f"CREATE TEMPORARY TABLE plain_{table} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
            )
        self._connection.commit()

    def load(self, batch: Sequence[tuple[EventType, int, int, list[dict[str, Any]]]]) -> None:
        """One transaction: (event type, number of the topic-partition, first offset, decoded events) of each part."""
        now = time.time_ns() // 1_000
        seen: Counter[tuple[Any, ...]] = Counter()
        cells: Delta = {}
        touched: dict[str, set[bytes]] = defaultdict(set)
        for event_type, ledger_id, first_offset, records in batch:
            columns: Columns = {name: [r[name] for r in records] for name in contracts.fields(event_type)}
            keys = self._pseudonyms.event_keys(event_type, columns)
            self._copy("plain_event_key", ("event_key", "content_digest", "loaded_at"), zip(keys, keys, repeat(now)))
            self._cursor.execute(
                "INSERT INTO event_key SELECT * FROM plain_event_key ON CONFLICT DO NOTHING RETURNING event_key"
            )
            if len(self._cursor.fetchall()) != len(keys):
                raise SystemExit("the events of the benchmark have no duplicates, but some were there already")
            self._cursor.execute("TRUNCATE plain_event_key")
            columns["customer_key"] = self._pseudonyms.customer_keys(columns.pop("customer_id"))
            for name in TEXT_FIELDS.get(event_type, ()):
                columns[name] = self._redactor.redact_all(columns[name])
            columns["hint_stage"], columns["hint_department"] = columns["journey_stage"], columns["department"]
            columns |= self._tagger.tag(event_type, columns).columns
            own = EVENT_COLUMNS[event_type]
            self._copy(
                "event",
                (
                    "ledger_id", "kafka_offset", "event_key", "event_type", *COMMON, *own, "taxonomy_version",
                    "model_version", "loaded_at",
                ),
                zip(
                    repeat(ledger_id), range(first_offset, first_offset + len(records)), keys, repeat(event_type),
                    *(columns[name] for name in (*COMMON, *own.values())), repeat(self._tagger.taxonomy_version),
                    repeat(self._tagger.model_version), repeat(now),
                ),
            )  # fmt: skip
            add_booked(cells, [self._measurer.contributions(event_type, columns)])
            day = self._calendar.day
            place = (columns[name] for name in ("event_time", "stage", "department", "customer_key"))
            seen.update((day(at), stage, owner, who) for at, stage, owner, who in zip(*place, strict=True) if who)
            if event_type in SUBJECT_VERSIONS:
                for versions in SUBJECT_VERSIONS[event_type](columns):
                    for table, subject, version in versions:
                        self._versions[table].setdefault(subject, []).append(version)
                        touched[table].add(subject)
        for table, subjects in touched.items():
            self._fold(table, subjects, cells)
        self._add("customer_day", ("n",), [(*key, n) for key, n in seen.items()])
        rows = [
            (*cell_key(cell, AS_REPORTED), *sums, *self._calendar.day_and_hour(cell[0]))
            for cell, sums in cells.items()
            if any(sums)
        ]
        self._add("measure", ("n", "weight", "weight_sq", "total"), rows)
        self._connection.commit()

    def _fold(self, table: str, subjects: Iterable[bytes], cells: Delta) -> None:
        rule, versions = self._rules[table], self._versions[table]
        rows = []
        for subject in sorted(subjects):
            folded = rule.fold(versions[subject])
            for made in self._booked.pop(subject, ()):
                _book(cells, made, -1)
            for made in folded.contributions:
                _book(cells, made, 1)
            self._booked[subject] = folded.contributions
            rows.append((subject, "[]", "[]", *folded.values))
        columns = ("subject_key", "versions", "contributions", *rule.columns)
        self._copy(f"plain_{table}", columns, rows)
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns[1:])
        self._cursor.execute(
            f"INSERT INTO {table} SELECT * FROM plain_{table} ON CONFLICT (subject_key) DO UPDATE SET {changed}"
        )

    def _add(self, table: str, sums: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        columns = [column.name for column in metadata.tables[table].columns]
        key = ", ".join(column.name for column in metadata.tables[table].primary_key)
        changed = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
        self._copy(f"plain_{table}", columns, rows)
        self._cursor.execute(
            f"INSERT INTO {table} SELECT * FROM plain_{table} ON CONFLICT ({key}) DO UPDATE SET {changed}"
        )

    def _copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        with self._cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def _book(cells: Delta, made: Sequence[Any], sign: int) -> None:
    weight = made[10]
    sums = cells.setdefault(made[:10], [0, 0, 0, 0])
    for i, value in enumerate((1, weight, weight * weight, made[11])):
        sums[i] += sign * value


def main(bootstrap: str, prefix: str, url: str, governance: str, home: str) -> None:
    """Prints what `benchmarks.floor` prints, of the whole loop."""
    collect_seldom()
    loop = Loop(url, Path(governance).read_text(encoding="utf-8"), pseudonym_key(pseudonym_source(Path(home)).load()))
    types = {contracts.topic(event_type, prefix): event_type for event_type in EVENT_TYPES}
    schemas = {event_type: contracts.reader_schema(event_type) for event_type in EVENT_TYPES}
    numbers: dict[Any, int] = {}
    watch, pending = Watch(), 0
    batch: list[tuple[EventType, int, int, list[dict[str, Any]]]] = []
    for partition, records in poll_all(bootstrap, prefix):
        event_type = types[partition.topic]
        decoded = []
        for record in records:
            stream = BytesIO(record.value)
            stream.seek(wire.HEADER.size)
            decoded.append(schemaless_reader(stream, schemas[event_type], None))
        batch.append((event_type, numbers.setdefault(partition, len(numbers) + 1), records[0].offset, decoded))
        pending += len(records)
        if pending >= TRANSACTION_RECORDS:
            loop.load(batch)
            watch.done(pending)
            batch, pending = [], 0
    if pending:
        loop.load(batch)
        watch.done(pending)
    watch.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
