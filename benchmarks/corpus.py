"""The events that are measured: a part of a simulated company's, in a fixed mix of types, the same for one seed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

SHARES = {"ticket": 0.15, "survey": 0.042, "outcome": 0.005, "flag": 0.003}
"""Of all events; the rest is telemetry, which is the most in every company that records it."""

CUSTOMERS_PER_EVENT = 0.25
"""Simulated customers for each event: over 60 days one has 0.7 ticket events, the scarcest for their share."""

FEWEST_CUSTOMERS = 400
"""Enough for some flags, which are rare."""

DAYS = 60


def quotas(events: int) -> dict[str, int]:
    """Event type → how many of `events`."""
    rare = {event_type: max(1, int(events * share)) for event_type, share in SHARES.items()}
    return {"telemetry": events - sum(rare.values()), **rare}


def make_corpus(folder: Path, events: int, seed: int) -> Path:
    """JSON lines for `vocbeam produce`: the first events of each type, in the order in which a company sent them, each
    type spread evenly over all: any part of it has the same mix.

    Ticket updates without a text get one that another update of the simulation had, so that each is read, redacted and
    searched for words.
    """
    customers = max(FEWEST_CUSTOMERS, int(events * CUSTOMERS_PER_EVENT))
    simulate = ["simulate", "--out", folder, "--customers", customers, "--days", DAYS, "--seed", seed]
    subprocess.run(
        [sys.executable, "-m", "vocbeam.pipelines.cli", *map(str, simulate)], check=True, stdout=subprocess.DEVNULL
    )
    left = Counter(quotas(events))
    chosen: list[dict[str, Any]] = []
    with (folder / "events.jsonl").open(encoding="utf-8") as simulated:
        for line in simulated:
            event: dict[str, Any] = json.loads(line)
            if left[event["event_type"]]:
                left[event["event_type"]] -= 1
                chosen.append(event)
    if left.total():
        raise SystemExit(f"the simulation had too few events: {dict(+left)} are missing; choose another --seed")
    tickets = [event for event in chosen if event["event_type"] == "ticket"]
    bodies = [event["body"] for event in tickets if "body" in event]
    chance = random.Random(seed)
    for event in tickets:
        event.setdefault("body", chance.choice(bodies))
    numbers = {event_type: count() for event_type in quotas(events)}
    share = {event_type: 1 / quota for event_type, quota in quotas(events).items()}
    # Telemetry has its share sooner than the others: as simulated, the last fifth would be tickets and nothing else.
    mixed = sorted(chosen, key=lambda event: (next(numbers[event["event_type"]]) + 0.5) * share[event["event_type"]])
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in mixed), encoding="utf-8")
    return corpus
