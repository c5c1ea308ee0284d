"""Labelled texts from CSV files, through a small mapping file, and from a governance file's own phrases."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vocbeam.schemas.errors import ConfigError
from vocbeam.schemas.governance import Governance
from vocbeam.schemas.records import NO_TOPIC
from vocbeam.schemas.timebase import to_micros
from vocbeam.transforms.training import Labelled

SENTIMENTS = ("negative", "neutral", "positive")

LONGEST_FIELD = 1 << 20
"""Characters of one CSV field; Python's default of 131,072 is less than a long e-mail thread."""


class Label(NamedTuple):
    """What is said of one text; None where nothing is. Weights are the confidence in it, `time` UTC microseconds."""

    text: str
    stage: str | None = None
    topic: str = NO_TOPIC
    sentiment: str | None = None
    weight: float = 1.0
    sentiment_weight: float = 1.0
    group: str | None = None
    time: int | None = None


class Place(BaseModel):
    """The stage and topic that a label of a foreign scheme stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    topic: str = NO_TOPIC


class LabelMapping(BaseModel):
    """Which column of a CSV file says what. Columns that are not named are not read.

    `label` is a column of a foreign scheme, translated by `labels` (null leaves the text out); otherwise `stage` and
    `topic` are columns of their own. `sentiments` translates the values of the column `sentiment` likewise. Confidences
    are shares 0 to 1, 1 where the field is empty; a label with confidence 0 is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    stage: str | None = None
    topic: str | None = None
    label: str | None = None
    labels: Mapping[str, Place | None] = {}
    sentiment: str | None = None
    sentiments: Mapping[str, str | None] = {value: value for value in SENTIMENTS}
    confidence: str | None = None
    sentiment_confidence: str | None = None
    group: str | None = None
    time: str | None = None
    time_format: str | None = None
    timezone: str = "UTC"

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("allowed: names of the IANA time zone database, such as Europe/Berlin") from error
        return value

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a file must have."""
        tag = (self.stage, self.topic, self.label, self.confidence)
        sentiment = (self.sentiment, self.sentiment_confidence)
        return (*self.text, *filter(None, (*tag, *sentiment, self.group, self.time)))


def load_label_mapping(path: Path) -> LabelMapping:
    """Reads a mapping file (YAML). Raises ConfigError, which names the file and what is wrong with which key."""
    try:
        return LabelMapping.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {})
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the label mapping {path}: {type(error).__name__}; it must be YAML") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {wrong}") from None


def default_mapping(header: Sequence[str]) -> LabelMapping:
    """The mapping of a file whose columns have the names of LabelMapping's fields."""
    names = ("stage", "topic", "confidence", "sentiment", "sentiment_confidence", "group", "time")
    return LabelMapping.model_validate({name: name for name in names if name in header})


def read_labels(path: Path, mapping: LabelMapping | None = None) -> Iterator[Label]:
    """Labels of a CSV file (also .gz), row by row; rows without text, or without any label, are left out.

    Raises ConfigError, naming file and line, where a column is missing or a value is not what it should be.
    """
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            header = rows.fieldnames or ()
            mapping = mapping or default_mapping(header)
            missing = [name for name in mapping.columns if name not in header]
            if missing:
                raise ConfigError(f"{path}:1: no column {', '.join(missing)}; the file has {', '.join(header)}")
            for row in rows:
                try:
                    label = _label(row, mapping)
                except ValueError as error:
                    raise ConfigError(f"{path}:{rows.line_num}: {error}") from None
                if label.text and (label.stage is not None or label.sentiment is not None):
                    yield label
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"can't read the labels of {path}: {type(error).__name__}; it must be CSV in UTF-8"
        ) from error


def _label(row: Mapping[str, str | None], mapping: LabelMapping) -> Label:
    def value(name: str | None) -> str | None:
        return (row[name] or "").strip() or None if name else None

    stage, topic = value(mapping.stage), value(mapping.topic) or NO_TOPIC
    foreign = value(mapping.label)
    if foreign is not None:
        if foreign not in mapping.labels:
            raise ValueError(
                f"label {foreign!r} is not in the mapping's labels; add it there, with null to leave it out"
            )
        place = mapping.labels[foreign]
        stage, topic = (place.stage, place.topic) if place else (None, NO_TOPIC)
    sentiment = value(mapping.sentiment)
    if sentiment is not None:
        if sentiment not in mapping.sentiments:
            raise ValueError(f"sentiment {sentiment!r}; allowed: {', '.join(mapping.sentiments)}")
        sentiment = mapping.sentiments[sentiment]
    weight, sentiment_weight = (_confidence(value(name)) for name in (mapping.confidence, mapping.sentiment_confidence))
    when = value(mapping.time)
    return Label(
        text="\n".join(filter(None, (value(name) for name in mapping.text))),
        stage=stage if weight else None,
        topic=topic,
        sentiment=sentiment if sentiment_weight else None,
        weight=weight,
        sentiment_weight=sentiment_weight,
        group=value(mapping.group),
        time=None if when is None else _micros(when, mapping),
    )


def _confidence(text: str | None) -> float:
    weight = 1.0 if text is None else float(text)
    if not 0 <= weight <= 1:
        raise ValueError(f"confidence {text}; allowed: 0 to 1")
    return weight


def _micros(text: str, mapping: LabelMapping) -> int:
    moment = datetime.strptime(text, mapping.time_format) if mapping.time_format else datetime.fromisoformat(text)  # noqa: DTZ007
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(mapping.timezone))
    return to_micros(moment)


def phrases(governance: Governance) -> Iterator[Label]:
    """What the governance file itself says of its stages: example phrases, names, and the words of its rules."""
    for stage in governance.stages:
        for text in (stage.name, stage.description, *stage.examples):
            if text:
                yield Label(text, stage.id)
    for rule in governance.rules:
        for words in rule.when.words or ():
            yield Label(words, rule.then.stage, rule.then.topic or NO_TOPIC)


def collect(labels: Iterable[Label], governance: Governance | None = None) -> Labelled:
    """Labels as columns; times only where every label has one.

    Raises ConfigError for a stage that `governance`, if given, doesn't have.
    """
    rows = list(labels)
    if governance is not None:
        unknown = sorted({row.stage for row in rows if row.stage is not None} - set(governance.stage_owner))
        if unknown:
            raise ConfigError(
                f"labels name stages that the governance file doesn't have: {', '.join(unknown[:5])}; map them, or "
                "train with the governance file they belong to"
            )
    times = [row.time for row in rows if row.time is not None]
    return Labelled(
        texts=[row.text for row in rows],
        stages=[row.stage for row in rows],
        topics=[row.topic for row in rows],
        sentiments=[row.sentiment for row in rows],
        weights=[row.weight for row in rows],
        sentiment_weights=[row.sentiment_weight for row in rows],
        groups=[row.group for row in rows],
        times=times if rows and len(times) == len(rows) else None,
    )
