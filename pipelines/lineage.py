"""OpenLineage events at the start and the end of each job, where the environment says where to; never in a job's way.

Optional (`pip install 'vocbeam[lineage]'`). The client of OpenLineage reads its own settings: OPENLINEAGE_URL for a
collector, or OPENLINEAGE__TRANSPORT__TYPE and what belongs to it, such as a file. Without any of them nothing is sent.
"""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from vocbeam.schemas.contracts import topic
from vocbeam.schemas.records import EVENT_TYPES

log = logging.getLogger(__name__)

Tables = tuple[str, ...]

_FACTS = ("event", "ticket", "survey_answer", "measure")

JOBS: Mapping[str, tuple[Tables, Tables]] = {
    "backfill": ((), (*_FACTS, "dead_letter")),
    "compact": (("measure",), ("measure", "measure_month")),
    "drivers": ((*_FACTS, "intervention_effect"), ("metric_edge",)),
    "erase": ((), (*_FACTS, "dead_letter")),
    "experiment estimate": (("measure", "intervention"), ("intervention_effect",)),
    "replay": (("dead_letter",), (*_FACTS, "dead_letter")),
    "retag": (_FACTS[:-1], _FACTS),
    "retain": ((), (*_FACTS, "dead_letter")),
    "run": ((), (*_FACTS, "dead_letter")),
    "settle": (_FACTS[:-1], _FACTS),
    "train": (("event",), ("text_model",)),
    "value": (_FACTS[:-1], ("value_segment", "value_issue")),
}
"""Commands that change the warehouse, and the tables of facts and results that each reads and writes."""

_SETTINGS = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")

NAMESPACE = "vocbeam"
PRODUCER = "https://pypi.org/project/vocbeam"


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment says where events go."""
    if environment.get("OPENLINEAGE_DISABLED", "").lower() == "true":
        return False
    return any(name in _SETTINGS or name.startswith("OPENLINEAGE__") for name in environment)


def with_lineage(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    """The callback of a job's command that tells of its start, and of its end: COMPLETE, or FAIL for an error or an
    exit code above 0. What can't be sent is logged as a warning, and the job goes on.
    """

    @functools.wraps(callback)
    def told(*args: Any, **options: Any) -> Any:
        if not is_wanted(os.environ):
            return callback(*args, **options)
        run_id = str(uuid.uuid4())
        _tell("START", name, run_id, options)
        ended = "FAIL"
        try:
            code = callback(*args, **options)
            ended = "FAIL" if isinstance(code, int) and code else "COMPLETE"
            return code
        finally:
            _tell(ended, name, run_id, options)

    return told


def _tell(state: str, name: str, run_id: str, options: Mapping[str, Any]) -> None:
    # Whatever a collector, a setting or a missing package does: lineage is no reason for a job to fail.
    try:
        from openlineage.client import OpenLineageClient
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

        read, written = JOBS[name]

        client = OpenLineageClient()
        client.emit(
            RunEvent(
                eventType=RunState[state],
                eventTime=datetime.now(UTC).isoformat(),
                run=Run(runId=run_id),
                job=Job(namespace=NAMESPACE, name=name),
                producer=PRODUCER,
                inputs=[InputDataset(*place) for place in (*_topics(name, options), *_tables(options, read))],
                outputs=[OutputDataset(*place) for place in _tables(options, written)],
            )
        )
        client.close()
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("no lineage event (%s of %s) was sent: %s; the job goes on", state, name, type(error).__name__)


def _topics(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Namespace and name of each topic that `run` reads."""
    if name == "run" and "bootstrap" in options:
        for event_type in EVENT_TYPES:
            yield f"kafka://{options['bootstrap'].split(',')[0]}", topic(event_type, options["topic_prefix"])


def _tables(options: Mapping[str, Any], names: Tables) -> Iterator[tuple[str, str]]:
    """Namespace and name of tables of the warehouse, without account and password."""
    from sqlalchemy.engine import make_url

    home = options.get("home")
    address = options.get("warehouse") or (None if home is None else home.warehouse_url)
    if address is None:
        return
    url = make_url(address)
    for name in names:
        if url.get_backend_name() == "sqlite":
            yield f"sqlite://{url.database}", name
        else:
            yield f"postgres://{url.host}:{url.port or 5432}", f"{url.database}.public.{name}"
