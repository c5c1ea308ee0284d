"""What the tests of faults share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from kafka import KafkaProducer

from tests.support.command import Vocbeam
from tests.support.frail import FrailBroker, Sent, frail_broker, records_of, send
from tests.support.kafka import Topics
from tests.support.loaded import Loaded, load
from tests.support.reaper import Reaper
from vocbeam.deploy.broker import Broker
from vocbeam.transforms.kafka_settings import ClientName


@pytest.fixture(scope="session")
def loaded(kafka_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Events in the session's broker, and the warehouse that an undisturbed run made of them."""
    with load(tmp_path_factory.mktemp("undisturbed"), kafka_broker.bootstrap) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def sent(loaded: Loaded) -> list[Sent]:
    """The records of those events."""
    return records_of(loaded)


@pytest.fixture(scope="session")
def frail(tmp_path_factory: pytest.TempPathFactory, reaper: Reaper) -> Iterator[FrailBroker]:
    """A broker that tests stop, kill and set back."""
    with frail_broker(tmp_path_factory.mktemp("frail"), reaper) as broker:
        yield broker


@pytest.fixture
def topics(frail: FrailBroker) -> Topics:
    """Topics of this test alone on the frail broker, which runs and whose network is healed."""
    frail.start()
    frail.network.heal()
    return Topics(frail.bootstrap, prefix=f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
def vocbeam(loaded: Loaded, topics: Topics, postgres_url: str) -> Vocbeam:
    """The installation whose keys and schemas made the events, with topics of this test and an empty warehouse."""
    return Vocbeam(loaded.vocbeam.home, topics.bootstrap, topics.prefix, postgres_url)


@pytest.fixture
def filled(topics: Topics, sent: list[Sent]) -> Topics:
    """Topics of this test with all the events in them."""
    topics.create_all(partitions=3)
    with KafkaProducer(bootstrap_servers=topics.bootstrap) as producer:
        send(producer, topics.prefix, sent)
    return topics


@pytest.fixture(params=get_args(ClientName))
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs once with each library that fetches records: runs find its name in their environment."""
    monkeypatch.setenv("VOCBEAM_CONSUMER", request.param)
    name: str = request.param
    return name


@pytest.fixture
def small_fetches(tmp_path: Path) -> tuple[str, str]:
    """Options of a run whose consumer asks often: by default one fetch would bring all that these tests have."""
    path = tmp_path / "consumer.properties"
    path.write_text("fetch.max.bytes = 65536\nmax.partition.fetch.bytes = 16384\n", encoding="utf-8")
    return "--consumer-config", str(path)
