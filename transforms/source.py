"""The Kafka source: a splittable DoFn whose elements are shards and whose output is groups of raw chunks.

The ledger alone decides where reading starts. The restriction carries liveness only, so a retry, a restored checkpoint
or a zombie may read again what is already written, but none can leave anything out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp
from kafka import TopicPartition
from kafka.errors import CoordinatorNotAvailableError, KafkaError
from kafka.structs import OffsetAndMetadata

from vocbeam.schemas.errors import SourceError, TopicChanged
from vocbeam.schemas.records import Ledger, PartitionKey, RawChunk, RawGroup
from vocbeam.transforms.chunking import Polled, Shard, ShardWatermark, cut_chunks, pack_groups, start_of
from vocbeam.transforms.consumers import Fetched, LogTruncated, open_consumer
from vocbeam.transforms.group_coder import emits_groups
from vocbeam.transforms.kafka_settings import SourceConfig, connect_admin, discover, edge_offsets, topic_ids
from vocbeam.transforms.progress import PROGRESS, Progress

log = logging.getLogger(__name__)

UNCONFIRMED_SECONDS = 30.0
"""A partition whose groups get no answer and whose ledger row stands still for so long is read again from its row."""


def now_micros() -> int:
    """The present in UTC microseconds."""
    return time.time_ns() // 1_000


@dataclass(slots=True)
class _Partition:
    """One open topic-partition: everything before `next_offset` was emitted and not refused.

    `awaited` holds, in order, the end and the number of records of what was emitted and is still being written. Reading
    began at `began`, which counts for as long as the ledger has no row.
    """

    key: PartitionKey
    began: int
    next_offset: int
    lost: int
    stop_at: int | None
    idle: bool = False
    awaited: deque[tuple[int, int]] = field(default_factory=deque)
    unanswered_since: float | None = None
    ledger_then: int | None = None

    def finished(self) -> bool:
        """Whether reading of this partition ends here."""
        return self.stop_at is not None and self.next_offset >= self.stop_at

    def position(self) -> int:
        """Where the consumer goes on: behind what Kafka no longer has."""
        return self.next_offset + self.lost


class ShardReader:
    """Reads the topic-partitions of one shard with one consumer; used by one thread at a time.

    Raises SourceError when Kafka can't be read, TopicChanged when a topic is not the one that the ledger knows, and
    what the ledger raises.
    """

    def __init__(
        self,
        config: SourceConfig,
        shard: Shard,
        ledger: Ledger,
        *,
        progress: Progress = PROGRESS,
        now: Callable[[], int] = now_micros,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now` gives UTC microseconds, `monotonic` seconds of a clock that never goes back."""
        self._config = config
        self._shard = shard
        self._ledger = ledger
        self._progress = progress
        self._now = now
        self._monotonic = monotonic
        self._watermark = ShardWatermark()
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._reopen: set[TopicPartition] = set()
        self._published: dict[TopicPartition, int] = {}
        self._publish_due = monotonic() + config.publish_seconds
        self._refresh_due = self._seen_at = monotonic()
        with ExitStack() as on_failure:
            self._admin = connect_admin(config)
            on_failure.callback(self._admin.close)
            self._consumer = open_consumer(config)
            on_failure.callback(self._consumer.close)
            self._refresh()
            on_failure.pop_all()

    @property
    def positions(self) -> dict[PartitionKey, int]:
        """Where reading of each open topic-partition goes on."""
        return {partition.key: partition.next_offset for partition in self._partitions.values()}

    def finished(self) -> bool:
        """Whether the shard ends: a stop was requested, or all up to `stop_at` is written."""
        return self._progress.stop_requested() or (self.exhausted() and not self._awaiting())

    def exhausted(self) -> bool:
        """Whether all partitions have been read up to their `stop_at`."""
        return self._config.stop_at is not None and all(p.finished() for p in self._partitions.values())

    def _awaiting(self) -> bool:
        return any(partition.awaited for partition in self._partitions.values())

    def watermark(self) -> int | None:
        """Monotone lower bound of the record timestamps still to come, in UTC microseconds; None while unknown."""
        return self._watermark.advance(
            {(tp.topic, tp.partition): p.idle for tp, p in self._partitions.items()}, self._now()
        )

    def groups(self) -> Iterator[tuple[RawGroup, int]]:
        """What is ready now, as groups with a timestamp in UTC microseconds: the oldest record's, but never late.

        Waits at most `idle_wait_seconds` for a first record. When the caller asks for the next group, the writer must
        have answered for this one or for the one before it, which it may still be writing: the answer is compared, and
        what it refused is read again.
        """
        self._progress.turn(self._shard.name)
        if self._reopen:
            # What is being written was read behind what was refused, and will be refused as well.
            yield from self.flush()
        self._refresh_if_due()
        self._publish_if_due()
        self._reopen_stale()
        fetched = self._poll()
        chunks: list[RawChunk] = []
        oldest = self._now()
        for tp, partition in self._partitions.items():
            if partition.finished():
                partition.idle = True
                self._progress.behind(partition.key, 0)
                continue
            polled = fetched.polled.get(tp) or Polled([], [], [], partition.position())
            highwater = self._consumer.highwater(tp)
            partition.idle = not polled.offsets and highwater is not None and polled.next_offset >= highwater
            if partition.stop_at is not None and polled.next_offset > partition.stop_at:
                polled = polled.before(max(partition.stop_at, partition.position()))
            timestamps = [timestamp for timestamp in polled.timestamps if timestamp >= 0]
            if timestamps:
                oldest = min(oldest, min(timestamps) * 1_000)
                self._watermark.observe((tp.topic, tp.partition), max(timestamps) * 1_000, self._now())
            end = partition.stop_at if partition.stop_at is not None else highwater
            self._progress.behind(partition.key, max(0, end - polled.next_offset) if end is not None else 0)
            chunks.extend(cut_chunks(partition.key, partition.next_offset, partition.lost, polled, self._config.bounds))
        if chunks and not self._confirm(chunks):
            return
        pending = list(pack_groups(chunks, self._config.bounds))
        for index, group in enumerate(pending):
            yield group, oldest
            if not self._settle(group):
                # The rest was cut from positions that no longer hold.
                unread = {chunk.partition for later in pending[index + 1 :] for chunk in later}
                self._reopen.update(TopicPartition(key.topic, key.partition) for key in unread)
                return

    def close(self) -> None:
        """Publishes what is committed and closes the connections. May be called twice."""
        self._publish()
        self._consumer.close()
        self._admin.close()

    def flush(self) -> Iterator[tuple[RawGroup, int]]:
        """An empty group, if anything emitted is still being written: it is processed once that has been answered.

        Emitted at the end of a bundle, which must hold the answers to all its groups.
        """
        if not self._awaiting():
            return
        yield (), self._now()
        self._take_answers()
        unanswered = [partition for partition in self._partitions.values() if partition.awaited]
        positions = self._ledger.positions([p.key for p in unanswered if p.unanswered_since is None])
        for partition in unanswered:
            self._progress.read(sum(records for _, records in partition.awaited))
            partition.awaited.clear()
            if partition.unanswered_since is None:
                partition.unanswered_since = self._monotonic()
                partition.ledger_then = positions[partition.key]

    def _settle(self, group: RawGroup) -> bool:
        """Takes up what was emitted and the writer's answers until now; False when it left or skipped something."""
        records: Counter[PartitionKey] = Counter()
        for chunk in group:
            records[chunk.partition] += len(chunk.offsets)
        ended = False
        for key, end in {chunk.partition: chunk.next_offset for chunk in group}.items():
            partition = self._partitions[TopicPartition(key.topic, key.partition)]
            partition.next_offset, partition.lost = end, 0
            partition.awaited.append((end, records[key]))
            ended = ended or partition.finished()
        if ended:
            self._assign()
        return self._take_answers()

    def _take_answers(self) -> bool:
        accepted = True
        for tp, partition in self._partitions.items():
            answer = self._progress.answer(partition.key) if partition.awaited else None
            if answer is None:
                continue
            end, records = partition.awaited.popleft()
            self._progress.read(records)
            if answer == end:
                partition.unanswered_since = None
            else:
                log.info("%s: the ledger stands at %d instead of %d; reading goes on there", partition.key, answer, end)
                self._reopen.add(tp)
                accepted = False
        return accepted

    def _reopen_stale(self) -> None:
        """Opens again what was refused, fell out of range, was advanced by others, or is never written."""
        for tp, partition in self._partitions.items():
            committed = self._progress.committed_offset(partition.key)
            if committed is not None and committed > partition.next_offset:
                self._reopen.add(tp)
            since = partition.unanswered_since
            if since is not None and self._monotonic() - since > UNCONFIRMED_SECONDS:
                # Without fusion answers come late or from elsewhere: only a ledger row that stands still is a refusal.
                position = self._ledger.positions([partition.key])[partition.key]
                if position == partition.ledger_then and position != partition.next_offset:
                    self._reopen.add(tp)
                partition.unanswered_since = None
        if self._reopen:
            self._open([self._partitions[tp].key for tp in self._reopen if tp in self._partitions])
            self._reopen.clear()

    def _refresh_if_due(self) -> None:
        if self._monotonic() < self._refresh_due:
            return
        try:
            self._refresh()
        except KafkaError as error:
            self._bear(error)

    def _bear(self, error: KafkaError) -> None:
        """Lets Kafka be silent for a while; raises SourceError when that has lasted too long."""
        now = self._monotonic()
        outage = now - self._seen_at
        if outage > self._config.outage_seconds:
            raise SourceError(
                f"Kafka at {self._config.bootstrap} has not answered for {outage:.0f} s; check the brokers"
            ) from error
        if now >= self._refresh_due:
            log.warning("Kafka at %s does not answer: %s", self._config.bootstrap, type(error).__name__)
            self._refresh_due = now + self._config.metadata_refresh_seconds

    def _confirm(self, chunks: Sequence[RawChunk]) -> bool:
        """Whether what was polled came from the topics that are open; if that can't be told, it will be polled again.

        A fetch names its topic and not the topic's id, so one that was deleted and made anew is read on as if nothing
        had happened. The ids are asked for after the poll: none ever comes back, so one that is there was there before.
        """
        polled = {chunk.partition for chunk in chunks}
        try:
            ids = topic_ids(self._admin, {key.topic for key in polled})
        except KafkaError as error:
            self._bear(error)
            # What the consumer has fetched before would be polled and put back as fast as the processor can.
            self._progress.sleep(self._config.idle_wait_seconds)
        else:
            if all(ids.get(key.topic) == key.topic_id for key in polled):
                return True
            self._refresh_due = self._monotonic()
        self._assign()
        return False

    def _assign(self) -> None:
        """Lets the consumer read all that is open and not finished, each from where its last group ended."""
        self._consumer.assign({tp: p.position() for tp, p in self._partitions.items() if not p.finished()})

    def _refresh(self) -> None:
        """Discovers the shard's partitions and opens those that are new, or that now belong to another topic id."""
        found = {
            tp: key
            for tp, key in discover(self._admin, self._config.topics).items()
            if self._shard.owns(self._config.topics, tp.topic, tp.partition)
        }
        stop_at = self._config.stop_at
        if stop_at is not None:
            found = {tp: key for tp, key in found.items() if (tp.topic, tp.partition) in stop_at}
            missing = [
                f"{topic}[{partition}]"
                for topic, partition in stop_at
                if self._shard.owns(self._config.topics, topic, partition)
                and TopicPartition(topic, partition) not in found
            ]
            if missing:
                raise SourceError(
                    f"{', '.join(missing)} vanished while being read up to the end offsets found at start"
                )
        for tp in set(self._partitions) - set(found):
            log.warning("%s no longer exists; it is read again should it come back", self._partitions.pop(tp).key)
        self._open([key for tp, key in found.items() if tp not in self._partitions or self._partitions[tp].key != key])
        self._reopen.update(self._set_back())
        # librdkafka waits behind the end of a log that has become shorter, and says nothing.
        ends = edge_offsets(self._admin, self._partitions)
        self._reopen.update(tp for tp, (_, end) in ends.items() if end < self._partitions[tp].next_offset)
        self._seen_at = self._monotonic()
        self._refresh_due = self._seen_at + self._config.metadata_refresh_seconds

    def _set_back(self) -> list[TopicPartition]:
        """Where the ledger stands before what this reader has had committed: an older backup has taken its place.

        A writer would notice with the next record; a partition in which none comes would stay incomplete.
        """
        told = {
            tp: partition
            for tp, partition in self._partitions.items()
            if partition.unanswered_since is None
            and not partition.awaited
            and self._progress.committed_offset(partition.key) is not None
        }
        positions = self._ledger.positions([partition.key for partition in told.values()])
        return [
            tp
            for tp, partition in told.items()
            if (position := positions[partition.key]) is None or position < partition.next_offset
        ]

    def _open(self, keys: list[PartitionKey]) -> None:
        """Resolves each partition's start from the ledger and seeks the consumer there."""
        opening = {TopicPartition(key.topic, key.partition): key for key in keys}
        # Before the ends: an older run may still be loading what comes, and its ledger must not seem beyond them.
        positions = self._ledger.positions(keys)
        known = {tp: positions[key] for tp, key in opening.items()}
        try:
            edges = edge_offsets(self._admin, opening)
        except KafkaError as error:
            raise SourceError(
                f"Kafka at {self._config.bootstrap} gave no offsets of {', '.join(map(str, keys))}: "
                f"{type(error).__name__}"
            ) from error
        starts = {tp: start_of(key, self._start_from(tp, key, known[tp]), *edges[tp]) for tp, key in opening.items()}
        for tp, start in starts.items():
            self._progress.opened(opening[tp], known[tp])
            stop_at = self._config.stop_at[tp.topic, tp.partition] if self._config.stop_at is not None else None
            self._partitions[tp] = _Partition(opening[tp], start.first_offset, start.first_offset, start.lost, stop_at)
        self._assign()
        for tp, start in starts.items():
            log.info("shard %d of %d reads %s from %d on", *self._shard, opening[tp], start.seek_to)
            if start.lost:
                log.error("%s: Kafka no longer has %d offsets from %d on", opening[tp], start.lost, start.first_offset)

    def _start_from(self, tp: TopicPartition, key: PartitionKey, position: int | None) -> int | None:
        """The ledger's position or, before the first commit, where this reader has begun: what Kafka has deleted since
        is lost. After a commit, a ledger without a row was set back, and all is read again.
        """
        opened = self._partitions.get(tp)
        uncommitted = self._progress.committed_offset(key) is None
        if position is None and uncommitted and opened is not None and opened.key == key:
            return opened.began
        return position

    def _poll(self) -> Fetched:
        try:
            fetched = self._consumer.poll(self._config.bounds, self._config.idle_wait_seconds)
        except LogTruncated as error:
            raise self._truncated(error) from error
        # Deleted or truncated under us: which one, the offsets tell when the partition is opened again.
        self._reopen.update(fetched.gone)
        return fetched

    def _truncated(self, error: LogTruncated) -> TopicChanged:
        with suppress(KafkaError):
            # Where a topic was made anew, the ledger finds that out and says so; a silent Kafka doesn't tell.
            self._refresh()
        names = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in sorted(error.partitions))
        return TopicChanged(
            f"{names}: the brokers dropped records that were already read (unclean leader election, or a log set back "
            "to an older copy). Compare the warehouse with the source, then read the topic under another name "
            "(--topic-prefix) or into a new warehouse"
        )

    def _publish_if_due(self) -> None:
        if self._monotonic() >= self._publish_due:
            self._publish()

    def _publish(self) -> None:
        """Publishes committed positions under the group's name; failing to do so harms only those who look at lag."""
        self._publish_due = self._monotonic() + self._config.publish_seconds
        committed = {tp: self._progress.committed_offset(p.key) for tp, p in self._partitions.items()}
        changed = {tp: at for tp, at in committed.items() if at is not None and self._published.get(tp) != at}
        if self._config.group_id is None or not changed:
            return
        try:
            results = self._admin.alter_group_offsets(
                self._config.group_id, {tp: OffsetAndMetadata(at, "", None) for tp, at in changed.items()}
            )
        except KafkaError as error:
            # A young broker creates its group coordinator at the first call; the next one finds it.
            level = logging.INFO if isinstance(error, CoordinatorNotAvailableError) else logging.WARNING
            log.log(level, "offsets of group %s are not published: %s", self._config.group_id, type(error).__name__)
            return
        for tp, result in results.items():
            if result.errno == 0:
                self._published[tp] = changed[tp]
            else:
                log.warning("offset of %s[%d] is not published: %s", tp.topic, tp.partition, result.__name__)


