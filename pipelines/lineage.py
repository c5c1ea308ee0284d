"""OpenLineage events at the start and the end of each job, where the environment says where to; never in a job's way.

Optional (`pip install 'vocbeam[lineage]'`). The client of OpenLineage reads its own settings: OPENLINEAGE_URL for a
collector, or OPENLINEAGE__TRANSPORT__TYPE and what belongs to it, such as a file. Without any of them nothing is sent.
"""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)

JOBS = frozenset(
    {"backfill", "compact", "drivers", "erase", "replay", "retag", "retain", "run", "settle", "train", "value"}
)
"""Commands that change the warehouse."""

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
        from openlineage.client.event_v2 import Job, OutputDataset, Run, RunEvent, RunState

        client = OpenLineageClient()
        client.emit(
            RunEvent(
                eventType=RunState[state],
                eventTime=datetime.now(UTC).isoformat(),
                run=Run(runId=run_id),
                job=Job(namespace=NAMESPACE, name=name),
                producer=PRODUCER,
                outputs=[OutputDataset(*place) for place in [_warehouse(options)] if place is not None],
            )
        )
        client.close()
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("no lineage event (%s of %s) was sent: %s; the job goes on", state, name, type(error).__name__)


def _warehouse(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Namespace and name of the warehouse, without account and password."""
    from sqlalchemy.engine import make_url

    home = options.get("home")
    address = options.get("warehouse") or (None if home is None else home.warehouse_url)
    if address is None:
        return None
    url = make_url(address)
    if url.get_backend_name() == "sqlite":
        return "file", f"{url.database}"
    return f"postgres://{url.host}:{url.port or 5432}", f"{url.database}.measure"
