"""Whatever the order, the cuts, the repetitions and the number of writers: the same warehouse, and the right one."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from tests.support import oracle
from tests.support.company import Sent, company_events
from tests.support.warehouse import CONTENT, NOW, contents, mini, new_warehouse, partition, writer
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES, PartitionKey, RawChunk, RawGroup
from vocbeam.schemas.registry import FileRegistry
from vocbeam.sinks.reconcile import reconcile
from vocbeam.sinks.tables import dead_letter, event_key, ingest_ledger
from vocbeam.transforms.decode import Limits, Schemas, decode_chunk
from vocbeam.transforms.steps import ChunkTagger

GOVERNANCE = mini()
KEY = bytes(range(32))
PARTITIONS = 3
OF_TOPIC = {f"voc.{event_type}": event_type for event_type in EVENT_TYPES}

Log = dict[PartitionKey, list[bytes]]
"""The messages of each topic-partition; the offset is the position."""


@dataclass(frozen=True)
class Installation:
    """An empty warehouse and a schema registry, used by one example after another."""

    url: str
    engine: Engine
    registry: FileRegistry

    def empty(self) -> None:
        """Forget all that was loaded, the ledger too."""
        with self.engine.begin() as connection:
            for table in (*CONTENT, event_key, dead_letter, ingest_ledger):
                connection.execute(delete(table))

    def load(self, groups: Sequence[RawGroup]) -> None:
        """Decode, tag and write groups one after another, as the main job's steps do."""
        schemas, limits, tagger = Schemas(self.registry), Limits.of(GOVERNANCE), ChunkTagger(GOVERNANCE, KEY)
        sink = writer(self.url, GOVERNANCE)
        for group in groups:
            decoded = tuple(
                decode_chunk(chunk, OF_TOPIC[chunk.partition.topic], schemas, limits, lambda: NOW) for chunk in group
            )
            sink.write(tagger.tag(decoded)[0])
        sink.close()

    def load_with_two_writers(self, groups: Sequence[Sequence[RawGroup]]) -> None:
        """Each writer has its own partitions, connections and thread; they meet in tickets, customers and cells."""
        errors: list[BaseException] = []
        start = threading.Barrier(len(groups))

        def work(mine: Sequence[RawGroup]) -> None:
            start.wait()
            try:
                self.load(mine)
            except BaseException as error:  # noqa: BLE001 - raised by the main thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(mine,)) for mine in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        if errors:
            raise errors[0]


@pytest.fixture
def installation(warehouse_url: str, tmp_path: Path) -> Installation:
    registry = FileRegistry(tmp_path / "registry")
    for event_type in EVENT_TYPES:
        registry.register(contracts.subject(f"voc.{event_type}"), contracts.schema_text(event_type))
    return Installation(warehouse_url, new_warehouse(warehouse_url, GOVERNANCE), registry)


def message(sent: Sent, registry: FileRegistry) -> bytes:
    event_type, event = sent
    known = registry.latest(contracts.subject(f"voc.{event_type}"))
    assert known is not None
    return wire.encode(event_type, event, known.schema_id)


def undisturbed(events: Sequence[Sent], registry: FileRegistry) -> RawGroup:
    """Each event once, one chunk an event type, all in one transaction."""
    log: Log = {}
    for sent in events:
        log.setdefault(partition(sent[0]), []).append(message(sent, registry))
    return tuple(RawChunk(key, 0, len(values), list(range(len(values))), [*values]) for key, values in log.items())


def scattered(events: Sequence[Sent], registry: FileRegistry, chance: random.Random) -> Log:
    """Each event twice, in any order, over random partitions of its topic."""
    twice = [*events, *events]
    chance.shuffle(twice)
    log: Log = {partition(event_type, number): [] for event_type in EVENT_TYPES for number in range(PARTITIONS)}
    for sent in twice:
        log[partition(sent[0], chance.randrange(PARTITIONS))].append(message(sent, registry))
    return log


def cut(log: Log, longest: int, chance: random.Random) -> Iterator[RawGroup]:
    """Groups of one to four chunks of at most `longest` records, partitions in random turns."""
    positions = dict.fromkeys(log, 0)
    while waiting := [key for key, position in positions.items() if position < len(log[key])]:
        group = []
        for key in chance.sample(waiting, min(len(waiting), chance.randint(1, 4))):
            start = positions[key]
            end = positions[key] = min(len(log[key]), start + chance.randint(1, longest))
            group.append(RawChunk(key, start, end, list(range(start, end)), [*log[key][start:end]]))
        yield tuple(group)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    # A seed can't be made simpler, so a failure is shown at once.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 8),
    longest=st.sampled_from([1, 7, 1_000]),
    two_writers=st.booleans(),
)
def test_load__any_order_any_cuts_any_writers(
    installation: Installation, seed: int, size: int, longest: int, two_writers: bool
) -> None:
    chance = random.Random(seed)
    events = company_events(seed, size)
    installation.empty()
    installation.load([undisturbed(events, installation.registry)])
    at_once = contents(installation.engine)

    installation.empty()
    log = scattered(events, installation.registry, chance)
    if two_writers:
        halves: list[Log] = [{}, {}]
        for key, values in log.items():
            halves[chance.randrange(2)][key] = values
        installation.load_with_two_writers([list(cut(half, longest, chance)) for half in halves])
    else:
        installation.load(list(cut(log, longest, chance)))

    found = oracle.found(installation.engine)
    expected = oracle.expected(events, KEY, oracle.bins_of_warehouse(installation.engine))
    for table, rows in expected.items():
        assert found[table] == rows, table
    for table_name, stored in contents(installation.engine).items():
        assert stored == at_once[table_name], table_name
    checks = reconcile(installation.engine)
    assert [check for check in checks if not check.balances] == []
    with installation.engine.connect() as connection:
        books = connection.execute(ingest_ledger.select()).mappings().all()
    assert sum(row["loaded"] for row in books) == sum(row["duplicates"] for row in books) == len(events)
    assert {row["topic"]: 0 for row in books if row["dead_lettered"]} == {}
