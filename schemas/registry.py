"""The schema registry: schemas under subjects, each with a version per subject and an id that is unique everywhere.

`FileRegistry` is the embedded default, a folder that several processes share. `ConfluentRegistry` is a client of
Confluent's REST API, which Apicurio, Karapace and Redpanda speak as well. Both refuse a schema that can't read every
older version of its subject (BACKWARD_TRANSITIVE), since a topic may still hold records of any of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar
from urllib.parse import quote

import httpx
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from vocbeam.schemas.compatibility import incompatibilities_with_all
from vocbeam.schemas.contracts import compact
from vocbeam.schemas.errors import ConfigError, SchemaError

T = TypeVar("T")

TIMEOUT_S = 10.0
"""Of one request; a registry answers in milliseconds, so more than this is an outage."""

ATTEMPTS = 5
"""Requests until an outage is reported; with the waits between them about 4 s."""

LOCK_WAIT_S = 10.0
"""Longest wait for another process that writes the embedded registry, which takes milliseconds."""

NO_SUCH_SUBJECT, NO_SUCH_VERSION, NO_SUCH_SCHEMA = 40401, 40402, 40403
"""Confluent's error codes below HTTP 404."""

USER_VARIABLE, PASSWORD_VARIABLE = "VOCBEAM_REGISTRY_USER", "VOCBEAM_REGISTRY_PASSWORD"


class UnknownSchema(SchemaError):
    """The registry has no schema with this id."""


class NotAvro(SchemaError):
    """The schema with this id is of another kind (JSON Schema, Protobuf)."""


class IncompatibleSchema(SchemaError):
    """The schema can't read what an older version of its subject wrote."""


class RegistryUnavailable(SchemaError):
    """The registry doesn't answer, or answers with something else than its API."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a subject."""

    subject: str
    version: int
    schema_id: int
    schema: str


class Registry(Protocol):
    """Schemas by id and by subject."""

    def register(self, subject: str, schema: str) -> int:
        """Id of this schema, which becomes the subject's newest version unless it already is one of them.

        Raises IncompatibleSchema, with the reasons, when the schema can't read all older versions.
        """
        ...

    def schema_by_id(self, schema_id: int) -> str:
        """Schema text of an id. Raises UnknownSchema, or NotAvro."""
        ...

    def latest(self, subject: str) -> Registered | None:
        """The newest version, or None for a subject without any."""
        ...

    def versions(self, subject: str) -> list[Registered]:
        """All versions of a subject, ascending; empty for an unknown one."""
        ...

    def check_compatible(self, subject: str, schema: str) -> list[str]:
        """Reasons why a reader with `schema` can't read what versions of `subject` wrote; empty when it can."""
        ...


def open_registry(url: str | None, folder: Path) -> Registry:
    """The registry at `url`, or the embedded one in `folder` where `url` is None.

    Raises ConfigError for a URL that is not http or https.
    """
    return FileRegistry(folder) if url is None else ConfluentRegistry(url)


