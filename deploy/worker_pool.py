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
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.utils import thread_pool_executor

from vocbeam.deploy.tether import release, start_tethered
from vocbeam.schemas.errors import RunnerError

log = logging.getLogger(__name__)


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts one process a worker and ends it when the job does; the workers' output goes to files in `logs`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Starts a worker that connects to the address of the request."""
        worker_id = request.worker_id
        command = [sys.executable, "-m", __spec__.name, "--worker", request.control_endpoint.url, worker_id]
        with self._lock:
            for known, process in list(self._workers.items()):
                if process.poll() is not None:
                    log.info("worker %s ended with %d", known, process.returncode)
                    release(self._workers.pop(known))
            try:
                self._workers[worker_id] = start_tethered(command, self._logs / "workers.log")
            except OSError:
                return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Ends a worker."""
        with self._lock:
            process = self._workers.pop(request.worker_id, None)
        if process is not None:
            release(process)
        return beam_fn_api_pb2.StopWorkerResponse()


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
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {worker_id} %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.ERROR)
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
