"""A small shop's events by customer, and an eraser for its warehouse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, MetaData, select

from tests.support.warehouse import NOW, chunk, mini, partition_tables, writer
from vocbeam.schemas.records import DeadLetter, EventType
from vocbeam.schemas.timebase import LocalCalendar
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.erase import Eraser, Letter
from vocbeam.sinks.tables import data_dictionary
from vocbeam.sinks.writer import Failpoint
from vocbeam.transforms.subjects import subject_key

GOVERNANCE = mini()
T0 = 1_500_000_000_000_000
"""2017-07-14 02:40 UTC, 13 July 23:40 in São Paulo."""
HOUR = 3_600_000_000

ANA, BIA = "a" * 32, "b" * 32
"""Pseudonyms."""


def delivery(number: int, customer: str | None, at: int = T0, **more: Any) -> dict[str, Any]:
    """A delivery: adds one contribution to metric `late`, in the local day of `at`."""
    event = {"event_id": f"d{number}", "event_time": at, "name": "delivered", "value": 1.0, "customer_key": customer}
    return {**event, **more}


def step(ticket_id: str, number: int, status: str, customer: str | None, at: int = T0, **more: Any) -> dict[str, Any]:
    """One event of a ticket."""
    event = {
        "event_id": f"{ticket_id}-{number}", "event_time": at, "ticket_id": ticket_id, "sequence": number,
        "status": status, "actor": "agent", "stage": "help", "department": "care", "customer_key": customer,
    }  # fmt: skip
    return {**event, **more}


def answer(response_id: str, number: int, customer: str | None, at: int = T0, **more: Any) -> dict[str, Any]:
    """One event of a survey response, answering csat with 5."""
    event = {
        "event_id": f"{response_id}-{number}", "event_time": at, "survey_id": "after", "response_id": response_id,
        "metric": "csat", "score": 5.0, "status": "complete", "customer_key": customer,
    }  # fmt: skip
    return {**event, **more}


class Shop:
    """Writes events of each type behind the ones it wrote before, into one partition a type."""

    def __init__(self, url: str, reach: Callable[[str], None] = lambda _moment: None) -> None:
        self._writer = writer(url, GOVERNANCE, reach=reach)
        self._next: dict[EventType, int] = {}

    def send(self, event_type: EventType, *events: dict[str, Any], letters: tuple[bytes, ...] = ()) -> dict[str, int]:
        """Writes events and dead letters in one transaction; what the ledger counted."""
        start = self._next.get(event_type, 0)
        end = start + len(events) + len(letters)
        part = chunk(GOVERNANCE, event_type, events, first_offset=start, next_offset=end)
        part.dead += [
            DeadLetter(start + len(events) + i, "decode", "truncated", "it ends early", raw)
            for i, raw in enumerate(letters)
        ]
        (committed,) = self._writer.write((part,))
        self._next[event_type] = end
        return committed._asdict()


def read_letter(_event_type: EventType, raw: bytes) -> Letter:
    """Opens letters of the tests: `of:KEY` was decoded, `ticket:ID` names nobody, all else can't be decoded."""
    plain = raw.removeprefix(b"sealed:")
    kind, _, rest = plain.partition(b":")
    if kind == b"of":
        return Letter("decoded", rest.decode())
    if kind == b"ticket":
        return Letter("decoded", None, ("test", rest.decode()))
    return Letter("undecodable", plain=plain)


def eraser(url: str, *, reach: Callable[[str], None] = lambda _moment: None, **options: Any) -> Eraser:
    """An eraser with connections of its own."""
    given: dict[str, Any] = {"k": 5, "now": lambda: NOW, **options}
    return Eraser(
        open_engine(url),
        open_engine(url, write=True),
        calendar=LocalCalendar(GOVERNANCE.timezone),
        subject_key=subject_key,
        read_letter=read_letter,
        failpoint=Failpoint(reach),
        **given,
    )


def places_of(engine: Engine, *needles: str) -> set[str]:
    """Tables in which one of the texts occurs anywhere, in any column; the dictionary has words of ours alone."""
    metadata = MetaData()
    metadata.reflect(engine)
    parts = partition_tables(engine)
    found = set()
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            if table.name == data_dictionary.name or table.name in parts:
                continue
            for row in connection.execute(select(table)):
                values = [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in row]
                if any(needle in value for value in values for needle in needles):
                    found.add(table.name)
    return found
