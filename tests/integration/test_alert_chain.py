"""The whole path of an alert, from events by way of Prometheus and Alertmanager to a department's webhook."""

from __future__ import annotations

from pathlib import Path

from tests.support.alertmanager import Amtool
from tests.support.kafka import Topics
from tests.support.prometheus import Binaries
from vocbeam.deploy.broker import list_topics
from vocbeam.deploy.monitoring import Programs
from vocbeam.pipelines.alert_chain import Scene, run_chain


def test_chain__an_incident_reaches_its_department_and_nobody_else(
    kafka_topics: Topics, postgres_url: str, tmp_path: Path, prometheus_binaries: Binaries, amtool: Amtool
) -> None:
    scene = Scene(
        bootstrap=kafka_topics.bootstrap,
        topic_prefix=kafka_topics.prefix,
        warehouse=postgres_url,
        folder=tmp_path,
        programs=Programs(prometheus_binaries.prometheus, amtool.server),
    )
    steps = list(run_chain(scene))
    for step in steps:
        print(f"{step.seconds:6.1f} s  {step.what}")
    kafka_topics.created = [name for name in list_topics(scene.bootstrap) if name.startswith(scene.topic_prefix)]
    assert len(steps) == 9
