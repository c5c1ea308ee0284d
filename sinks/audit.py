"""The audit trail: who did what on the web pages, when and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, insert, select

from vocbeam.sinks.tables import audit_trail

NOBODY = "nobody"
"""Who asks without being signed in."""

Outcome = Literal["done", "refused"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: by which account, at which moment (UTC microseconds), from which address."""

    who: str
    at: int
    origin: str


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry of the trail; columns as in the table `audit_trail`."""

    entry_id: int
    at: int
    who: str
    action: str
    object: str
    origin: str
    outcome: str


def record(connection: Connection, asked: Asked, action: str, on: str = "", outcome: Outcome = "done") -> None:
    """Adds an entry, in the caller's transaction: what was done and its entry stand or fall together."""
    connection.execute(
        insert(audit_trail).values(
            at=asked.at, who=asked.who, origin=asked.origin, action=action, object=on, outcome=outcome
        )
    )


def entries(connection: Connection, *, limit: int, before: int | None = None) -> list[AuditRow]:
    """The newest entries first; those with a number below `before`, if given."""
    c = audit_trail.c
    query = select(*(c[name] for name in AuditRow.__dataclass_fields__)).order_by(c.entry_id.desc()).limit(limit)
    if before is not None:
        query = query.where(c.entry_id < before)
    return [AuditRow(*row) for row in connection.execute(query)]
