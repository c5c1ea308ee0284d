"""The pool of Python workers: where it can't listen, and whose worker it ends; all else is in the tests of Flink."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from apache_beam.utils import thread_pool_executor

from vocbeam.deploy.broker import HOST, free_port
from vocbeam.deploy.worker_pool import WorkerPool, serve
from vocbeam.schemas.errors import RunnerError


def test_serve__taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        address = f"{HOST}:{taken.getsockname()[1]}"
        with pytest.raises(RunnerError, match=f"can't listen at {address}: .* choose another address"):
            serve(address, tmp_path)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[str]:
    """Address of a pool whose workers are children of this process."""
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    port = server.add_insecure_port(f"{HOST}:0")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(WorkerPool(tmp_path), server)
    server.start()
    yield f"{HOST}:{port}"
    server.stop(grace=None).wait()


def workers() -> list[psutil.Process]:
    """What ties each worker to this process."""
    return [child for child in psutil.Process().children() if "--worker" in child.cmdline()]


def test_pool__two_task_managers_give_the_same_number(pool: str) -> None:
    endpoint = endpoints_pb2.ApiServiceDescriptor(url=f"{HOST}:{free_port()}")
    start = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1", control_endpoint=endpoint)
    stop = beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1")
    # Else both would share one connection.
    own = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(pool, own) as first_channel, grpc.insecure_channel(pool, own) as second_channel:
        first = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(first_channel)
        second = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(second_channel)
        first.StartWorker(start)
        (of_first,) = workers()
        second.StartWorker(start)
        (of_second,) = [worker for worker in workers() if worker != of_first]
        first.StopWorker(stop)
        psutil.wait_procs([of_first], 10)
        assert workers() == [of_second]
        second.StopWorker(stop)
        psutil.wait_procs([of_second], 10)
        assert workers() == []
