"""A soak of the main job: a steady load for a long time, and a SIGKILL every few minutes; see docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
import fastavro
import numpy as np
import psutil
from confluent_kafka import KafkaError, KafkaException, Producer
from rich.console import Console
from sqlalchemy import Engine, func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import make_corpus
from benchmarks.markdown import about_lines, markdown
from benchmarks.throughput import (
    PROJECT,
    WAREHOUSES,
    Bench,
    broker_in,
    machine,
    postgres_server,
    run_process,
    server_cpu_s,
)
from vocbeam.deploy.broker import create_topics
from vocbeam.pipelines.produce import key_of
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.registry import FileRegistry
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import ingest_ledger
from vocbeam.transforms.event_files import read_events
from vocbeam.transforms.mapping import MappedEvent

PREFIX = "soak"
PARTITIONS = 4

FRESH_IDS = ("event_id", "ticket_id", "response_id")
"""What is new in each pass over the corpus: its tickets and answers are then others, its customers come back."""

PASS = b"~%06d"
"""How they end: with the number of the pass, always as long, so that it can be replaced in an encoded event."""

SENT_AT = 4_102_444_800_000_000
"""Time of an event, UTC microseconds, that stands for the present until it is sent: encoded as long as that."""

LINGER_MS = 5
"""Default of Kafka's own producer."""

FEED_S = 0.01
"""Between two looks at what is due to be sent."""

LOOK_S = 0.05
"""Between two looks at the ledger: freshness is overstated by at most so much."""

SAMPLE_S = 1.0
"""Between two looks at the memory."""

WARM_UP_S = 60.0
"""A younger process still fills its caches, so its memory doesn't count for the slope."""

DRAIN_S = 600.0
"""Longest wait, after the last event, until all of them are committed."""

STOP_S = 30.0
"""Longest wait for the end after SIGTERM."""

READY_S = 120.0
"""Longest wait, after the start, until it reads."""

TopicPartition = tuple[str, int]


def avro_long(value: int) -> bytes:
    """A whole number as Avro writes it."""
    written = BytesIO()
    fastavro.schemaless_writer(written, "long", value)
    return written.getvalue()


@dataclass(frozen=True, slots=True)
class Encoded:
    """An event as Kafka takes it, the key cut wherever the number of the pass comes; so are the parts of the value
    before and behind its time.
    """

    topic: str
    key: list[bytes]
    value: list[list[bytes]]

    @classmethod
    def of(cls, event: MappedEvent, topic: str, schema_id: int) -> Encoded:
        """Encodes an event once for all passes."""
        number = PASS % 0
        fresh = {name: f"{event.record[name]}{number.decode()}" for name in FRESH_IDS if name in event.record}
        renewed = MappedEvent(event.event_type, {**event.record, **fresh, "event_time": SENT_AT}, event.place)
        value = wire.encode(event.event_type, renewed.record, schema_id)
        return cls(
            topic, key_of(renewed).split(number), [part.split(number) for part in value.split(avro_long(SENT_AT))]
        )

    def sent(self, number: bytes, now: bytes) -> tuple[str, bytes, bytes]:
        """Topic, key and value of the event in this pass, as one that happens now."""
        return self.topic, number.join(self.key), now.join(number.join(part) for part in self.value)


