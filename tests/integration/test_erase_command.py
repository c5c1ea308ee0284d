"""`vocbeam erase` and `vocbeam retain` as people run them: beside a running pipeline, against real Kafka."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kafka import KafkaProducer
from sqlalchemy import select, text

from tests.support.command import STOPS_WITHIN_S, Books, Vocbeam
from tests.support.erasing import ANA, Shop, delivery, places_of
from tests.support.kafka import Topics
from tests.support.warehouse import MINI, contents
from vocbeam.pipelines.apply import apply_to
from vocbeam.pipelines.cli import vocbeam as cli
from vocbeam.pipelines.settings import Home
from vocbeam.schemas import contracts, wire
from vocbeam.schemas.errors import ConfigError, WrongKey
from vocbeam.schemas.governance import load_governance
from vocbeam.schemas.records import EventType
from vocbeam.schemas.registry import FileRegistry
from vocbeam.schemas.secrets import dead_letter_source, pseudonym_key, pseudonym_source
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.tables import dead_letter, measure
from vocbeam.transforms.pseudonym import Pseudonyms

AT = 1_520_000_000_000_000
"""2018-03-02."""

CUSTOMER, OTHER = "Zbigniew-4471", "Adaeze-0815"
RETENTION = "retention: {event: 730d, flag: 730d, ticket: 730d, survey: 730d, customer_day: 730d, dead_letter: 1d}\n"


def events_of(customer: str) -> list[tuple[EventType, dict[str, Any]]]:
    """What one customer sends: two of them name nobody, the last one can't be loaded."""
    named = {"source": "desk", "customer_id": customer, "event_time": AT}
    nameless = {"source": "desk", "event_time": AT + 1}
    ticket, response = {"ticket_id": f"t-{customer}"}, {"survey_id": "s", "response_id": f"r-{customer}"}
    given: list[tuple[EventType, dict[str, Any]]] = [
        ("ticket", {**named, **ticket, "status": "opened", "body": f"call me {customer}"}),
        ("ticket", {**nameless, **ticket, "status": "responded", "actor": "agent", "body": f"dear {customer}"}),
        ("survey", {**named, **response, "metric": "csat", "score": 5.0, "status": "complete", "comment": customer}),
        ("survey", {**nameless, **response, "metric": "nps", "score": 9.0, "status": "complete"}),
        ("telemetry", {**named, "name": "delivered", "value": 1.0, "session_id": f"s-{customer}"}),
        ("flag", {**named, "flag_kind": "red_flag", "text": f"{customer} waits"}),
        ("outcome", {**named, "outcome_kind": "purchase", "amount": 1_990, "currency": "BRL"}),
        ("survey", {**named, **response, "metric": "csat", "score": 77.0, "status": "complete"}),
    ]
    return [(kind, {**event, "event_id": f"{customer}-{i}"}) for i, (kind, event) in enumerate(given)]


class Company:
    """Sends events of customers to Kafka."""

    def __init__(self, topics: Topics, home: Path) -> None:
        self._topics = topics
        registry = FileRegistry(home / "registry")
        self._ids = {
            kind: registry.register(contracts.subject(topics.name(kind)), contracts.schema_text(kind))
            for kind in ("ticket", "survey", "telemetry", "flag", "outcome")
        }
        self.sent = 0

    def send(self, *customers: str, undecodable: bytes = b"") -> None:
        """All events of some customers, and bytes that nobody can decode."""
        with KafkaProducer(bootstrap_servers=self._topics.bootstrap, acks="all") as producer:
            for customer in customers:
                for kind, event in events_of(customer):
                    value = wire.encode(kind, event, self._ids[kind])
                    producer.send(self._topics.name(kind), value=value, partition=0)
                    self.sent += 1
            if undecodable:
                producer.send(self._topics.name("flag"), value=undecodable, partition=0)
                self.sent += 1
            producer.flush()


@pytest.fixture
def vocbeam(kafka_topics: Topics, warehouse_url: str, tmp_path: Path) -> Vocbeam:
    kafka_topics.create_all()
    governance = tmp_path / "governance.yaml"
    governance.write_text(MINI.read_text(encoding="utf-8") + RETENTION, encoding="utf-8")
    return Vocbeam(tmp_path / "home", kafka_topics.bootstrap, kafka_topics.prefix, warehouse_url, governance)


