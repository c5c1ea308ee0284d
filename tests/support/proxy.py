"""A TCP relay on loopback that is slow, cuts connections, or swallows what it gets, as a test tells it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vocbeam.deploy.broker import HOST

_PIECE = 16 * 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: on, 0 s. The other side finds its connection reset instead of closed in good order."""


class Proxy:
    """Relays connections to its `port` to `target`; what it does to them may be changed at any time.

    `latency_s` is added to each piece of at most 16 KiB in each direction, `bytes_per_s` bounds each direction of each
    connection. `cut_after` draws, for each new connection, how many bytes it lasts. After `fall_silent` nothing gets
    through and nobody is told: connections stay open and new ones are accepted.
    """

    def __init__(self, target: int) -> None:
        """`target` is a port of the loopback interface, where something may or may not be listening yet."""
        self.target = target
        self.latency_s = 0.0
        self.bytes_per_s: float | None = None
        self.cut_after: Callable[[], int] | None = None
        self.cuts = 0
        self._audible = threading.Event()
        self._audible.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        relay = self._relay

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                relay(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        self._server = Server((HOST, 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        """Relays as long as the context."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self.heal()
            self.cut()
            self._server.server_close()

    def fall_silent(self) -> None:
        """Nothing gets through until `heal`."""
        self._audible.clear()

    def heal(self) -> None:
        """No fault any more; connections that are open stay so."""
        self.latency_s, self.bytes_per_s, self.cut_after = 0.0, None, None
        self._audible.set()

    def cut(self) -> None:
        """Resets every connection."""
        with self._lock:
            for end in list(self._open):
                self._reset(end)

    def _relay(self, client: socket.socket) -> None:
        self._audible.wait()
        try:
            server = socket.create_connection((HOST, self.target), timeout=10)
        except OSError:
            self._reset(client)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        left = [self.cut_after()] if self.cut_after is not None else None
        back = threading.Thread(target=self._pump, args=(server, client, left), daemon=True)
        back.start()
        self._pump(client, server, left)
        back.join()
        with self._lock:
            self._open -= {client, server}
            server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, left: list[int] | None) -> None:
        """Passes on what comes from one end; where one end is gone, or the connection is cut, resets both."""
        ended_well = False
        with contextlib.suppress(OSError):
            ended_well = self._pass_on(source, sink, left)
        if not ended_well:
            with self._lock:
                for end in (source, sink):
                    self._reset(end)

    def _pass_on(self, source: socket.socket, sink: socket.socket, left: list[int] | None) -> bool:
        """Until the source ends (True) or the bytes that are `left`, for both directions, are used up (False)."""
        while piece := source.recv(_PIECE):
            self._audible.wait()
            time.sleep(self.latency_s + (len(piece) / self.bytes_per_s if self.bytes_per_s else 0))
            if left is not None:
                left[0] -= len(piece)
                if left[0] < 0:
                    sink.sendall(piece[: left[0]])
                    self.cuts += 1
                    return False
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
        return True

    @staticmethod
    def _reset(end: socket.socket) -> None:
        # By shutdown first: the other direction's thread may wait for this very socket.
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RDWR)
            end.close()
