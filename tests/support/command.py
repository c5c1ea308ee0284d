"""The `vocbeam` command as people start it: a process with its own home folder, found by its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select

from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import ingest_ledger

PROJECT = Path(__file__).parents[2]

ENDS_WITHIN_S = 240
"""Longest wait for a command: half a minute of work and starting Beam, on a machine that is busy with much else."""

STOPS_WITHIN_S = 10
"""Within this a run ends after SIGTERM."""

ENDS_ITSELF_IN_S = 5
"""Margin for a forced end: the process may be given no time just when its time of grace is over."""


@dataclass(frozen=True)
class Running:
    """A command that was started; what it printed is in two files, which can't fill up as pipes do."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def said(self) -> str:
        """Everything printed so far."""
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in (self.stdout, self.stderr))

    def stop_under_load(self) -> int:
        """Tells a run that loads to end, and waits for that; its exit code.

        It ends in good order or, on a machine too busy for that, by itself after its time of grace.
        """
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOPS_WITHIN_S + ENDS_ITSELF_IN_S)
        out_of_time = "the group in hand did not end in time; uncommitted work is read again" in self.said()
        assert code == int(out_of_time), self.said()
        assert out_of_time or " stopped: " in self.said()
        assert "Traceback" not in self.said()
        return code


@dataclass(frozen=True)
class Vocbeam:
    """Runs commands against one home folder, one Kafka and one warehouse."""

    home: Path
    bootstrap: str
    prefix: str
    warehouse: str
    governance: Path = EXAMPLE_GOVERNANCE
    entry: tuple[str, ...] = ("vocbeam.pipelines.cli",)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the commands get beside this process's own environment: secrets, say."""

    def crashing(self, moment: str, number: int) -> Vocbeam:
        """The same, but its writer dies by SIGKILL when it reaches `moment` for the `number`th time."""
        return replace(self, entry=("tests.support.crashing", moment, str(number)))

    def into(self, warehouse: str) -> Vocbeam:
        """The same installation, keys and topics, with another warehouse."""
        return replace(self, warehouse=warehouse)

    def call(self, *arguments: str | Path, code: int = 0) -> str:
        """Run a command to its end; its stdout. Fails where it ends with another code."""
        with self.started(*arguments) as running:
            ended_with = running.process.wait(ENDS_WITHIN_S)
        assert ended_with == code, running.said()
        return running.stdout.read_text(encoding="utf-8")

    def call_json(self, *arguments: str | Path) -> Any:
        """What a command prints with --json."""
        return json.loads(self.call(*arguments, "--json"))

    @contextmanager
    def started(self, *arguments: str | Path) -> Iterator[Running]:
        """A command that goes on running; it is killed when the context ends."""
        folder = self.home / "printed"
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        stdout, stderr = folder / f"{number}.out", folder / f"{number + 1}.err"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(self._command(arguments), env=self.variables(), stdout=out, stderr=err)
        try:
            yield Running(process, stdout, stderr)
        finally:
            process.kill()
            process.wait()

    def printed(self) -> str:
        """All that commands of this home folder have printed."""
        files = sorted((self.home / "printed").iterdir())
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)

    def reconcile(self) -> None:
        """Fails unless the books balance."""
        checks = self.call_json("reconcile")
        assert checks
        assert [check for check in checks if not check["balances"]] == []

    def _command(self, arguments: Sequence[str | Path]) -> list[str]:
        return [sys.executable, "-m", *self.entry, *map(str, arguments)]

    def variables(self) -> dict[str, str]:
        """The environment of the commands."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "VOCBEAM_HOME": str(self.home),
            "VOCBEAM_BOOTSTRAP": self.bootstrap,
            "VOCBEAM_TOPIC_PREFIX": self.prefix,
            "VOCBEAM_WAREHOUSE": self.warehouse,
            "VOCBEAM_GOVERNANCE": str(self.governance),
            **self.environment,
        }


class Books:
    """A look at the ledger of a warehouse while something else writes it."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = open_engine(url)

    def records(self) -> int:
        """Offsets accounted for; 0 while the warehouse is empty."""
        with self.engine.connect() as connection:
            if not self.engine.dialect.has_table(connection, ingest_ledger.name):
                return 0
            c = ingest_ledger.c
            total = connection.execute(select(func.sum(c.next_offset - c.first_offset))).scalar()
        return int(total or 0)

    def wait_for(self, records: int, running: Running) -> int:
        """Returns as soon as so many offsets are accounted for; the number then."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while (now := self.records()) < records:
            assert running.process.poll() is None, running.said()
            assert time.monotonic() < deadline, f"{now} of {records} records after {ENDS_WITHIN_S} s"
            time.sleep(0.02)
        return now
