"""The least that any Python job over the same topics does: poll with kafka-python and decode with fastavro, no more."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from fastavro import schemaless_reader
from kafka import KafkaConsumer, TopicPartition

from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES

POLLED_RECORDS = 20_000
"""At most as many as the main job takes into one transaction."""


def poll_all(bootstrap: str, prefix: str) -> Iterator[tuple[TopicPartition, list[Any]]]:
    """Everything that the five topics hold when this is called, as the consumer delivers it."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="none", check_crcs=True
    )
    try:
        topics = [contracts.topic(event_type, prefix) for event_type in EVENT_TYPES]
        partitions = [TopicPartition(topic, n) for topic in topics for n in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        left = sum(ends.values()) - sum(consumer.beginning_offsets(partitions).values())
        while left:
            for partition, records in consumer.poll(timeout_ms=1_000, max_records=POLLED_RECORDS).items():
                yield partition, records
                left -= len(records)
    finally:
        consumer.close()


def peak_rss_mib() -> float:
    """Peak resident memory of this process alone; getrusage would count that of the process it was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


class Watch:
    """Clocks of a loop over all events, from now on."""

    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self._events = self._first_batch = 0
        self._first_ended = self._began

    def done(self, events: int) -> None:
        """Counts the events of a batch that has ended."""
        self._events += events
        if not self._first_batch:
            self._first_batch, self._first_ended = self._events, time.perf_counter()

    def report(self) -> None:
        """Prints, as JSON, events, seconds and CPU-seconds until now, and peak memory in MiB.

        `steady_events` and `steady_s` leave out what comes before the end of the first batch.
        """
        ended = time.perf_counter()
        result = {
            "events": self._events,
            "steady_events": self._events - self._first_batch,
            "steady_s": ended - self._first_ended,
            "reading_s": ended - self._began,
            "reading_cpu_s": time.process_time() - self._cpu_began,
            "rss_mib": peak_rss_mib(),
        }
        print(json.dumps(result))


def main(bootstrap: str, prefix: str) -> None:
    """Polls and decodes everything, and reports."""
    schemas = {contracts.topic(event_type, prefix): contracts.reader_schema(event_type) for event_type in EVENT_TYPES}
    watch = Watch()
    for partition, records in poll_all(bootstrap, prefix):
        schema = schemas[partition.topic]
        for record in records:
            stream = BytesIO(record.value)
            stream.seek(wire.HEADER.size)
            schemaless_reader(stream, schema, None)
        watch.done(len(records))
    watch.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
