"""`vocbeam status --watch` in a pseudo-terminal: what it shows, what it says of outages, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaProducer
from rich.cells import cell_len
from sqlalchemy import insert

from tests.integration.test_exporter import histogram
from tests.support.command import Vocbeam
from tests.support.kafka import Topics
from tests.support.proxy import Proxy
from tests.support.warehouse import MINI, mini, new_warehouse
from vocbeam.deploy.broker import HOST, Broker
from vocbeam.pipelines.apply import now_us
from vocbeam.pipelines.status_watch import Rates
from vocbeam.schemas.timebase import DAY_US, SECOND_US
from vocbeam.sinks import tables
from vocbeam.sinks.read import LedgerRow

COLUMNS, LINES = 80, 24
HOME = "\x1b[H"
CODE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")


@dataclass
class Terminal:
    """What a program in a pseudo-terminal has written, and its process."""

    process: subprocess.Popen[bytes]
    master: int
    written: str = field(default="")

    def read(self, seconds: float) -> None:
        """Takes in what comes within so long."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.written += os.read(self.master, 1 << 16).decode(errors="replace")
            except OSError:
                # Nobody writes any more.
                time.sleep(seconds)

    def pages(self) -> list[list[str]]:
        """The lines of each page that was drawn, without codes."""
        return [CODE.sub("", page).replace("\r", "").split("\n") for page in self.written.split(HOME)[1:]]

    def wait_for(self, *words: str) -> list[str]:
        """The first new page that holds all these words; what was drawn before is forgotten."""
        deadline = time.monotonic() + 60
        self.written = ""
        while True:
            self.read(0.2)
            for page in self.pages()[:-1]:
                if all(any(word in line for line in page) for word in words):
                    return page
            assert self.process.poll() is None, self.written
            assert time.monotonic() < deadline, (words, self.pages()[-1:])

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; the exit code."""
        self.process.send_signal(number)
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.1)
        self.read(0.2)
        return self.process.wait(1)


@contextmanager
def in_terminal(vocbeam: Vocbeam, *arguments: str, lines: int = LINES) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "vocbeam.pipelines.cli", *arguments]
    environment = {**vocbeam.variables(), "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    environment.pop("LINES", None)
    process = subprocess.Popen(
        command, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_watch__shows_everything_and_says_what_is_away(
    kafka_broker: Broker, kafka_topics: Topics, sqlite_url: str, tmp_path: Path
) -> None:
    engine = new_warehouse(sqlite_url, mini())
    survey, ticket = kafka_topics.create("survey"), kafka_topics.create("ticket")
    with KafkaProducer(bootstrap_servers=kafka_topics.bootstrap) as producer:
        for _ in range(1234):
            producer.send(ticket, b"x", timestamp_ms=now_us() // 1000 - 3_600_000)
        producer.flush()
    days = [now_us() // DAY_US * DAY_US - ago * DAY_US + DAY_US // 2 for ago in (5, 4, 3, 2, 1)]
    counts = {"loaded": 0, "duplicates": 0, "dead_lettered": 0, "dropped": 0, "lost": 7, "without_record": 0}
    ledger = {"ledger_id": 1, "cluster_id": "c", "topic_id": "t", "topic": survey, "partition": 0, "run_epoch": 1}
    with engine.begin() as connection:
        connection.execute(insert(tables.measure), histogram(days, [0.3] * 5))
        connection.execute(
            insert(tables.ingest_ledger).values(**ledger, **counts, first_offset=0, next_offset=0, updated_at=now_us())
        )
    with Proxy(int(kafka_broker.bootstrap.rpartition(":")[2])).serving() as network:
        vocbeam = Vocbeam(tmp_path, f"{HOST}:{network.port}", kafka_topics.prefix, sqlite_url, governance=MINI)
        with in_terminal(vocbeam, "status", "--watch", "--every", "1") as terminal:
            page = terminal.wait_for("warehouse up", "Kafka up", "1,234")
            text = "\n".join(page)
            assert "pipeline DOWN (never_started)" in text
            assert re.search(rf"{ticket} +1,234 +1\.0 h +– +never +0", text)
            assert re.search(rf"{survey} +0 +– .* ago +7", text)
            assert re.search(r"deliver csat +logistics +0\.3 +0\.8 +3 days +–", text)
            assert "0 open flags, 0 overdue; 0 open cases, 0 not acknowledged" in text
            assert all(cell_len(line) <= COLUMNS for line in page)
            assert len(page) <= LINES
            network.target = 1
            terminal.wait_for("Kafka DOWN (unreachable, last seen", "warehouse up", "deliver csat")
            file = tmp_path / "warehouse.db"
            file.rename(tmp_path / "away.db")
            away = terminal.wait_for("warehouse DOWN (missing, last seen", "Kafka DOWN")
            assert not any("deliver csat" in line for line in away)
            network.target = int(kafka_broker.bootstrap.rpartition(":")[2])
            (tmp_path / "away.db").rename(file)
            terminal.wait_for("warehouse up", "Kafka up")
            assert not COLOUR.search(terminal.written)
            assert terminal.end(signal.SIGTERM) == 0
            # Back to the screen and the cursor that were there before.
            assert terminal.written.rstrip().endswith(("\x1b[?1049l\x1b[?25h", "\x1b[?25h\x1b[?1049l"))
            assert "Traceback" not in terminal.written


def test_watch__starts_without_anything_and_ends_at_ctrl_c(sqlite_url: str, tmp_path: Path) -> None:
    vocbeam = Vocbeam(tmp_path, f"{HOST}:1", "voc", sqlite_url, governance=MINI)
    with in_terminal(vocbeam, "status", "--watch", "--every", "1", lines=2) as terminal:
        terminal.wait_for("warehouse DOWN (missing)")
        assert terminal.end(signal.SIGINT) == 0
    printed = vocbeam.call("status", "--watch", code=2)
    assert printed == ""
    assert "leave it out for one page" in vocbeam.printed()


def ledger_row(topic: str, next_offset: int) -> LedgerRow:
    found = dict.fromkeys(LedgerRow.__dataclass_fields__, 0)
    return LedgerRow(**{**found, "topic": topic, "next_offset": next_offset})  # type: ignore[arg-type]


def test_rates__are_those_of_the_last_minute() -> None:
    rates = Rates()
    assert rates.add(0, [ledger_row("a", 100)]) == {}
    assert rates.add(0, [ledger_row("a", 999)]) == {}
    assert rates.add(10 * SECOND_US, [ledger_row("a", 150), ledger_row("a", 50), ledger_row("b", 30)]) == {
        "a": 10, "b": 3,
    }  # fmt: skip
    for second in range(20, 80, 10):
        found = rates.add(second * SECOND_US, [ledger_row("a", 200), ledger_row("b", 30)])
    # Nothing came since ten seconds after the first look.
    assert found == {"a": 0, "b": 0}
