"""The steps from raw groups to the warehouse, as every job that loads events composes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vocbeam.pipelines.apply import now_us
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import EventType, SubjectRule
from vocbeam.schemas.registry import open_registry
from vocbeam.schemas.secrets import dead_letter_source, pseudonym_source
from vocbeam.sinks.retries import RETRY_LIMIT_S
from vocbeam.sinks.steps import WriteChunks, WriterConfig
from vocbeam.transforms.decode import SchemaById
from vocbeam.transforms.progress import report_committed
from vocbeam.transforms.steps import DecodeChunks, DecodeConfig, RedactAndTag, TagConfig
from vocbeam.transforms.subject_rules import subject_rules


def rules_of(governance_text: str) -> tuple[SubjectRule, ...]:
    """Subject rules of a governance file's text, for a worker that has no more than that."""
    return subject_rules(parse_governance(governance_text))


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

    def decode(self, open_schemas: Callable[[], SchemaById] | None = None) -> DecodeChunks:
        """RawGroup → DecodedGroup; with schemas from the registry unless others are given."""
        return DecodeChunks(
            DecodeConfig(
                governance_text=self.governance_text,
                event_types=self.event_types,
                open_registry=open_schemas or partial(open_registry, self.registry, self.home / "registry"),
                now=now_us,
            )
        )

    def tag(self) -> RedactAndTag:
        """DecodedGroup → TaggedGroup."""
        return RedactAndTag(
            TagConfig(
                governance_text=self.governance_text,
                pseudonym_key=pseudonym_source(self.home),
                key_fingerprint=self.key_fingerprint,
            )
        )

    def write(self) -> WriteChunks:
        """TaggedGroup → Committed."""
        return WriteChunks(self.writer())

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
            retry_limit_s=self.retry_seconds,
        )
