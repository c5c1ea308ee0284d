"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.loaded import Loaded, load
from vocbeam.deploy.broker import Broker


@pytest.fixture(scope="session")
def loaded(kafka_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Events in the session's broker, and the warehouse that an undisturbed run made of them."""
    with load(tmp_path_factory.mktemp("undisturbed"), kafka_broker.bootstrap) as loaded:
        yield loaded
