from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vocbeam.pipelines.schemas import schemas
from vocbeam.schemas import contracts
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.records import EVENT_TYPES, EventType

COMMON = ("event_id", "event_time", "source", "customer_id", "journey_stage", "department", "segments")


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_contract__begins_with_the_common_fields_and_explains_each(event_type: EventType) -> None:
    assert contracts.fields(event_type)[: len(COMMON)] == COMMON
    schema = json.loads(contracts.schema_text(event_type))
    assert (schema["namespace"], schema["name"]) == ("vocbeam", event_type.capitalize())
    assert all(field["doc"].endswith(".") for field in [schema, *schema["fields"]] if field is not schema)
    assert schema["doc"].endswith(".")


def test_required__are_the_fields_without_default() -> None:
    assert contracts.required("survey") == {"event_id", "event_time", "source", "survey_id", "response_id"}
    assert contracts.required("ticket") == {"event_id", "event_time", "source", "ticket_id", "status"}
    assert contracts.required("telemetry") == {"event_id", "event_time", "source", "name"}
    assert contracts.required("flag") == {"event_id", "event_time", "source", "flag_kind", "text"}
    assert contracts.required("outcome") == {"event_id", "event_time", "source", "outcome_kind"}


def test_defaults__of_a_survey() -> None:
    defaults = contracts.defaults("survey")
    assert (defaults["weight"], defaults["status"], defaults["segments"], defaults["sent_at"]) == (
        1.0,
        "complete",
        {},
        None,
    )
    assert set(defaults) | contracts.required("survey") == set(contracts.fields("survey"))


def test_field_types__of_a_survey() -> None:
    types = contracts.field_types("survey")
    assert (types["event_time"], types["sent_at"], types["score"], types["segments"], types["comment"]) == (
        "timestamp",
        "timestamp",
        "double",
        "map",
        "string",
    )


def test_topic_and_subject__follow_the_prefix() -> None:
    assert contracts.topic("ticket", "shop") == "shop.ticket"
    assert contracts.subject("shop.ticket") == "shop.ticket-value"
    assert contracts.event_type_of("shop.ticket", "shop") == "ticket"
    with pytest.raises(SchemaError, match=r"topic voc\.ticket belongs to no event type"):
        contracts.event_type_of("voc.ticket", "shop")


def test_writer_schema__incompatible_writer_is_refused() -> None:
    text = '{"type":"record","name":"Flag","namespace":"vocbeam","fields":[{"name":"event_id","type":"string"}]}'
    with pytest.raises(SchemaError, match="event_time: the field is new and has no default"):
        contracts.writer_schema("flag", text)


def test_schemas_check__current_contracts_read_all_released_versions() -> None:
    result = CliRunner().invoke(schemas, ["check"], standalone_mode=False)
    assert result.exception is None
    assert [line.split() for line in result.output.splitlines()] == [[name, "is", "v1"] for name in EVENT_TYPES]


def test_schemas_check__names_contract_version_and_field(tmp_path: Path) -> None:
    for event_type in EVENT_TYPES:
        old = json.loads(contracts.schema_text(event_type))
        if event_type == "flag":
            old["fields"] = [field for field in old["fields"] if field["name"] != "text"]
        (tmp_path / event_type).mkdir()
        (tmp_path / event_type / "v1.avsc").write_text(json.dumps(old))
    result = CliRunner().invoke(schemas, ["check", "--released", str(tmp_path)], standalone_mode=False)
    assert isinstance(result.exception, SchemaError)
    assert "flag v1: text: the field is new and has no default" in str(result.exception)
    assert result.exception.exit_code == 2


def test_schemas_register_and_list__keep_ids(tmp_path: Path) -> None:
    for _ in range(2):
        registered = CliRunner().invoke(schemas, ["register", "--home", str(tmp_path)], standalone_mode=False)
        assert [line.split() for line in registered.output.splitlines()] == [
            [f"voc.{name}-value", "id", str(number)] for number, name in enumerate(EVENT_TYPES, start=1)
        ]
    listed = CliRunner().invoke(schemas, ["list", "--home", str(tmp_path), "--json"], standalone_mode=False)
    assert json.loads(listed.output)[0] == {"subject": "voc.survey-value", "version": 1, "id": 1, "current": True}
