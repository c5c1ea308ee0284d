"""The ledger as the Kafka source and the run see it: positions, run epochs, and which topics stand behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine, Row, insert, select, update

from vocbeam.schemas.errors import TopicChanged
from vocbeam.schemas.records import PartitionKey
from vocbeam.sinks.engine import shared_engine
from vocbeam.sinks.retries import with_retries
from vocbeam.sinks.tables import ingest_ledger, run_epoch


class WarehouseLedger:
    """Reads positions from `ingest_ledger`; satisfies `schemas.records.Ledger`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def positions(self, partitions: Collection[PartitionKey]) -> dict[PartitionKey, int | None]:
        """`next_offset` of topic-partitions, or None where they have no row; one query, however many.

        Raises TopicChanged when the ledger knows a topic under another cluster or topic id: its offsets would mean
        other records; SinkUnavailable when the retry limit is reached.
        """
        if not partitions:
            return {}
        asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for key in partitions:
            asked[key.topic].add((key.cluster_id, key.topic_id))
        positions: dict[PartitionKey, int | None] = dict.fromkeys(partitions)
        for row in with_retries("to tell the ledger's positions", partial(self._rows, list(asked))):
            for cluster_id, topic_id in asked[row.topic] - {(row.cluster_id, row.topic_id)}:
                raise TopicChanged(
                    f"the warehouse has read {row.topic} as topic id {row.topic_id} of cluster {row.cluster_id}, "
                    f"but Kafka now serves topic id {topic_id} of cluster {cluster_id}: the topic "
                    "was recreated or this is another cluster. Point vocbeam at the former cluster, give the new topic "
                    "another name (--topic-prefix), or start a new warehouse"
                )
            key = PartitionKey(row.cluster_id, row.topic_id, row.topic, row.partition)
            if key in positions:
                positions[key] = int(row.next_offset)
        return positions

    def _rows(self, topics: Sequence[str]) -> Sequence[Row[str, str, str, int, int]]:
        known = ingest_ledger.c
        query = select(known.cluster_id, known.topic_id, known.topic, known.partition, known.next_offset)
        with self._engine.connect() as connection:
            return connection.execute(query.where(known.topic.in_(topics))).all()


@dataclass(frozen=True)
class LedgerFactory:
    """Picklable recipe for a WarehouseLedger; the URL comes without a password (the driver's environment has it)."""

    warehouse_url: str

    def __call__(self) -> WarehouseLedger:
        return WarehouseLedger(shared_engine(self.warehouse_url))


def draw_run_epoch(engine: Engine, *, runner: str, host: str, vocbeam_version: str, now: Callable[[], int]) -> int:
    """Draws the fencing number of a new submission: from its first write on, lower ones are refused.

    Raises SinkUnavailable when the retry limit is reached.
    """

    def draw() -> int:
        with engine.begin() as connection:
            epoch: int = connection.execute(
                insert(run_epoch)
                .values(started_at=now(), runner=runner, host=host, vocbeam_version=vocbeam_version)
                .returning(run_epoch.c.run_epoch)
            ).scalar_one()
        return epoch

    # An outcome that is unknown may leave a number behind that nobody uses.
    return with_retries("a run its number", draw)


def close_run_epoch(engine: Engine, epoch: int, outcome: str, now: Callable[[], int]) -> None:
    """Records how and when a submission ended."""
    with engine.begin() as connection:
        connection.execute(
            update(run_epoch).where(run_epoch.c.run_epoch == epoch).values(ended_at=now(), outcome=outcome)
        )
