"""The pool of Python workers says where it can't listen; all else about it is in the tests of Flink."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vocbeam.deploy.broker import HOST
from vocbeam.deploy.worker_pool import serve
from vocbeam.schemas.errors import RunnerError


def test_serve__taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        address = f"{HOST}:{taken.getsockname()[1]}"
        with pytest.raises(RunnerError, match=f"can't listen at {address}: .* choose another address"):
            serve(address, tmp_path)
