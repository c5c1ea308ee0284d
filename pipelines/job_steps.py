"""The steps from raw groups to the warehouse, as every job that loads events composes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine

from vocbeam.pipelines.apply import now_us
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import EventType, SubjectRule
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.secrets import dead_letter_source, pseudonym_source
from vocbeam.sinks import models
from vocbeam.sinks.engine import shared_engine
from vocbeam.sinks.retries import RETRY_LIMIT_S, with_retries
from vocbeam.sinks.steps import WriteChunks, WriterConfig
from vocbeam.sinks.worker_metric import Command, count_step
from vocbeam.transforms.decode import SchemaById
from vocbeam.transforms.progress import records_behind, records_read, report_committed, report_model_changed
from vocbeam.transforms.steps import DecodeChunks, DecodeConfig, RedactAndTag, TagConfig
from vocbeam.transforms.subject_rules import subject_rules

if TYPE_CHECKING:
    from vocbeam.transforms.text_model import LinearTextModel

T = TypeVar("T")


def rules_of(governance_text: str) -> tuple[SubjectRule, ...]:
    """Subject rules of a governance file's text, for a worker that has no more than that."""
    return subject_rules(parse_governance(governance_text))


class WarehouseModels:
    """Text models as the warehouse hands them out; satisfies `transforms.steps.Models`."""

    def __init__(self, engine: Engine, retry_seconds: float = RETRY_LIMIT_S) -> None:
        self._engine = engine
        self._retry_seconds = retry_seconds

    def active_model(self) -> str | None:
        """The published version. Raises SinkUnavailable when the retry limit is reached."""
        return self._read("to tell the published model", models.published)

    def load_model(self, version: str) -> LinearTextModel:
        """A stored model. Raises ConfigError where it can't be read, SinkUnavailable at the retry limit."""
        # Imported where a model is there: scikit-learn takes a second, and memory in every worker.
        from vocbeam.transforms.text_model import LinearTextModel

        stored = self._read("to hand out a model", partial(models.load, model_version=version))
        return LinearTextModel.from_bytes(stored)

    def _read(self, what: str, read: Callable[[Connection], T]) -> T:
        def attempt() -> T:
            with self._engine.connect() as connection:
                return read(connection)

        return with_retries(what, attempt, self._retry_seconds)


@dataclass(frozen=True)
class ModelsFactory:
    """Picklable recipe for WarehouseModels; the URL comes without a password (the driver's environment has it)."""

    warehouse_url: str
    retry_seconds: float

    def __call__(self) -> WarehouseModels:
        return WarehouseModels(shared_engine(self.warehouse_url), self.retry_seconds)


@dataclass(frozen=True, kw_only=True)
class JobSteps:
    """What the steps of one run need in any process: picklable, with names of secrets and never secrets."""

    governance_text: str
    timezone: str
    event_types: Mapping[str, EventType]
    registry: str | None
    home: Path
    warehouse_url: str
    key_fingerprint: str
    run_epoch: int
    retry_seconds: float = RETRY_LIMIT_S
    command: Command = "run"

    def decode(self, open_schemas: Callable[[], SchemaById] | None = None) -> DecodeChunks:
        """RawGroup → DecodedGroup; with schemas from the registry unless others are given."""
        return DecodeChunks(
            DecodeConfig(
                governance_text=self.governance_text,
                event_types=self.event_types,
                open_registry=open_schemas or partial(open_registry, self.registry, self.home / "registry"),
                now=now_us,
                took=count_step,
            )
        )

    def tag(self) -> RedactAndTag:
        """DecodedGroup → TaggedGroup."""
        return RedactAndTag(
            TagConfig(
                governance_text=self.governance_text,
                pseudonym_key=pseudonym_source(self.home),
                key_fingerprint=self.key_fingerprint,
                open_models=ModelsFactory(self.warehouse_url, self.retry_seconds),
                took=count_step,
            )
        )

    def write(self, *, ahead: bool = False) -> WriteChunks:
        """TaggedGroup → Committed; with `ahead` the source may read on while a group is written.

        Not into SQLite, whose driver asks for Python's lock after each row: a busy thread beside it makes it wait.
        """
        return WriteChunks(self.writer(), ahead=ahead and not self.warehouse_url.startswith("sqlite"))

    def writer(self) -> WriterConfig:
        """What opens a writer of this run."""
        return WriterConfig(
            warehouse_url=self.warehouse_url,
            timezone=self.timezone,
            run_epoch=self.run_epoch,
            dead_letter_key=dead_letter_source(self.home),
            rules=partial(rules_of, self.governance_text),
            now=now_us,
            committed=report_committed,
            behind=records_behind,
            model_changed=report_model_changed,
            retry_limit_s=self.retry_seconds,
            command=self.command,
            also_counted=records_read,
        )