class ShardTracker(RestrictionTracker):
    """Restriction: whether the shard still reads. `try_claim(False)` ends it; only a self-checkpoint splits it.

    A split by the runner would make two readers of the same shard, so every fraction but 0 is declined.
    """

    def __init__(self, alive: bool) -> None:
        self._alive = alive

    def current_restriction(self) -> bool:
        """Whether this part of the shard still reads."""
        return self._alive

    def try_claim(self, more: bool) -> bool:
        """Whether to read on: not after a checkpoint, and not when there is no more to read."""
        if not more:
            self._alive = False
        return self._alive

    def try_split(self, fraction_of_remainder: float) -> tuple[bool, bool] | None:
        """Hands the shard over to the next bundle for fraction 0, declines any other."""
        if fraction_of_remainder != 0 or not self._alive:
            return None
        self._alive = False
        return False, True

    def check_done(self) -> bool:
        """Raises ValueError when the bundle left the shard neither ended nor handed over."""
        if self._alive:
            raise ValueError("the shard was left neither ended nor handed over to the next bundle")
        return True

    def current_progress(self) -> RestrictionProgress:
        """All or nothing: the backlog is reported by the readers, not by the restriction."""
        return RestrictionProgress(completed=float(not self._alive), remaining=float(self._alive))

    def is_bounded(self) -> bool:
        """A shard has no known end."""
        return False


