"""What asks attribution by touchpoint to look again at events behind its position; `sinks/settle.py` does it."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, insert, select, update

from vocbeam.sinks.tables import settle_again, settle_position


def look_again(connection: Connection, places: Collection[tuple[int, int]]) -> None:
    """Asks for events, (ledger id, offset) each, to be looked at by the next settle, as bare events and as touchpoints.

    For whoever adds events behind the position or changes tags, in the same transaction, while it holds the tagging in
    force shared. Only rows of its own are inserted, so nothing is waited for. Where nothing was ever settled nothing is
    asked for: the first settle looks at everything. Places that hold no event (any more) do no harm.
    """
    if places and was_settled(connection):
        connection.execute(insert(settle_again), [dict(zip(_PLACE, place, strict=True)) for place in places])


_PLACE = ("ledger_id", "kafka_offset")


def settle_everything(connection: Connection) -> None:
    """Has the next settle look at all events again. In a transaction of its own, after what made it necessary."""
    c = settle_position.c
    connection.execute(update(settle_position).values(settled_offset=0, set_back=c.set_back + 1))


def was_settled(connection: Connection) -> bool:
    """Whether this warehouse was ever settled."""
    return connection.execute(select(settle_position.c.ledger_id).limit(1)).first() is not None
