"""`vocbeam verify real` on one real data set: produced, loaded into either database, compared with pandas."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.kafka import Topics
from vocbeam.deploy.broker import Broker, list_topics
from vocbeam.pipelines.verify import Place, compare_set, load_set, produce_set
from vocbeam.schemas.errors import ConfigError
from vocbeam.sinks.engine import open_engine


@pytest.fixture(scope="module")
def produced(kafka_broker: Broker, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Topics that hold the Olist data set."""
    place = Place(kafka_broker.bootstrap, f"t{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("verify"))
    # 8,225 reviews; 7,989 approved + 6,353 handed over + 5,170 delivered; 8,924 payments + 1,234 cancellations
    assert produce_set("olist", data_dir, place) == 37_895
    yield place
    names = [name for name in list_topics(place.bootstrap) if name.startswith(place.topic_prefix)]
    Topics(place.bootstrap, place.topic_prefix, names).remove()


def test_verify__olist_equals_pandas_and_a_changed_cell_is_found(
    produced: Place, data_dir: Path, warehouse_url: str
) -> None:
    load_set("olist", produced, warehouse_url)
    engine = open_engine(warehouse_url, write=True)
    comparisons = compare_set("olist", data_dir, engine)
    assert [comparison.about.what for comparison in comparisons if not comparison.equal] == []
    assert {"revenue in all: centavos, payments", "Kafka records"} < {each.about.what for each in comparisons}

    with engine.begin() as connection:
        changed = connection.execute(
            text("UPDATE measure SET total = total + 1 WHERE metric = 'revenue' AND date = '2017-11-24'")
        ).rowcount
    assert changed > 0
    differing = {each.about.what: each.differing for each in compare_set("olist", data_dir, engine) if not each.equal}
    engine.dispose()
    assert differing == {
        "checks of the books: all, failed": [""],
        "revenue in all: centavos, payments": ["BRL"],
        "revenue by month of purchase: centavos, payments": ["2017-11"],
    }

    with pytest.raises(ConfigError, match="is not empty"):
        load_set("olist", produced, warehouse_url)
