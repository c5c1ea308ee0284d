"""Starts Python workers for a Flink cluster: Beam's EXTERNAL environment, on an address that one chooses.

Beam's own pool listens on all interfaces and leaves the workers of vanished jobs running; ours end with their job and
with the pool, however that ends.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.utils import thread_pool_executor

from vocbeam.deploy.garbage import collect_seldom
from vocbeam.deploy.tether import release, start_tethered
from vocbeam.schemas.errors import RunnerError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Worker:
    """`peer` is who asked for it: each task manager gives its workers numbers of its own, so ids come twice."""

    worker_id: str
    peer: str
    process: subprocess.Popen[bytes]


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts one process a worker and ends it when the job does; the workers' output goes to files in `logs`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Starts a worker that connects to the address of the request."""
        worker_id = request.worker_id
        command = [sys.executable, "-m", __spec__.name, "--worker", request.control_endpoint.url, worker_id]
        try:
            process = start_tethered(command, self._logs / "workers.log")
        except OSError:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        worker = _Worker(worker_id, context.peer(), process)
        with self._lock:
            self._workers.append(worker)
        threading.Thread(target=self._reap, args=(worker,), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Ends a worker. One that can't be told from another task manager's ends by itself, as its runner is gone."""
        with self._lock:
            named = [worker for worker in self._workers if worker.worker_id == request.worker_id]
        asked_for = [worker for worker in named if worker.peer == context.peer()] or named
        if len(asked_for) == 1:
            release(asked_for[0].process)
        return beam_fn_api_pb2.StopWorkerResponse()

    def _reap(self, worker: _Worker) -> None:
        code = worker.process.wait()
        log.info("worker %s ended with %d", worker.worker_id, code)
        with self._lock:
            self._workers.remove(worker)
        release(worker.process)


def serve(address: str, logs: Path) -> None:
    """Serves at `address` (host:port) until the process is ended; raises RunnerError where it can't listen there."""
    logs.mkdir(parents=True, exist_ok=True)
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise RunnerError(f"can't listen at {address}: {error}; choose another address") from error
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(WorkerPool(logs), server)
    server.start()
    server.wait_for_termination()


def work(control_address: str, worker_id: str) -> None:
    """Body of a worker process: does what the runner at `control_address` asks for, until that is gone."""
    # The address tells the task manager: ids of workers may come twice.
    origin = f"{control_address} {worker_id}"
    # Beam has set the logging up by now, in passing, with a warning of its own.
    form = f"%(asctime)s {origin} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, force=True)
    # Which partitions it reads.
    logging.getLogger("vocbeam.transforms.source").setLevel(logging.INFO)
    logging.getLogger("kafka").setLevel(logging.ERROR)
    collect_seldom()
    code = 1
    try:
        SdkHarness(control_address, worker_id=worker_id).run()
        code = 0
    finally:
        # Threads that still wait for a runner that is gone would keep the process alive.
        if code:
            log.warning("the runner is gone", exc_info=True)
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2], sys.argv[3])
    else:
        serve(sys.argv[1], Path(sys.argv[2]))
