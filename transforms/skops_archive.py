"""Plain data out of a skops archive: a zip file with `schema.json`, a tree of nodes, and a `.npy` file for each array.

skops itself imports all of scikit-learn, 150 MiB and two seconds that a worker which only predicts has no use for.
"""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import numpy as np


def read_archive(stored: bytes) -> Any:
    """What skops stored: text, numbers, None, lists, dictionaries with text as keys, and arrays. Nothing is executed.

    Raises ValueError for a node of any other kind, and BadZipFile, KeyError or ValueError for something else.
    """
    with ZipFile(BytesIO(stored)) as archive:
        return _value(json.loads(archive.read("schema.json")), archive)


def _value(node: dict[str, Any], archive: ZipFile) -> Any:
    kind = node["__loader__"], node["__class__"]
    if kind == ("DictNode", "dict"):
        return {name: _value(content, archive) for name, content in node["content"].items()}
    if kind == ("ListNode", "list"):
        return [_value(content, archive) for content in node["content"]]
    if kind == ("JsonNode", "str"):
        return json.loads(node["content"])
    if kind == ("NdArrayNode", "ndarray") and node["type"] == "numpy":
        return np.load(BytesIO(archive.read(node["file"])), allow_pickle=False)
    raise ValueError(f"a skops archive with a node of kind {kind}")
