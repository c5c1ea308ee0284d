"""What is generated for BI: the committed files are what the example gives, and say what is really published."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from vocbeam.pipelines.contract import LOGICAL, contract_document
from vocbeam.pipelines.generate import dbt_files, generate
from vocbeam.pipelines.semantics import semantics_document
from vocbeam.schemas.governance import load_governance
from vocbeam.sinks.published import published
from vocbeam.sinks.tables import metadata
from vocbeam.sinks.views import aggregate_views

PROJECT = Path(__file__).parents[2]
RETAILER = PROJECT / "schemas" / "examples" / "retailer.yaml"
GOVERNANCE = load_governance(RETAILER)
BI = PROJECT / "deploy" / "bi"


@pytest.mark.parametrize(
    ("command", "path"),
    [("dictionary", PROJECT / "docs" / "data-dictionary.md"), ("contract", BI / "contract.odcs.yaml")],
)
def test_generated__is_what_the_example_gives(command: str, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [command, "--governance", str(RETAILER), "--output", str(out)]
    assert CliRunner().invoke(generate, options, catch_exceptions=False).exit_code == 0
    assert out.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run: make generate"


def test_generated__dbt_project_is_what_the_example_gives() -> None:
    committed = {
        path.relative_to(BI / "dbt").as_posix(): path.read_text(encoding="utf-8")
        for path in (BI / "dbt").rglob("*")
        if path.suffix in (".yml", ".sql")
    }
    assert committed == dbt_files(GOVERNANCE), "run: make generate"


def test_dictionary__names_every_table_view_and_column() -> None:
    page = (PROJECT / "docs" / "data-dictionary.md").read_text(encoding="utf-8")
    for table in metadata.sorted_tables:
        section = page.split(f"\n### {table.name}\n")[1].split("\n### ")[0]
        assert all(f"| `{column.name}`" in section for column in table.columns), table.name
    assert all(f"`{view}`" in page or f"### {view}\n" in page for view in aggregate_views())


def test_contract__is_complete_and_names_what_the_reader_may_read() -> None:
    """The structure that ODCS 3.1 demands; `make verify-bi` holds the file against the standard's own JSON schema."""
    contract = contract_document(GOVERNANCE)
    assert {"apiVersion", "kind", "id", "version", "status"} <= contract.keys()
    assert {one["name"] for one in contract["schema"]} == {relation.name for relation in published()}
    assert aggregate_views() == tuple(one["name"] for one in contract["schema"] if one["physicalType"] == "view")
    assert "event_export" not in {one["name"] for one in contract["schema"]}
    for one in contract["schema"]:
        assert one["logicalType"] == "object"
        assert one["description"]
        for column in one["properties"]:
            assert column["logicalType"] in LOGICAL.values()
            assert column["description"], (one["name"], column["name"])
        keys = [column["primaryKeyPosition"] for column in one["properties"] if column.get("primaryKey")]
        assert keys == list(range(1, len(keys) + 1))


def test_semantics__every_metric_that_can_be_added_up_once() -> None:
    made = {one["name"]: one for one in semantics_document(GOVERNANCE)["metrics"]}
    wanted = {entry.id for entry in GOVERNANCE.metrics if entry.kind != "duration"}
    assert wanted <= made.keys()
    assert {name.removesuffix("_numerator").removesuffix("_denominator") for name in made} == wanted
    assert made["nps"]["type_params"]["expr"] == "100.0 * nps_numerator / nullif(nps_denominator, 0)"
    assert made["csat"]["type"] == "ratio"
    assert made["revenue"]["filter"].endswith("= 'BRL'")