class Feeder:
    """Sends the corpus again and again at a steady rate; knows when it sent what lies at which offset.

    It shares the processors with what it loads, so it does little: events are encoded before, librdkafka sends them.
    They happen when they are sent, as those of a live topic do: what is loaded together falls into the same minutes.
    """

    def __init__(
        self,
        bootstrap: str,
        corpus: Sequence[MappedEvent],
        home: Path,
        rate: float,
        prefix: str,
        partitions: int = PARTITIONS,
    ) -> None:
        """`rate` is in events a second, `partitions` those of a topic. No topics of this prefix may be there yet."""
        self._bootstrap, self._rate, self._partitions = bootstrap, rate, partitions
        registry = FileRegistry(home / "registry")
        topics = {event_type: contracts.topic(event_type, prefix) for event_type in EVENT_TYPES}
        create_topics(bootstrap, dict.fromkeys(topics.values(), partitions))
        routes = {
            event_type: (topic, registry.register(contracts.subject(topic), contracts.schema_text(event_type)))
            for event_type, topic in topics.items()
        }
        self._encoded = [Encoded.of(event, *routes[event.event_type]) for event in corpus]
        self.sent_at: dict[TopicPartition, array[float]] = {
            (topic, partition): array("d") for topic in topics.values() for partition in range(partitions)
        }
        """Monotonic seconds at which each offset was handed to the producer: nobody else writes these topics."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder")
        self._failure: Exception | None = None

    @property
    def sent(self) -> int:
        """Events so far."""
        return sum(map(len, self.sent_at.values()))

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Sends as long as the context; everything is delivered when it ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
        if self._failure is not None:
            raise SystemExit(f"the load could not be sent: {type(self._failure).__name__}") from self._failure

    def _feed(self) -> None:
        settings = {
            "bootstrap.servers": self._bootstrap, "enable.idempotence": True, "linger.ms": LINGER_MS,
            "delivery.report.only.error": True, "on_delivery": self._refused,
        }  # fmt: skip
        try:
            producer = Producer(settings)
            began, events = time.monotonic(), self._events()
            sent = 0
            while self._failure is None and not self._ended.wait(FEED_S):
                due = int((time.monotonic() - began) * self._rate)
                now = avro_long(time.time_ns() // 1_000)
                for number, event in islice(events, due - sent):
                    topic, key, value = event.sent(number, now)
                    partition = zlib.crc32(key) % self._partitions
                    self.sent_at[topic, partition].append(time.monotonic())
                    producer.produce(topic, value, key, partition)
                sent = due
                producer.poll(0)
            producer.flush()
        except Exception as error:  # noqa: BLE001 - raised again where the context ends
            self._failure = error

    def _refused(self, error: KafkaError, _message: object) -> None:
        self._failure = KafkaException(error)

    def _events(self) -> Iterator[tuple[bytes, Encoded]]:
        return ((number, event) for number in map(PASS.__mod__, count()) for event in self._encoded)


class Watcher:
    """Looks at the ledger all the time: how long after its sending is each event seen to be committed?"""

    def __init__(self, engine: Engine, feeder: Feeder, counts_from: float) -> None:
        """`counts_from` is in monotonic seconds: events that were sent before do not count."""
        self._engine, self._feeder, self._counts_from = engine, feeder, counts_from
        self._next = dict.fromkeys(feeder.sent_at, 0)
        self.freshness = array("f")
        """Seconds, one for each event that was seen."""

    def look(self) -> None:
        """Notes what was committed since the last look."""
        c = ingest_ledger.c
        with self._engine.connect() as connection:
            if not self._engine.dialect.has_table(connection, ingest_ledger.name):
                return
            rows = connection.execute(select(c.topic, c.partition, c.next_offset)).all()
        now = time.monotonic()
        for topic, partition, next_offset in rows:
            sent_at = self._feeder.sent_at[topic, partition]
            seen = sent_at[self._next[topic, partition] : next_offset]
            self.freshness.extend(now - at for at in seen if at >= self._counts_from)
            self._next[topic, partition] = next_offset

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Looks every LOOK_S as long as the context, and once more when it ends."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_S):
                self.look()

        thread = threading.Thread(target=look, name="watcher")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.look()


@dataclass
class Life:
    """One process of the main job, from its start to its end: (age in seconds, resident MiB)."""

    memory: list[tuple[float, float]] = field(default_factory=list)


class MainJob:
    """`vocbeam run` as a process, started again by us when it was killed."""

    def __init__(self, environment: dict[str, str], log: Path, beats: Path) -> None:
        """It appends to the file `log`, and touches a file in the folder `beats` whenever it has looked for events."""
        self._environment, self._log, self._beats = {**os.environ, **environment}, log, beats
        self.lives: list[Life] = []

    def start(self) -> None:
        """Starts it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vocbeam.pipelines.cli", "run", "--heartbeat", str(self._beats)],
                env=self._environment, cwd=PROJECT, stdout=log, stderr=log,
            )  # fmt: skip
        self._started = time.monotonic()
        self.lives.append(Life())

    def wait_until_it_reads(self) -> None:
        """Raises SystemExit where it has ended, or does not read within READY_S."""
        deadline = time.monotonic() + READY_S
        seen: set[int] = set()
        while len(seen) < 2:
            if time.monotonic() > deadline:
                raise SystemExit(f"the main job did not read within {READY_S:.0f} s of its start:\n{self._said()}")
            self.sample()
            # The first is written before there is a pipeline.
            seen |= {beat.stat().st_mtime_ns for beat in self._beats.glob("*")}
            time.sleep(LOOK_S)

    def sample(self) -> None:
        """Notes its memory; raises SystemExit where it has ended by itself."""
        if self._process.poll() is not None:
            raise SystemExit(f"the main job ended with {self._process.returncode}:\n{self._said()}")
        memory = psutil.Process(self._process.pid).memory_info().rss / 2**20
        self.lives[-1].memory.append((time.monotonic() - self._started, memory))

    def cpu_s(self) -> float:
        """CPU-seconds of the process until now."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, which must end it well."""
        self._process.terminate()
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SystemExit(f"the main job did not end within {STOP_S:.0f} s of SIGTERM") from None
        if code:
            raise SystemExit(f"the main job ended with {code} after SIGTERM:\n{self._said()}")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-4_000:]


