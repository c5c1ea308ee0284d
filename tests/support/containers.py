"""Containers without an engine: what their files say they run, as plain processes of this machine.

A process gets the image's variables and entry point, its own variables, mounts and secrets, and nothing of ours. It
keeps our user, network and file system: what an engine would forbid is not forbidden.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.command import ENDS_WITHIN_S, PROJECT


def image() -> tuple[dict[str, str], list[str]]:
    """(variables, entry point) of the image that is built where no target is named."""
    stages: dict[str, list[str]] = {}
    text = (PROJECT / "deploy" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if stage := re.fullmatch(r"FROM \S+ AS ([\w-]+)", line):
            stages[stage[1]] = []
        elif stages:
            stages[list(stages)[-1]].append(line)
    (variables,) = [line for line in stages["base"] if line.startswith("ENV ")]
    (entry,) = [line for line in stages["vocbeam"] if line.startswith("ENTRYPOINT ")]
    return dict(re.findall(r"(\w+)=(\S+)", variables)), json.loads(entry.removeprefix("ENTRYPOINT "))


def exchange(text: str, places: Mapping[str, str]) -> str:
    """A text in which the keys of `places` are replaced by their values, the longest first, and nothing twice."""
    longest_first = sorted(places, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: places[found[0]], text)


@dataclass(frozen=True)
class Container:
    """One container. Its words, which are the files' own, speak of `places`: paths and addresses there → here.

    `healthy` is the command of its health check; what comes to an end by itself has none.
    """

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    places: Mapping[str, str]
    folder: Path
    stops_within_s: float = 10
    healthy: Sequence[str] = ()

    def here(self, text: str) -> str:
        """A text of the container's files as it reads on this machine."""
        return exchange(text, self.places)

    def process(self, words: Sequence[str]) -> dict[str, Any]:
        """What makes a subprocess one in this container."""
        programs = {"/opt/vocbeam/bin": str(Path(sys.executable).parent), "$PATH": os.environ["PATH"]}
        given = {name: exchange(value, {**self.places, **programs}) for name, value in image()[0].items()}
        return {"args": [self.here(word) for word in words], "env": {**given, **self.variables}, "cwd": self.folder}

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container to its end."""
        return subprocess.run(**self.process(words), capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False)

    def end(self) -> str:
        """Runs a container that comes to an end; what it printed. Fails where it ends badly."""
        done = self.execute(*self.command)
        assert done.returncode == 0, f"{self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def is_healthy(self) -> bool:
        """What its health check says now."""
        return self.execute(*self.healthy).returncode == 0

    @contextmanager
    def up(self) -> Iterator[None]:
        """A container that goes on, as soon as it is healthy; after SIGTERM it must end well within its time."""
        assert not self.is_healthy(), f"{self.name} is healthy before it is started"
        log = self.folder / f"{self.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(**self.process(self.command), stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + ENDS_WITHIN_S
            while not self.is_healthy():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
            assert process.poll() is None, log.read_text()
            assert self.is_healthy(), log.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(self.stops_within_s) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