class ShardRestrictions(RestrictionProvider):
    """Every shard starts alive and is never split further."""

    def initial_restriction(self, element: Shard) -> bool:
        """Alive."""
        return True

    def create_tracker(self, restriction: bool) -> ShardTracker:
        """Tracker of one bundle."""
        return ShardTracker(restriction)

    def restriction_size(self, element: Shard, restriction: bool) -> int:
        """Shards weigh the same."""
        return int(restriction)

    def truncate(self, element: Shard, restriction: bool) -> None:
        """A draining runner ends the shard: the ledger knows where to go on."""


_RESTRICTION = beam.DoFn.RestrictionParam(ShardRestrictions())
_WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


def _timestamped(group: RawGroup, timestamp: int, watermark: Any) -> TimestampedValue[RawGroup]:
    """A group at `timestamp` (UTC microseconds) or, if that is later, at the watermark."""
    at, known = Timestamp(micros=timestamp), watermark.current_watermark()
    return TimestampedValue(group, at if known is None else max(at, known))


@emits_groups
class _ReadShardFn(beam.DoFn):
    """Reads one shard for a bundle's time, hands it over, and keeps the consumer for the next bundle."""

    def __init__(self, config: SourceConfig, open_ledger: Callable[[], Ledger]) -> None:
        self._config = config
        self._open_ledger = open_ledger
        self._readers: dict[Shard, ShardReader] = {}

    def __reduce__(self) -> tuple[type[_ReadShardFn], tuple[SourceConfig, Callable[[], Ledger]]]:
        return _ReadShardFn, (self._config, self._open_ledger)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        shard: Shard,
        tracker: Any = _RESTRICTION,
        watermark: Any = _WATERMARK,
    ) -> Iterator[TimestampedValue[RawGroup]]:
        with ExitStack() as on_failure:
            # A failure downstream closes this generator, which must not leave a consumer behind.
            on_failure.callback(self._close, shard)
            if shard not in self._readers:
                self._readers[shard] = ShardReader(self._config, shard, self._open_ledger())
            reader = self._readers[shard]
            deadline = time.monotonic() + self._config.bundle_seconds
            while tracker.try_claim(not reader.finished()):
                records = 0
                for group, timestamp in reader.groups():
                    records += sum(len(chunk.offsets) for chunk in group)
                    yield _timestamped(group, timestamp, watermark)
                reached = reader.watermark()
                if reached is not None:
                    known = watermark.current_watermark()
                    at = Timestamp(micros=reached)
                    if known is None or at > known:
                        watermark.set_watermark(at)
                turn_ends = not records or time.monotonic() >= deadline
                if turn_ends or reader.exhausted():
                    yield from (_timestamped(*flush, watermark) for flush in reader.flush())
                if turn_ends:
                    tracker.defer_remainder(Duration(0 if records else self._config.idle_wait_seconds))
                    on_failure.pop_all()
                    return
            yield from (_timestamped(*flush, watermark) for flush in reader.flush())
            if not reader.finished():
                # The runner took a checkpoint: the shard goes on in another bundle.
                on_failure.pop_all()

    def teardown(self) -> None:
        for shard in list(self._readers):
            self._close(shard)

    def _close(self, shard: Shard) -> None:
        reader = self._readers.pop(shard, None)
        if reader is not None:
            reader.close()


@dataclass
class ReadChunks(beam.PTransform[PBegin, PCollection[RawGroup]]):
    """Reads Kafka topics: pipeline begin → RawGroup, timestamped by the record timestamp (UTC microseconds).

    All that one shard has ready is one group, bounded in records and bytes. Records come in offset order within a
    topic-partition, each range of offsets without a gap after the one before it, as long as the steps behind it are
    fused with it and tell `PROGRESS` what they committed. `open_ledger` is called in the worker, once a reader.
    """

    config: SourceConfig
    open_ledger: Callable[[], Ledger]

    def expand(self, begin: PBegin) -> PCollection[RawGroup]:
        """Shards, spread by a shuffle, then one splittable DoFn."""
        total = self.config.shards
        read = range(total) if self.config.read_shards is None else self.config.read_shards
        groups: PCollection[RawGroup] = (
            begin
            | "Shards" >> beam.Create([Shard(number, total) for number in read])
            | "ReadShard" >> beam.ParDo(_ReadShardFn(self.config, self.open_ledger))
        )
        return groups
