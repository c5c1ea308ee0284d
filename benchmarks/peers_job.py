"""The main job as a peer: their events, their tags and their text model; run by `benchmarks/peers.py`.

It prints what they print: when the imports had ended, when the last commit was, and what the imports took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import sklearn.feature_extraction.text
import sklearn.linear_model  # noqa: F401 - as the peers do, before the clock starts
from joblib import load
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vocbeam.pipelines.apply import apply_to, now_us
from vocbeam.pipelines.ingest import BUNDLE_SECONDS, Job, work
from vocbeam.pipelines.job_steps import JobSteps
from vocbeam.pipelines.runners import InProcess
from vocbeam.pipelines.settings import Home
from vocbeam.schemas import contracts
from vocbeam.schemas.governance import parse_governance
from vocbeam.schemas.records import EVENT_TYPES
from vocbeam.schemas.secrets import dead_letter_source, pseudonym_source
from vocbeam.sinks import models
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.ledger import draw_run_epoch
from vocbeam.sinks.tables import ingest_ledger
from vocbeam.transforms.consumers import check_client
from vocbeam.transforms.kafka_settings import ClientName, SourceConfig, find_end_offsets
from vocbeam.transforms.steps import RedactAndTag, TagConfig
from vocbeam.transforms.tag import Predicted, Prediction

VERSION = "peers"


class PeersModel:
    """Their hashing vectoriser and linear classifier; satisfies `transforms.tag.TextModel`."""

    version = VERSION

    def __init__(self, path: Path) -> None:
        self._vectoriser, self._classifier = load(path)
        self._predictions = {
            str(name): Prediction(str(name).split("|")[0], "", 1.0) for name in self._classifier.classes_
        }
        self.stages = tuple(prediction.stage for prediction in self._predictions.values())

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        """A stage of every text; it knows no topics and no sentiment."""
        found = self._classifier.predict(self._vectoriser.transform(texts))
        return Predicted([self._predictions[str(name)] for name in found], [None] * len(texts))


@dataclass(frozen=True)
class PeersModels:
    """Hands out the one model; satisfies `transforms.steps.Models`."""

    path: Path

    def active_model(self) -> str | None:
        """The version that new events are to be tagged with."""
        return VERSION

    def load_model(self, version: str) -> PeersModel:
        """The model."""
        return PeersModel(self.path)


class KeepTexts:
    """In the place of a redactor: texts stay as they are."""

    def redact_all(self, texts: Sequence[str | None]) -> list[str | None]:
        """The same texts."""
        return list(texts)


class TagUnredacted(RedactAndTag):
    """Tags without redaction, which the product can't leave out and no peer does."""

    def setup(self) -> None:
        """As ever, but for the redactor."""
        super().setup()
        tagger: Any = self._tagger
        tagger._redactor = KeepTexts()


@dataclass(frozen=True, kw_only=True)
class PeersSteps(JobSteps):
    """The steps of the main job, with their model, and without redaction where it is not wanted."""

    model: Path
    redact: bool

    def tag(self) -> RedactAndTag:
        """DecodedGroup → TaggedGroup."""
        config = TagConfig(
            governance_text=self.governance_text,
            pseudonym_key=pseudonym_source(self.home),
            key_fingerprint=self.key_fingerprint,
            open_models=partial(PeersModels, self.model),
        )
        return RedactAndTag(config) if self.redact else TagUnredacted(config)


def main(
    bootstrap: str, url: str, governance: str, home: str, model: str, prefix: str, redact: str, client: ClientName
) -> None:
    """Loads everything there is and reports."""
    governance_text = Path(governance).read_text(encoding="utf-8")
    rules = parse_governance(governance_text)
    folder = Path(home)
    dead_letter_source(folder).ensure()
    engine = open_engine(url, write=True)
    fingerprint = apply_to(engine, rules, Home(folder))
    with engine.begin() as connection:
        models.add(connection, VERSION, b"theirs", {}, taxonomy_version=rules.version, now=now_us())
        models.publish(connection, VERSION)
    event_types = {contracts.topic(event_type, prefix): event_type for event_type in EVENT_TYPES}
    source = SourceConfig(topics=tuple(event_types), bootstrap=bootstrap, consumer={}, group_id=None, client=client)
    check_client(source)
    # The peers' tables too are there, and their clients imported, before they start.
    started, usage = time.time(), resource.getrusage(resource.RUSAGE_SELF)
    source = replace(source, stop_at=find_end_offsets(source), bundle_seconds=BUNDLE_SECONDS)
    epoch = draw_run_epoch(engine, runner="benchmark", host="localhost", vocbeam_version="", now=now_us)
    steps = PeersSteps(
        governance_text=governance_text,
        timezone=rules.timezone,
        event_types=event_types,
        registry=None,
        home=folder,
        warehouse_url=url,
        key_fingerprint=fingerprint,
        run_epoch=epoch,
        model=Path(model),
        redact=redact == "redact",
    )
    work(Job(source=source, runner=InProcess(), steps=steps, max_restarts=0, progress_seconds=10.0, write_ahead=True))
    with engine.connect() as connection:
        last = connection.execute(select(func.max(ingest_ledger.c.updated_at))).scalar_one()
    print(json.dumps({"t0": started, "t1": last / 1e6, "cpu0": usage.ru_utime + usage.ru_stime}), flush=True)
    # Beam's threads are not waited for.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
