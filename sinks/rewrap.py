"""Re-encrypts what dead letters hold under the newest key, so that an older one can be retired."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import Engine, bindparam, select, tuple_, update

from vocbeam.sinks.tables import dead_letter

BATCH = 500
"""Dead letters of one transaction; with the largest records, of 16 MiB, a process holds one batch of them."""


def rewrap(engine: Engine, reseal: Callable[[bytes], bytes | None], *, batch: int = BATCH) -> Iterator[tuple[int, int]]:
    """Walks over all dead letters by key, a transaction a batch; yields (looked at, changed) after each commit.

    `reseal` returns the token under the newest key, or None where it is so already; what it raises ends the walk, and
    what was committed stays. A second call finds nothing to do: the walk can be stopped and started at any time, also
    beside a running pipeline, which only adds rows under its own newest key. Rows are locked in key order.
    """
    c = dead_letter.c
    after: tuple[int, int] | None = None
    while True:
        with engine.begin() as connection:
            query = select(c.ledger_id, c.kafka_offset, c.raw).order_by(c.ledger_id, c.kafka_offset).limit(batch)
            if after is not None:
                query = query.where(tuple_(c.ledger_id, c.kafka_offset) > after)
            rows = connection.execute(query.with_for_update()).all()
            if not rows:
                return
            changes = []
            for row in rows:
                token = reseal(bytes(row.raw))
                if token is not None:
                    changes.append({"of_ledger": row.ledger_id, "at": row.kafka_offset, "token": token})
            if changes:
                found = (c.ledger_id == bindparam("of_ledger")) & (c.kafka_offset == bindparam("at"))
                connection.execute(update(dead_letter).where(found).values(raw=bindparam("token")), changes)
            after = rows[-1].ledger_id, rows[-1].kafka_offset
        yield len(rows), len(changes)
