"""A small HTTP server that speaks Confluent's registry API over a `FileRegistry`, for tests of the client."""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.tls import Identity
from vocbeam.schemas.errors import SchemaError
from vocbeam.schemas.registry import FileRegistry, IncompatibleSchema, UnknownSchema

SUBJECT = re.compile(r"/subjects/([^/]+)(?:/versions(?:/(latest|\d+))?)?$")
SCHEMA = re.compile(r"/schemas/ids/(\d+)$")


@dataclass
class RegistryServer:
    """Where it listens, what it was asked, and how it misbehaves."""

    url: str
    requests: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    """HTTP statuses with which the next requests are answered."""
    credentials: tuple[str, str] | None = None
    schema_type: str | None = None
    """What schemas asked for by id are said to be, if not Avro."""
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    """Status and body with which the next requests are answered, whatever they ask."""


@contextmanager
def serve_registry(registry: FileRegistry, identity: Identity | None = None) -> Iterator[RegistryServer]:
    """The server, listening on a free port of 127.0.0.1 while the context lasts; encrypted, if it has an identity."""
    state = RegistryServer("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._handle(None)

        def do_POST(self) -> None:
            self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

        def _handle(self, body: Any) -> None:
            state.requests.append(f"{self.command} {self.path}")
            if state.answers:
                return self._send(*state.answers.pop(0))
            if state.failures:
                return self._answer(state.failures.pop(0), {"error_code": 50001, "message": "planted failure"})
            if state.credentials is not None:
                expected = base64.b64encode(":".join(state.credentials).encode()).decode()
                if self.headers.get("Authorization") != f"Basic {expected}":
                    return self._answer(401, {"error_code": 401, "message": "Unauthorized"})
            status, answer = _respond(registry, self.command, urlsplit(self.path).path, body)
            if state.schema_type is not None and SCHEMA.match(self.path):
                answer["schemaType"] = state.schema_type
            return self._answer(status, answer)

        def _answer(self, status: int, answer: Any) -> None:
            self._send(status, json.dumps(answer).encode())

        def _send(self, status: int, payload: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    if identity:
        encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        encrypted.load_cert_chain(identity.both)
        server.socket = encrypted.wrap_socket(server.socket, server_side=True)
        state.url = state.url.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(registry: FileRegistry, method: str, path: str, body: Any) -> tuple[int, Any]:
    if match := SCHEMA.match(path):
        try:
            return 200, {"schema": registry.schema_by_id(int(match[1]))}
        except UnknownSchema:
            return 404, {"error_code": 40403, "message": "Schema not found"}
    match = SUBJECT.match(path)
    if match is None:
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}
    subject = unquote(match[1])
    versions = registry.versions(subject)
    if method == "POST" and path.endswith("/versions"):
        try:
            return 200, {"id": registry.register(subject, body["schema"])}
        except IncompatibleSchema as error:
            return 409, {"error_code": 409, "message": str(error)}
        except SchemaError as error:
            return 422, {"error_code": 42201, "message": str(error)}
    if not versions:
        return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
    if method == "POST":
        found = [v for v in versions if json.loads(v.schema) == json.loads(body["schema"])]
        missing = {"error_code": 40403, "message": "Schema not found"}
    elif match[2] is None:
        return 200, [version.version for version in versions]
    else:
        found = [v for v in versions if match[2] == "latest" or v.version == int(match[2])]
        missing = {"error_code": 40402, "message": "Version not found."}
    if not found:
        return 404, missing
    version = found[-1]
    answer = {"subject": subject, "version": version.version, "id": version.schema_id, "schema": version.schema}
    return 200, answer