def slope(life: Life) -> float | None:
    """MiB a minute by which the process grew once it was warm, by least squares; None where it didn't live so long."""
    warm = np.array([sample for sample in life.memory if sample[0] >= WARM_UP_S])
    if len(warm) < 2:
        return None
    age, memory = (warm - warm.mean(axis=0)).T
    return 60 * float(age @ memory) / float(age @ age)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the soak saw; times in seconds, memory in MiB."""

    seconds: float
    rate: float
    warehouse: str
    kills: int
    sent: int
    loaded: int
    duplicates: int
    dead_lettered: int
    lost: int
    drained_after: float
    freshness_p50: float
    freshness_p99: float
    freshness_max: float
    memory_max: float
    memory_slope: float | None
    worker_us: float | None
    """CPU-microseconds an event of the main job after the start; None where it was killed."""
    database_us: float | None
    """The same of the PostgreSQL server; None with SQLite."""

    def balances(self) -> bool:
        """Whether every event that was sent was loaded exactly once."""
        return self.loaded == self.sent and not (self.duplicates or self.dead_lettered or self.lost)

    def closing_line(self) -> str:
        """All of it in a sentence."""
        grows = "unknown (no process lived long enough)" if self.memory_slope is None else f"{self.memory_slope:+.2f}"
        return (
            f"soak: {self.seconds:.0f} s at {self.rate:,.0f} events/s into {WAREHOUSES[self.warehouse]}, "
            f"{self.kills} kills: {self.loaded:,} of {self.sent:,} events loaded, {self.duplicates:,} twice, the books "
            f"balance; freshness p50 {self.freshness_p50:.2f} s, p99 {self.freshness_p99:.2f} s, longest "
            f"{self.freshness_max:.2f} s; memory at most {self.memory_max:.0f} MiB, slope {grows} MiB/min"
        )


def wait_until_drained(engine: Engine, feeder: Feeder, job: MainJob) -> float:
    """Seconds until everything that was sent is committed; raises SystemExit after DRAIN_S."""
    began = time.monotonic()
    c = ingest_ledger.c
    while True:
        with engine.connect() as connection:
            read = connection.execute(select(func.sum(c.next_offset - c.first_offset))).scalar_one() or 0
        took = time.monotonic() - began
        if read == feeder.sent:
            return took
        if took > DRAIN_S:
            raise SystemExit(f"{read:,} of {feeder.sent:,} events {DRAIN_S:.0f} s after the last one was sent")
        job.sample()
        time.sleep(LOOK_S)


def soak(
    bench: Bench,
    corpus: Sequence[MappedEvent],
    kind: str,
    *,
    seconds: float,
    quiet_seconds: float,
    rate: float,
    kill_every: float,
    log: Console,
    starting_seconds: float = 0.0,
    prefix: str = PREFIX,
    partitions: int = PARTITIONS,
) -> Result:
    """Feeds and kills, feeds on without kills, then lets the job finish, and compares the books.

    Of the events of the first `starting_seconds` neither freshness nor CPU count.
    """
    chance = random.Random()
    home = Path(bench.environment["VOCBEAM_HOME"])
    with bench.warehouse(kind) as url:
        environment = {**bench.environment, "VOCBEAM_TOPIC_PREFIX": prefix, "VOCBEAM_WAREHOUSE": url}
        engine = open_engine(url)
        feeder = Feeder(bench.bootstrap, corpus, home, rate, prefix, partitions)
        job = MainJob(environment, bench.folder / "soak.log", bench.folder / f"beats-{prefix}")
        kills = 0

        def spent() -> tuple[int, float, float]:
            return feeder.sent, job.cpu_s(), server_cpu_s(url) if kind == "postgresql" else 0.0

        started = None
        job.start()
        try:
            # What piled up while it starts would be measured for long afterwards, the longer the higher the rate.
            job.wait_until_it_reads()
            watcher = Watcher(engine, feeder, time.monotonic() + starting_seconds)
            with watcher.looking():
                with feeder.feeding():
                    began = time.monotonic()
                    kills_end = began + (seconds if kill_every else 0)
                    kill_at = began + kill_every * chance.uniform(0.9, 1.1)
                    while (now := time.monotonic()) < began + seconds + quiet_seconds:
                        if kill_at <= now < kills_end:
                            job.kill()
                            kills += 1
                            log.print(f"{now - began:.0f} s: killed, {feeder.sent:,} events sent")
                            job.start()
                            kill_at = now + kill_every * chance.uniform(0.9, 1.1)
                        job.sample()
                        if started is None and now >= began + starting_seconds:
                            started = spent()
                        time.sleep(SAMPLE_S)
                    seconds = time.monotonic() - began
                    ended = spent()
                drained_after = wait_until_drained(engine, feeder, job)
            job.stop()
        finally:
            job.kill()
        run_process(["-m", "vocbeam.pipelines.cli", "reconcile"], environment, bench.folder)
        c = ingest_ledger.c
        counters = ("loaded", "duplicates", "dead_lettered", "lost")
        with engine.connect() as connection:
            counted = connection.execute(select(*(func.sum(c[name]) for name in counters))).one()
        engine.dispose()
    assert started is not None, "the load lasts longer than the start"
    events, worker_s, database_s = (after - before for before, after in zip(started, ended, strict=True))
    p50, p99 = np.percentile(np.frombuffer(watcher.freshness, dtype=np.float32), [50, 99])
    return Result(
        seconds=seconds,
        rate=feeder.sent / seconds,
        warehouse=kind,
        kills=kills,
        sent=feeder.sent,
        **dict(zip(counters, map(int, counted), strict=True)),
        drained_after=drained_after,
        freshness_p50=float(p50),
        freshness_p99=float(p99),
        freshness_max=max(watcher.freshness),
        memory_max=max(memory for life in job.lives for _, memory in life.memory),
        memory_slope=slope(job.lives[-1]),
        worker_us=None if kills else worker_s / events * 1e6,
        database_us=database_s / events * 1e6 if kind == "postgresql" else None,
    )


def result_table(result: Result) -> str:
    """One row a figure."""
    rows = [
        [name.replace("_", " "), "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"]
        for name, value in asdict(result).items()
        if name != "warehouse"
    ]
    return markdown(["figure", WAREHOUSES[result.warehouse]], rows)


@click.command()
@click.option("--seconds", default=1_200.0, show_default=True, type=click.FloatRange(1), help="Duration with kills.")
@click.option(
    "--quiet-seconds",
    default=300.0,
    show_default=True,
    type=click.FloatRange(0),
    help="And then without: for the slope.",
)
@click.option("--rate", type=click.FloatRange(1), help="Events a second.  [default: half of what is measured first]")
@click.option("--kill-every", default=120.0, show_default=True, type=click.FloatRange(0), help="Seconds; 0 for never.")
@click.option("--events", default=40_000, show_default=True, type=click.IntRange(100), help="In one pass of the load.")
@click.option(
    "--warehouse",
    "kind",
    default="postgresql",
    show_default=True,
    type=click.Choice(list(WAREHOUSES)),
    help="Into what.",
)
@click.option("--postgres", "postgres_url", help="URL of a server to use instead of one that is started for this.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="Same seed, same events.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout instead of a table.")
def main(
    seconds: float,
    quiet_seconds: float,
    rate: float | None,
    kill_every: float,
    events: int,
    kind: str,
    postgres_url: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Load a steady stream of events for a long time, kill the main job again and again, and compare the books."""
    log = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vocbeam-soak-")))
        if kind == "postgresql" and postgres_url is None:
            postgres_url = stack.enter_context(postgres_server())
        about = machine(postgres_url)
        bench = Bench(folder, stack.enter_context(broker_in(folder / "broker")), events, postgres_url, workers=1)
        log.print(f"making {events:,} events")
        path = make_corpus(folder, events, seed)
        if rate is None:
            bench.vocbeam("produce", "--events", path, "--partitions", str(PARTITIONS))
            fastest = events / bench.main_job(kind, bench.floor()).reading_s
            rate = fastest / 2
            log.print(f"the main job loads {fastest:,.0f} events/s, so half of that is sent")
        corpus = [event for event in read_events(path) if isinstance(event, MappedEvent)]
        result = soak(
            bench,
            corpus,
            kind,
            seconds=seconds,
            quiet_seconds=quiet_seconds,
            rate=rate,
            kill_every=kill_every,
            log=log,
        )
    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    if as_json:
        figures: dict[str, Any] = {**about, **asdict(result)}
        click.echo(json.dumps(figures, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{about_lines(about)}\n\n{result_table(result)}")
    if not result.balances():
        raise SystemExit(f"not every event was loaded once: {asdict(result)}")
    click.echo(result.closing_line(), err=as_json)


if __name__ == "__main__":
    main()
