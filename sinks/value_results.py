"""Keeps what `vocbeam value` found: one fit replaces the rows of the same landmark, horizon and basis, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, insert, select, text

from vocbeam.sinks.tables import active_tagging, value_issue, value_segment
from vocbeam.sinks.transaction import in_transaction

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FitKey:
    """Which fit: local date of the landmark, length of the follow-up, tags by which issues are told."""

    landmark: date
    horizon_days: int
    basis: str


@dataclass(frozen=True)
class Provenance:
    """Under what a fit was made; `fitted_at` in UTC microseconds."""

    taxonomy_version: int
    model_version: str | None
    vocbeam_version: str
    fitted_at: int


def tagged_under(connection: Connection) -> tuple[int | None, str | None]:
    """(taxonomy version, text model) in force; both None where nothing is."""
    found = connection.execute(select(active_tagging.c.taxonomy_version, active_tagging.c.model_version)).first()
    return (None, None) if found is None else (found[0], found[1])


def replace_fit(
    engine: Engine, key: FitKey, provenance: Provenance, segments: Sequence[Row], issues: Sequence[Row]
) -> None:
    """Replaces the rows of a fit in one transaction, so that readers see the old or the new one and never a part.

    Two that write at once do so in turn. Raises SinkUnavailable when the retry limit is reached.
    """
    same = {**asdict(key), **asdict(provenance)}

    def replace(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE value_segment, value_issue IN SHARE ROW EXCLUSIVE MODE"))
        for table, rows in ((value_segment, segments), (value_issue, issues)):
            connection.execute(delete(table).where(*_is(table, key)))
            if rows:
                connection.execute(insert(table), [{**row, **same} for row in rows])

    in_transaction(engine, replace)


def _is(table: Table, key: FitKey) -> list[Any]:
    return [table.c[name] == value for name, value in asdict(key).items()]
