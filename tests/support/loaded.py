"""Events that lie in Kafka and the warehouse that an undisturbed run made of them: what every fault is held against."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import Books, Vocbeam
from tests.support.kafka import Topics
from tests.support.warehouse import contents
from vocbeam.deploy.broker import list_topics
from vocbeam.pipelines.settle import open_settler
from vocbeam.schemas.governance import load_governance
from vocbeam.sinks.engine import open_engine

RECORDS_A_TRANSACTION = 100

MANY_TRANSACTIONS = (
    "--group-records", str(RECORDS_A_TRANSACTION), "--chunk-records", "50", "--progress-seconds", "1",
)  # fmt: skip
"""Over a hundred transactions for the events of these tests, so that a fault finds one in hand."""


@dataclass(frozen=True)
class Loaded:
    """Events that lie in Kafka, and the warehouse that an undisturbed run made of them."""

    vocbeam: Vocbeam
    records: int
    rows: dict[str, list[tuple[object, ...]]]

    def assert_same_rows(self, books: Books) -> None:
        """Fails unless every content table equals that of the undisturbed run, which settled when it had caught up."""
        url = books.engine.url.render_as_string(hide_password=False)
        settler = open_settler(url, load_governance(self.vocbeam.governance))
        settler.settle()
        settler.close()
        rows = contents(books.engine)
        for table, expected in self.rows.items():
            assert rows[table] == expected, table


@contextmanager
def load(home: Path, bootstrap: str, partitions: int = 3) -> Iterator[Loaded]:
    """Two months of a simulated retailer, some events sent twice, in topics of their own, which go when this ends."""
    url = f"sqlite:///{home / 'undisturbed.db'}"
    topics = Topics(bootstrap, prefix=f"t{uuid.uuid4().hex[:12]}")
    vocbeam = Vocbeam(home, bootstrap, topics.prefix, url)
    vocbeam.call("simulate", "--out", home, "--customers", "450", "--days", "60", "--duplicates", "0.05")
    events = home / "events.jsonl"
    records = vocbeam.call_json("produce", "--events", events, "--partitions", str(partitions))["events"]
    topics.created = [name for name in list_topics(bootstrap) if name.startswith(topics.prefix)]
    assert vocbeam.call_json("run", "--until-caught-up")["records"] == records
    rows = contents(open_engine(url))
    assert all(rows.values())
    yield Loaded(vocbeam, records, rows)
    topics.remove()
