from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from skops.io import dumps, loads

from vocbeam.transforms.skops_archive import read_archive

STATE = {
    "version": "v1",
    "classes": [["use", "slow"], ["stay", ""]],
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.eye(2)),
    "slope": 0.1,
    "none": None,
    "heads": {"ä": [1, 2.5, True]},
}


def test_read_archive__as_skops_reads_it() -> None:
    stored = dumps(STATE)
    found, expected = read_archive(stored), loads(stored)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_equal(value, expected[name])
    assert found["weights"].dtype == np.float32


@pytest.mark.parametrize("content", [Fraction(1, 2), (1, 2), print, np.array([print])])
def test_read_archive__nothing_but_plain_data(content: Any) -> None:
    with pytest.raises(ValueError, match="a skops archive with a node of kind"):
        read_archive(dumps({"in": content}))


def test_a_worker_does_not_load_scikit_learn() -> None:
    modules = "vocbeam.transforms.text_model, vocbeam.transforms.steps, vocbeam.pipelines.job_steps"
    code = f"import {modules}, sys; sys.exit(any(name in sys.modules for name in ('sklearn', 'skops', 'scipy.stats')))"
    subprocess.run([sys.executable, "-c", code], check=True)