class FileRegistry:
    """The embedded registry: one JSON file in a folder, replaced as a whole under a lock.

    Ids count from 1 over all subjects and are never given twice; the same schema has the same id under every subject.
    Several processes and threads may use a folder at once. Raises SchemaError when the file can't be read,
    RegistryUnavailable when another process doesn't give its lock back.
    """

    def __init__(self, folder: Path, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.folder = folder
        self._lock_wait_s = lock_wait_s
        self._file = folder / "registry.json"
        self._by_id: dict[int, str] = {}

    def register(self, subject: str, schema: str) -> int:
        """See `Registry.register`. The new version is on disk (fsync) when this returns."""
        schema = compact(schema)
        with self._locked():
            state = self._read()
            ids: list[int] = state["subjects"].setdefault(subject, [])
            schema_id = next((int(known) for known, text in state["schemas"].items() if _same(text, schema)), None)
            if schema_id is not None and schema_id in ids:
                return schema_id
            _refuse(subject, incompatibilities_with_all(schema, _labelled(_registered(state, subject))))
            if schema_id is None:
                schema_id = len(state["schemas"]) + 1
                state["schemas"][str(schema_id)] = schema
            ids.append(schema_id)
            self._write(state)
            return schema_id

    def schema_by_id(self, schema_id: int) -> str:
        """See `Registry.schema_by_id`."""
        if schema_id not in self._by_id:
            self._by_id = {int(known): text for known, text in self._read()["schemas"].items()}
        if schema_id not in self._by_id:
            raise UnknownSchema(f"schema id {schema_id} is not in the registry in {self.folder}")
        return self._by_id[schema_id]

    def latest(self, subject: str) -> Registered | None:
        """See `Registry.latest`."""
        return next(reversed(self.versions(subject)), None)

    def versions(self, subject: str) -> list[Registered]:
        """See `Registry.versions`."""
        return _registered(self._read(), subject)

    def check_compatible(self, subject: str, schema: str) -> list[str]:
        """See `Registry.check_compatible`."""
        return incompatibilities_with_all(schema, _labelled(self.versions(subject)))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            self._acquire(lock)
            yield

    def _acquire(self, lock: TextIO) -> None:
        retrying = Retrying(
            stop=stop_after_delay(self._lock_wait_s),
            wait=wait_exponential_jitter(multiplier=0.01, max=0.2, jitter=0.02),
            retry=retry_if_exception_type(BlockingIOError),
        )
        try:
            retrying(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except RetryError as error:
            raise RegistryUnavailable(
                f"another process has held {lock.name} for {self._lock_wait_s:.0f} s; see which one (fuser) and end it"
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            text = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"schemas": {}, "subjects": {}}
        try:
            state: dict[str, Any] = json.loads(text)
            state["schemas"], state["subjects"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SchemaError(f"{self._file} is damaged ({error}); restore it from a backup") from error
        return state

    def _write(self, state: dict[str, Any]) -> None:
        temporary = self.folder / f"registry.{os.getpid()}.{threading.get_ident()}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class ConfluentRegistry:
    """Client of a registry with Confluent's REST API.

    `url` is its base, for example http://host:8081 or http://host:8080/apis/ccompat/v7. Basic authentication comes
    from the URL's user part or, without one, from VOCBEAM_REGISTRY_USER and VOCBEAM_REGISTRY_PASSWORD; neither ever
    appears in a message. Schemas by id never change and are cached; connection errors, timeouts, 429 and 5xx are
    repeated with growing waits. Compatibility is judged by our own rule, whatever level the server is set to, and the
    server may refuse on top. Raises ConfigError for an unusable URL, RegistryUnavailable when retries are used up.
    """

    def __init__(
        self,
        url: str,
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        first_wait_s: float = 0.2,
    ) -> None:
        environment = os.environ if environment is None else environment
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            # Without its cause, which may quote a part of the password.
            raise ConfigError("the registry's URL can't be parsed; check its host and port") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError("the registry's URL must look like http://HOST:PORT or https://HOST/PATH")
        user, password = parsed.username or environment.get(USER_VARIABLE, ""), parsed.password
        if not parsed.username:
            password = environment.get(PASSWORD_VARIABLE, "")
        self.url = str(parsed.copy_with(username=None, password=None)).rstrip("/")
        self._client = httpx.Client(
            base_url=self.url,
            auth=httpx.BasicAuth(user, password) if user else None,
            timeout=timeout_s,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        )
        self._attempts, self._first_wait_s = attempts, first_wait_s
        self._by_id: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"ConfluentRegistry({self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def register(self, subject: str, schema: str) -> int:
        """See `Registry.register`. A schema that is already there is found without write permission."""
        schema = compact(schema)
        path = f"/subjects/{quote(subject, safe='')}"
        known = self._call("POST", path, {"schema": schema}, absent=(NO_SUCH_SUBJECT, NO_SUCH_SCHEMA))
        if known is None:
            _refuse(subject, self.check_compatible(subject, schema))
            path = f"{path}/versions"
            known = self._call("POST", path, {"schema": schema})
        return self._field(path, known, "id", int)

    def schema_by_id(self, schema_id: int) -> str:
        """See `Registry.schema_by_id`."""
        if schema_id not in self._by_id:
            path = f"/schemas/ids/{schema_id}"
            answer = self._call("GET", path, absent=(NO_SUCH_SCHEMA,))
            if answer is None:
                raise UnknownSchema(f"schema id {schema_id} is not in the registry at {self.url}")
            schema = self._field(path, answer, "schema", str)
            if answer.get("schemaType", "AVRO") != "AVRO":
                raise NotAvro(f"schema id {schema_id} is {answer['schemaType']}, not Avro")
            self._by_id[schema_id] = schema
        return self._by_id[schema_id]

    def latest(self, subject: str) -> Registered | None:
        """See `Registry.latest`."""
        return self._version(subject, "latest")

    def versions(self, subject: str) -> list[Registered]:
        """See `Registry.versions`. A version that is deleted meanwhile is left out."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        numbers = self._call("GET", path, absent=(NO_SUCH_SUBJECT,))
        if numbers is None:
            return []
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise self._unexpected(path, "a list of version numbers")
        found = (self._version(subject, number) for number in sorted(numbers))
        return [version for version in found if version is not None]

    def check_compatible(self, subject: str, schema: str) -> list[str]:
        """See `Registry.check_compatible`."""
        return incompatibilities_with_all(schema, _labelled(self.versions(subject)))

    def _version(self, subject: str, number: int | str) -> Registered | None:
        path = f"/subjects/{quote(subject, safe='')}/versions/{number}"
        answer = self._call("GET", path, absent=(NO_SUCH_SUBJECT, NO_SUCH_VERSION))
        if answer is None:
            return None
        version, schema_id = (self._field(path, answer, name, int) for name in ("version", "id"))
        return Registered(subject, version, schema_id, self._field(path, answer, "schema", str))

    def _field(self, path: str, answer: Any, name: str, kind: type[T]) -> T:
        """One field of an answer, which must have this type."""
        value = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._unexpected(path, f"an object whose {name!r} is {'a text' if kind is str else 'a number'}")
        return value

    def _unexpected(self, path: str, expected: str) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"{self.url}{path} answered something else than {expected}; --registry must be the base URL of the "
            "registry's Confluent API"
        )

    def _call(self, method: str, path: str, body: Any = None, absent: tuple[int, ...] = ()) -> Any:
        """The answer's JSON, or None for one of the `absent` error codes."""
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential_jitter(multiplier=self._first_wait_s, max=5, jitter=self._first_wait_s),
            retry=retry_if_exception_type((httpx.RequestError, _Overloaded)),
        )
        try:
            response = retrying(self._send, method, path, body)
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise RegistryUnavailable(
                f"the schema registry at {self.url} does not answer after {self._attempts} attempts "
                f"({type(cause).__name__}: {cause}); check that it runs and that --registry names it"
            ) from cause
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise RegistryUnavailable(
                f"{self.url}{path} answered HTTP {response.status_code} without JSON; --registry must be the base URL "
                "of the registry's Confluent API"
            ) from error
        if response.is_success:
            return answer
        code, message = _error_of(answer)
        if code in absent:
            return None
        if response.status_code in (401, 403):
            raise ConfigError(
                f"the registry at {self.url} refuses access (HTTP {response.status_code}); set {USER_VARIABLE} and "
                f"{PASSWORD_VARIABLE}"
            )
        if response.status_code == 409:
            raise IncompatibleSchema(f"the registry at {self.url} refuses the schema as incompatible: {message}")
        raise SchemaError(f"{method} {self.url}{path} failed with HTTP {response.status_code}, code {code}: {message}")

    def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        response = self._client.request(method, path, json=body)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Overloaded(f"HTTP {response.status_code}")
        return response


class _Overloaded(Exception):
    """The server failed in a way that may pass."""


def _error_of(answer: Any) -> tuple[int, str]:
    """Confluent's error code and message of an answer's body."""
    if not isinstance(answer, dict):
        return 0, "no message"
    code = answer.get("error_code", 0)
    return (code if isinstance(code, int) else 0), str(answer.get("message") or "no message")


def _same(left: str, right: str) -> bool:
    """Whether two schema texts are the same JSON; the order of keys says nothing, that of fields does."""
    return bool(json.loads(left) == json.loads(right))


def _registered(state: Mapping[str, Any], subject: str) -> list[Registered]:
    ids = state["subjects"].get(subject, [])
    return [Registered(subject, number, id_, state["schemas"][str(id_)]) for number, id_ in enumerate(ids, start=1)]


def _labelled(versions: list[Registered]) -> list[tuple[str, str]]:
    return [(f"version {version.version}", version.schema) for version in versions]


def _refuse(subject: str, reasons: list[str]) -> None:
    if reasons:
        raise IncompatibleSchema(
            f"the schema can't read all older versions of {subject}: {'; '.join(reasons)}; "
            "give new fields a default and keep old ones readable"
        )
