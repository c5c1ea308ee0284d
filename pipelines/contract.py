"""The data contract of what is published: Open Data Contract Standard (ODCS) 3.1."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from vocbeam.schemas.governance import Governance
from vocbeam.schemas.timebase import DAY_US, SECOND_US
from vocbeam.sinks.published import VERSION, Column, ColumnType, Relation, published

ODCS_VERSION = "v3.1.0"

LOGICAL: Mapping[ColumnType, str] = {
    "text": "string", "integer": "integer", "number": "number", "date": "date", "moment": "timestamp",
}  # fmt: skip
PHYSICAL: Mapping[ColumnType, str] = {
    "text": "text", "integer": "bigint", "number": "double precision", "date": "date",
    "moment": "timestamp with time zone",
}  # fmt: skip

_NAMESPACE = uuid.UUID("2f2a4f0e-6a54-5b52-9a5d-2f4b6e0f7c11")
"""Namespace of the contracts' ids: one company has one id for ever."""


def contract_document(governance: Governance) -> dict[str, Any]:
    """The contract, as ODCS has it; physical types are those of PostgreSQL."""
    return {
        "apiVersion": ODCS_VERSION,
        "kind": "DataContract",
        "id": str(uuid.uuid5(_NAMESPACE, governance.company)),
        "name": "Voice of the customer",
        "version": VERSION,
        "status": "active",
        "domain": "customer experience",
        "tenant": governance.company,
        "description": {
            "purpose": "Customer experience by journey stage and department: values with 95 % intervals, targets, "
            "verdicts, service levels, response rates and the books they rest on.",
            "limitations": "Figures of fewer than k answers are NULL. Views by bucket and hour have no rows for dates "
            "that were folded. Roll up numerator and denominator, never value. Distinct customers are never added up.",
            "usage": "Read with the role reader. Names and meanings change only with the version of this contract.",
        },
        "schema": [_object(relation) for relation in published()],
        "roles": [{"role": "reader", "access": "read", "description": "PostgreSQL role <prefix>_reader"}],
        "slaProperties": [*_freshness(governance), *_retention(governance)],
        "customProperties": [
            {"property": "governanceVersion", "value": governance.version},
            {"property": "timezone", "value": governance.timezone},
            {"property": "currency", "value": governance.currency},
            *(
                {
                    "property": f"metric.{entry.id}",
                    "value": f"{entry.name} ({entry.kind}, {entry.unit}): {entry.definition}",
                }
                for entry in governance.metrics
            ),
        ],
    }


def _object(relation: Relation) -> dict[str, Any]:
    return {
        "name": relation.name,
        "logicalType": "object",
        "physicalName": relation.name,
        "physicalType": relation.kind,
        "description": relation.comment,
        "properties": [_property(column, i) for i, column in enumerate(_keys_first(relation.columns), start=1)],
    }


def _keys_first(columns: tuple[Column, ...]) -> list[Column]:
    return sorted(columns, key=lambda column: not column.key)


def _property(column: Column, position: int) -> dict[str, Any]:
    key = {"primaryKey": True, "primaryKeyPosition": position} if column.key else {}
    return {
        "name": column.name,
        "logicalType": LOGICAL[column.type],
        "physicalType": PHYSICAL[column.type],
        "description": column.comment,
        "required": column.required,
        **key,
    }


def _freshness(governance: Governance) -> list[dict[str, Any]]:
    return [
        {
            "property": "latency",
            "value": entry.within,
            "unit": "s",
            "description": f"Newest event of type {entry.event}"
            + (f" from {entry.source}" if entry.source else "")
            + ": an alert starts where it is older.",
        }
        for entry in governance.freshness
    ]


def _retention(governance: Governance) -> list[dict[str, Any]]:
    days = DAY_US // SECOND_US
    return [
        {
            "property": "retention",
            "value": kept // days,
            "unit": "d",
            "description": f"Rows of {name}; aggregates stay.",
        }
        for name, kept in governance.retention.model_dump().items()
        if kept is not None
    ]
