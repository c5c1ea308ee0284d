"""Keeps what `vocbeam value` found: one fit replaces the rows of the same landmark, horizons and basis, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, text

from vocbeam.schemas.value import PAYOUTS, PayoutBy
from vocbeam.sinks.tables import active_tagging, value_issue, value_segment
from vocbeam.sinks.transaction import in_transaction

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FitKey:
    """Which fit: local date of the landmark, length of the follow-up, tags by which issues are told.

    `revenue_horizon_days` is the follow-up for issues by revenue.
    """

    landmark: date
    horizon_days: int
    basis: str
    revenue_horizon_days: int

    def of_issues(self, payout_by: PayoutBy) -> dict[str, Any]:
        """Key columns that all issues of one kind share."""
        days = self.revenue_horizon_days if payout_by == "revenue" else self.horizon_days
        return {**self.of_segments, "horizon_days": days, "payout_by": payout_by}

    @property
    def of_segments(self) -> dict[str, Any]:
        """Key columns that all classes share."""
        return {"landmark": self.landmark, "horizon_days": self.horizon_days, "basis": self.basis}


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

    `issues` hold their `payout_by`. Two that write at once do so in turn. Raises SinkUnavailable when the retry limit
    is reached.
    """
    made = asdict(provenance)
    parts = [
        (value_segment, key.of_segments, segments),
        *((value_issue, key.of_issues(by), [row for row in issues if row["payout_by"] == by]) for by in PAYOUTS),
    ]

    def replace(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE value_segment, value_issue IN SHARE ROW EXCLUSIVE MODE"))
        for table, same, rows in parts:
            connection.execute(delete(table).where(*(table.c[name] == value for name, value in same.items())))
            if rows:
                connection.execute(insert(table), [{**row, **same, **made} for row in rows])

    in_transaction(engine, replace)
