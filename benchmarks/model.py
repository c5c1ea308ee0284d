"""The text model of the benchmark: trained once, from the governance file's phrases and the simulation's own texts."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.warehouses import MODEL_VERSION
from vocbeam.schemas.governance import load_governance
from vocbeam.transforms.labels import Label, collect, phrases
from vocbeam.transforms.simulated_texts import TEXTS
from vocbeam.transforms.training import train

PRECISION = 0.9

SENTIMENT = {"content": "positive", "question": "neutral", "indifferent": "neutral"}
"""Of the simulation's texts by what they are about; the others complain."""


def main(governance: str, output: str) -> None:
    """Writes the model's artefact to a file."""
    rules = load_governance(Path(governance))
    simulated = [
        Label(text, sentiment=SENTIMENT.get(about, "negative"))
        for about, languages in TEXTS.items()
        for texts in languages.values()
        for text in texts
    ]
    labelled = collect([*phrases(rules), *simulated], rules)
    Path(output).write_bytes(train(labelled, MODEL_VERSION, precision=PRECISION).model.to_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