def test_erase__beside_a_running_pipeline_then_retention(
    vocbeam: Vocbeam, kafka_topics: Topics, warehouse_url: str, tmp_path: Path
) -> None:
    books, company = Books(warehouse_url), Company(kafka_topics, vocbeam.home)
    whom = tmp_path / "whom.txt"
    whom.write_text(f"{CUSTOMER}\n\n", encoding="utf-8")
    with vocbeam.started("run") as running:
        company.send(CUSTOMER, OTHER, undecodable=f"\x00 it was {CUSTOMER}".encode())
        company.send(undecodable=b"\x00 nobody knows")
        books.wait_for(company.sent, running)
        customer_key = Pseudonyms(pseudonym_key(pseudonym_source(vocbeam.home).load())).customer_key(CUSTOMER)
        before = places_of(books.engine, CUSTOMER, customer_key)
        assert {"event", "ticket", "survey_answer", "survey_response", "customer_day"} <= before

        report = vocbeam.call_json("erase", "--customers-file", whom, "--report", tmp_path / "proof.json")
        assert report == json.loads((tmp_path / "proof.json").read_text(encoding="utf-8"))
        assert report["removed"] == {
            "dead_letter": 2, "event": 7, "ticket": 1, "survey_answer": 2, "survey_response": 1, "customer_day": 3,
        }  # fmt: skip
        assert report["customer_keys"] == [customer_key]
        assert (report["governance_version"], report["k"]) == (1, 5)
        assert report["contributions"]["kept"] == 0
        assert report["contributions"]["taken_back"] > 5
        # The other customer's letter was decoded, "nobody knows" could not be: it goes within fourteen days.
        assert (report["dead_letters"]["searched"], report["dead_letters"]["undecodable"]) == (2, 1)
        assert report["dead_letters"]["undecodable_expire_by"] > report["erased_at"]
        assert not any(report["present_afterwards"].values())
        assert report["bytes"]["done"]
        assert any("Kafka" in line for line in report["out_of_reach"])
        assert CUSTOMER not in json.dumps(report)
        assert places_of(books.engine, CUSTOMER, customer_key) == {"erasure_marker"}

        # Kafka still has it all; sent again (under new offsets) it is dropped, the other customer's is known.
        company.send(CUSTOMER, OTHER)
        books.wait_for(company.sent, running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(STOPS_WITHIN_S) == 0, running.said()
    assert places_of(books.engine, CUSTOMER, customer_key) == {"erasure_marker"}
    with books.engine.connect() as connection:
        counted = connection.execute(text("SELECT sum(dropped), sum(duplicates) FROM ingest_ledger")).one()
        letters = connection.execute(select(dead_letter.c.error_class)).scalars().all()
        figures = connection.execute(select(measure).order_by(*measure.primary_key)).all()
    assert tuple(counted) == (7, 7)
    # One of them is the erased customer's of the second round: letters are opened only when somebody erases.
    assert sorted(letters) == ["score_out_of_range", "score_out_of_range", "score_out_of_range", "unknown_schema"]
    assert figures
    assert CUSTOMER not in vocbeam.printed()

    # Seen again, with the letter that came after the first erasure.
    words = vocbeam.call("erase", "--customer-key", customer_key)
    assert "removed: 1 of dead_letter" in words
    assert "looked again: nothing is left" in words
    (proof,) = (vocbeam.home / "erasures").iterdir()
    assert json.loads(proof.read_text(encoding="utf-8"))["removed"]["dead_letter"] == 1

    expired = vocbeam.call_json("retain")
    removed = {entry["table"]: entry["rows"] for entry in expired["expired"] if entry["rows"]}
    # The other ticket is still open.
    assert removed == {"event": 7, "survey_answer": 2, "survey_response": 1, "customer_day": 3}
    vocbeam.reconcile()
    assert contents(books.engine)["event"] == []
    with books.engine.connect() as connection:
        assert connection.execute(select(measure).order_by(*measure.primary_key)).all() == figures


def test_erase__refuses_what_it_cannot_do(sqlite_url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"

    def refused(*options: str) -> str:
        arguments = ["erase", "--home", str(home), "--warehouse", sqlite_url, *options]
        with pytest.raises(ConfigError) as caught:
            cli.main(arguments, standalone_mode=False)
        return str(caught.value)

    assert "vocbeam apply" in refused("--customer", "someone")
    apply_to(open_engine(sqlite_url, write=True), load_governance(MINI), Home(home))
    assert refused().startswith("whom?")
    said = refused("--customer-key", "Someone-4471")
    assert "no pseudonyms" in said
    assert "Someone-4471" not in said
    listed = tmp_path / "ids.txt"
    listed.write_bytes("Zoë-4471\n".encode("latin-1"))
    assert refused("--customers-file", str(listed)) == f"{listed}: not UTF-8 text; save the file as UTF-8"
    (home / "keys" / "pseudonym.key").write_text("0" * 64, encoding="utf-8")
    with pytest.raises(WrongKey, match="no customer could be found with it"):
        cli.main(["erase", "--home", str(home), "--warehouse", sqlite_url, "--customer", "a"], standalone_mode=False)


def test_erase__dry_run_and_retention_in_words(sqlite_url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    apply_to(open_engine(sqlite_url, write=True), load_governance(MINI), Home(home))
    dead_letter_source(home).ensure()
    shop = Shop(sqlite_url)
    shop.send("telemetry", delivery(1, ANA), letters=(b"\x00",))
    runner = CliRunner()

    def said(*arguments: str) -> str:
        options = ["--home", str(home), "--warehouse", sqlite_url]
        return runner.invoke(cli, [*arguments, *options], catch_exceptions=False).stdout

    words = said("erase", "--customer-key", ANA, "--dry-run")
    assert "would be removed: 1 of event, 1 of customer_day" in words
    assert "0 stay, 1 taken back" in words
    assert "1 dead letters are sealed with a key that is not configured" in words
    assert not (home / "erasures").exists()
    assert "dead_letter: 1 have expired" in said("retain", "--dry-run")
    assert "dead_letter: 1 removed" in said("retain")
    assert "dead_letter: 0 removed" in said("retain")


def test_erase__prints_a_report_that_cannot_be_written(sqlite_url: str, tmp_path: Path) -> None:
    apply_to(open_engine(sqlite_url, write=True), load_governance(MINI), Home(tmp_path))
    dead_letter_source(tmp_path).ensure()
    Shop(sqlite_url).send("telemetry", delivery(1, ANA))
    (tmp_path / "file").touch()
    options = ["--home", str(tmp_path), "--warehouse", sqlite_url, "--report", str(tmp_path / "file" / "proof.json")]
    failed = CliRunner().invoke(cli, ["erase", "--customer-key", ANA, *options])
    assert "choose another --report" in str(failed.exception)
    assert json.loads(failed.stdout)["removed"]["event"] == 1
