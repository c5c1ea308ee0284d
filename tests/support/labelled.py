"""Small files of labelled texts under `mini.yaml`, and the commands that make models of them."""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

from tests.support.command import Vocbeam
from tests.support.invoke import Invoked, invoke
from vocbeam.pipelines.models import models
from vocbeam.pipelines.train import train_command

NOUNS = 40
"""Nouns of each stage; no text has more than one, and nothing else tells the stages apart."""


def noun(stage: str, number: int) -> str:
    """A word that only texts of this stage have; its letters don't tell which stage that is."""
    return "".join(Random(f"{stage} {number}").choices(ascii_lowercase, k=7))


def write_labels(path: Path, texts_a_noun: int) -> Path:
    """A file with so many texts for every noun of the stages `deliver` and `help`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "stage", "sentiment"])
        for number in range(NOUNS):
            for copy in range(texts_a_noun):
                for stage, sentiment in (("deliver", "negative"), ("help", "positive")):
                    rows.writerow([f"{'please ' * (copy % 2)}{noun(stage, number)} {copy}", stage, sentiment])
    return path


def train(vocbeam: Vocbeam, labels: Path, *options: str) -> Invoked:
    """`vocbeam train` on a file alone."""
    return invoke(train_command, vocbeam, "--labels", labels, "--no-phrases", "--json", *options)


def stored_models(vocbeam: Vocbeam) -> dict[str, bool]:
    """Version → whether it is published."""
    rows: list[dict[str, Any]] = invoke(models, vocbeam, "list", "--json").json
    return {row["version"]: row["published"] for row in rows}
