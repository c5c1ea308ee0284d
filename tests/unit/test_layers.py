"""The layering: schemas know nothing of vocbeam; transforms, sinks and deploy know schemas only; pipelines know all."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MAY_IMPORT = {
    "schemas": {"schemas"},
    "transforms": {"transforms", "schemas"},
    "sinks": {"sinks", "schemas"},
    "deploy": {"deploy", "schemas"},
    "pipelines": {"pipelines", "schemas", "transforms", "sinks", "deploy"},
}


def imported_layers(source: str, package: str) -> set[str]:
    """The layers that a module in `package` (dotted, e.g. `vocbeam.sinks`) imports, also inside functions."""
    layers = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = [*parents[: len(parents) - node.level + 1], node.module] if node.level else [node.module]
            stem = ".".join(part for part in base if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        layers |= {name.split(".")[1] for name in names if name.startswith("vocbeam.")}
    return layers


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layers__import_only_what_they_may(layer: str) -> None:
    modules = list((PROJECT / layer).rglob("*.py"))
    assert modules
    broken = {}
    for path in modules:
        package = "vocbeam." + ".".join(path.relative_to(PROJECT).parent.parts)
        foreign = imported_layers(path.read_text(encoding="utf-8"), package) - MAY_IMPORT[layer]
        if foreign:
            broken[str(path.relative_to(PROJECT))] = sorted(foreign)
    assert broken == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\nfrom pathlib import Path", set()),
        ("from vocbeam.schemas.records import RawChunk", {"schemas"}),
        ("import vocbeam.transforms.decode as decode", {"transforms"}),
        ("from vocbeam import deploy", {"deploy"}),
        ("def f():\n    from vocbeam.pipelines import cli", {"pipelines"}),
        ("from ..transforms import decode", {"transforms"}),
        ("from .tables import measure", {"sinks"}),
    ],
)
def test_imported_layers__each_form_of_import(source: str, expected: set[str]) -> None:
    assert imported_layers(source, "vocbeam.sinks") == expected
