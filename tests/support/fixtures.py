"""Fixtures of all tests: real servers once a session, everything else fresh for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import alertmanager, postgres, prometheus
from tests.support.chromium import Unavailable as NoChromium
from tests.support.chromium import find_or_install
from tests.support.kafka import Topics
from tests.support.reaper import Reaper
from vocbeam.deploy.broker import Broker, BrokerOptions, start_broker, stop_broker
from vocbeam.deploy.flink import FlinkOptions, start_flink, stop_flink
from vocbeam.deploy.prism import find_prism
from vocbeam.schemas.errors import RunnerError

PROJECT = Path(__file__).parents[2]


def skip_except_in_ci(error: Exception) -> NoReturn:
    """Skips a test for want of what `error` says; in continuous integration nothing may be wanting, so it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error))
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def reaper() -> Iterator[Reaper]:
    """Ends registered processes when the session ends, even by SIGKILL."""
    reaper = Reaper()
    yield reaper
    reaper.close()


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory, reaper: Reaper) -> Iterator[Broker]:
    """A real Kafka broker for the session, on free ports; its address is `kafka_broker.bootstrap`."""
    home = tmp_path_factory.mktemp("kafka")
    broker = start_broker(BrokerOptions(home=home, port=0, timeout_s=180))
    reaper.watch(broker.pid)
    yield broker
    stop_broker(home)


@pytest.fixture(scope="session")
def prism() -> Path:
    """Beam's Prism, built into the cache the first time; skips where that can't be, except in CI."""
    try:
        named = os.environ.get("VOCBEAM_PRISM")
        return find_prism(Path(named) if named else None)
    except RunnerError as error:
        skip_except_in_ci(error)


@pytest.fixture(scope="session")
def flink_options(tmp_path_factory: pytest.TempPathFactory, reaper: Reaper) -> Iterator[FlinkOptions]:
    """A real Flink cluster for the session: two task managers, on free ports; what was killed, start_flink starts."""
    options = FlinkOptions(tmp_path_factory.mktemp("home") / "flink", high_availability=True, timeout_s=240)
    for pid in start_flink(options).pids.values():
        reaper.watch(pid)
    yield options
    stop_flink(options.home)


@pytest.fixture(scope="session")
def prometheus_binaries(request: pytest.FixtureRequest) -> prometheus.Binaries:
    """Prometheus and promtool, fetched into the cache the first time; skips where that can't be, except in CI."""
    try:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            return prometheus.find_or_fetch()
    except prometheus.Unavailable as error:
        skip_except_in_ci(error)


@pytest.fixture(scope="session")
def amtool(request: pytest.FixtureRequest) -> alertmanager.Amtool:
    """amtool, fetched into the cache the first time; skips where that can't be, except in CI."""
    try:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            return alertmanager.find_or_fetch()
    except prometheus.Unavailable as error:
        skip_except_in_ci(error)


@pytest.fixture(scope="session")
def chromium(request: pytest.FixtureRequest) -> Path:
    """Chromium's program, installed the first time; skips where that can't be, except in CI."""
    try:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            return find_or_install()
    except NoChromium as error:
        skip_except_in_ci(error)


@pytest.fixture
def kafka_topics(kafka_broker: Broker) -> Iterator[Topics]:
    """Topics of this test alone, removed after it."""
    topics = Topics(kafka_broker.bootstrap, prefix=f"t{uuid.uuid4().hex[:12]}")
    yield topics
    if topics.created:
        topics.remove()


@pytest.fixture(scope="session")
def postgres_server(reaper: Reaper, request: pytest.FixtureRequest) -> Iterator[postgres.PostgresServer]:
    """A real PostgreSQL server for the session; skips where none can be had, except in continuous integration."""
    try:
        # An installation takes a while and changes the machine: it is shown.
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            server = postgres.start()
    except postgres.Unavailable as error:
        skip_except_in_ci(error)
    reaper.watch(server.process.pid)
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database of this test alone."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """SQLAlchemy URL of a SQLite file that isn't there yet."""
    return f"sqlite:///{tmp_path / 'warehouse.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def warehouse_url(request: pytest.FixtureRequest) -> str:
    """The test runs twice, on an empty database of either kind."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: VOCBEAM_DATA, else `../shared/data`; skips where it is missing."""
    folder = Path(os.environ.get("VOCBEAM_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name its folder in VOCBEAM_DATA")
    return folder


def data_set(data_dir: Path, name: str) -> Path:
    """The folder of one of the real data sets; skips where it is missing."""
    folder = data_dir / name
    if not folder.is_dir():
        pytest.skip(f"no data set at {folder}; name the folder of the real data in VOCBEAM_DATA")
    return folder
