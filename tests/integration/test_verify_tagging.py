"""`vocbeam verify tagging` in short: the text model on a third of a real set, with settings that are given."""

from __future__ import annotations

from pathlib import Path

from tests.support.fixtures import data_set
from vocbeam.pipelines.verify_tagging import (
    GOVERNANCE,
    LABELS,
    PRECISION,
    SEED,
    calibration,
    figure,
    judge,
    tagged,
)
from vocbeam.schemas.governance import load_governance
from vocbeam.transforms.labels import collect, load_label_mapping, read_labels
from vocbeam.transforms.training import Settings, train


def test_verify_tagging__a_third_of_banking77_is_told_apart(data_dir: Path) -> None:
    folder = data_set(data_dir, "banking77")
    mapping = load_label_mapping(LABELS / "banking77.yaml")
    governance = load_governance(GOVERNANCE / "bank.yaml")
    learn, test = (list(read_labels(folder / f"{part}.csv.gz", mapping)) for part in ("train", "test"))
    model = train(collect(learn[::3], governance), "third", precision=PRECISION, seed=SEED, grid=(Settings(),)).model
    heads = judge(model, test, governance)
    results = [
        figure("banking77", "macro-F1 over 77 intents", heads["topic"], at_least=0.83),
        figure("banking77", "macro-F1 over 9 stages", heads["stage"], at_least=0.91),
        figure("banking77", "macro-F1 over 8 departments", heads["department"], at_least=0.91),
        calibration("banking77", "calibration error over intents", heads["topic"], below=0.05),
        calibration("banking77", "calibration error over stages", heads["stage"], below=0.05),
    ]
    assert [result for result in results if not result.met] == []
    given = tagged("banking77", model, test)
    assert given.value >= PRECISION
    assert given.texts > 0.9 * len(test)
