"""What is made of a measured run on Flink: where the CPU went, and what was used up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.on_flink import GROUPS, OURS, Measured, Sampler, limit_of, table

RUN = Measured(
    workers=1,
    rate=10_000,
    cores={**dict.fromkeys(GROUPS, 0.0), OURS: 0.5, "PostgreSQL": 0.25},
    first_after_s=20,
    load=0.1,
    restarts=0,
    checkpoints=3,
)


@pytest.mark.parametrize(
    ("workers", "ours", "database", "limit"),
    [
        (1, 0.5, 0.25, "waiting"),
        (1, 0.92, 0.25, "a core a worker"),
        (2, 0.92, 0.25, "waiting"),
        (2, 1.2, 0.65, "the machine's cores"),
    ],
)
def test_limit_of__names_what_was_used_up(workers: int, ours: float, database: float, limit: str) -> None:
    run = replace(RUN, workers=workers, cores={**RUN.cores, OURS: ours, "PostgreSQL": database})
    assert limit_of(run, machine_cores=2) == limit


def test_table__tells_cpu_an_event_and_leaves_out_what_was_too_short_to_be_sampled() -> None:
    lines = table({"one": [RUN, replace(RUN, rate=20_000)], "short": [replace(RUN, cores={})]}, "title").splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert rows["title"] == ["one", "short"]
    assert rows[f"of these: {OURS}"] == ["37.5 (25.0–50.0)", "–"]
    assert rows["of these: PostgreSQL"] == ["18.8 (12.5–25.0)", "–"]
    assert rows["checkpoints completed"] == ["3, 3", "3"]
    assert rows["limited by"] == ["waiting, waiting", "–"]


def test_cores__counts_between_two_times() -> None:
    sampler = Sampler(dict, [(float(at), {OURS: at * 0.7}) for at in range(10)])
    assert sampler.cores(2.5, 7.5) == pytest.approx({OURS: 0.7})
    assert sampler.cores(2.5, 3.5) == {}
