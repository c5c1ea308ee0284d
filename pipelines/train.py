"""`vocbeam train`: a text model from labelled files, corrections, hints in past events, and the governance file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from sqlalchemy import Connection

from vocbeam.pipelines.apply import ensure_applied, now_us
from vocbeam.pipelines.job_steps import WarehouseModels
from vocbeam.pipelines.model_card import print_card
from vocbeam.pipelines.settings import Home, governance_option, home_option, warehouse_option
from vocbeam.schemas.errors import ConfigError, WorseModel
from vocbeam.schemas.governance import Governance, load_governance
from vocbeam.sinks import models
from vocbeam.sinks.engine import open_engine
from vocbeam.sinks.hints import ToldText, corrected_texts, hinted_texts
from vocbeam.sinks.read import snapshot
from vocbeam.sinks.transaction import in_transaction
from vocbeam.transforms.labels import Label, collect, load_label_mapping, phrases, read_labels
from vocbeam.transforms.model_evaluation import Evaluation, Figure, evaluate, macro_f1_difference, overlaps
from vocbeam.transforms.sentence_embedding import NAME, SentenceEmbedding
from vocbeam.transforms.statistics import wilson_interval
from vocbeam.transforms.text_model import LinearTextModel
from vocbeam.transforms.training import Labelled, Trained, Validated, text_digest, train
from vocbeam.transforms.watching import LEAST_DOCUMENTS

DEFAULT_PRECISION = 0.9


@click.command("train")
@home_option
@warehouse_option
@governance_option
@click.option(
    "--labels",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CSV of labelled texts: columns text, stage, topic, sentiment, confidence, group, time. Repeatable.",
)
@click.option(
    "--map",
    "mapping",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="What the columns and labels of the files mean, where they have other names.",
)
@click.option("--hints/--no-hints", default=False, help="Learn from past events whose source named the stage.")
@click.option("--overrides/--no-overrides", default=True, help="Learn from corrections that stand (vocbeam tag).")
@click.option("--phrases/--no-phrases", "own", default=True, help="Learn from the governance file's own phrases.")
@click.option(
    "--precision",
    default=DEFAULT_PRECISION,
    show_default=True,
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Share of the given tags that shall be right; where this can't be reached, the model abstains.",
)
@click.option("--embedding", is_flag=True, help="Also learn what sentences mean (extra 'embedding'; English, slow).")
@click.option("--publish/--no-publish", default=True, help="Make it the model that new events are tagged with.")
@click.option("--force", is_flag=True, help="Publish even where it is worse than the published model.")
@click.option("--seed", default=0, show_default=True, help="Of splits and bootstrap samples.")
@click.option("--json", "as_json", is_flag=True, help="Print the model card as JSON.")
def train_command(
    *,
    home: Home,
    warehouse: str | None,
    governance: Path,
    files: Sequence[Path],
    mapping: Path | None,
    hints: bool,
    overrides: bool,
    own: bool,
    precision: float,
    embedding: bool,
    publish: bool,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Train the model that gives stage, topic and sentiment to texts that neither hint nor rule places.

    Everything that the model card says was predicted by cross-validation on texts that the model had not seen. The
    model is stored in the warehouse and published, unless it is worse than the published one beyond chance (exit
    code 1). Runs take a published model within seconds. The governance file is put into force, as by vocbeam apply.
    """
    rules = load_governance(governance)
    url = warehouse or home.warehouse_url
    reader, engine = open_engine(url), open_engine(url, write=True)
    ensure_applied(engine, rules, home)
    names = load_label_mapping(mapping) if mapping else None
    sources: dict[str, list[Label]] = {str(path): list(read_labels(path, names)) for path in files}
    with snapshot(reader) as connection:
        sources |= told_labels(connection, rules, overrides=overrides, hints=hints, own=own)
    labelled = collect(chain.from_iterable(sources.values()), rules)
    if not len(labelled):
        raise ConfigError(
            "nothing to learn from: give --labels FILE, --hints, correct tags (vocbeam tag), or write example phrases "
            "into the governance file"
        )

    started, at = time.monotonic(), datetime.now(UTC)
    digest = data_digest(labelled)
    least = max(LEAST_DOCUMENTS, rules.privacy.k)
    model_version = f"{at:%Y%m%dT%H%M%S}-{digest[:8]}"
    meaning = SentenceEmbedding() if embedding else None
    trained = train(labelled, model_version, precision=precision, seed=seed, least=least, embedding=meaning)
    rng = np.random.default_rng(seed)
    card = {
        "version": trained.model.version,
        "trained_at": at.isoformat(timespec="seconds"),
        "training_seconds": round(time.monotonic() - started, 1),
        "taxonomy_version": rules.version,
        "taxonomy_digest": rules.taxonomy_digest,
        "data": {
            "digest": digest,
            "texts": len(labelled),
            "sources": {name: len(rows) for name, rows in sources.items()},
        },
        "split": "by time" if labelled.times is not None else "at random, groups and equal texts kept whole",
        "wanted_precision": precision,
        "embedding": NAME if embedding else None,
        "seed": seed,
        "libraries": {name: installed(name) for name in ("scikit-learn", "numpy", "scipy", "skops")},
        **describe(trained, rules, rng),
    }
    stored = WarehouseModels(reader)
    before = stored.active_model()
    comparison = None
    if before is not None:
        comparison = compare_models(stored.load_model(before), trained.stages, labelled, rng)
        card["compared_with"] = {"version": before, "macro_f1_difference": _figure(comparison)}
    worse = comparison is not None and comparison.interval.high is not None and comparison.interval.high < 0
    published = publish and (force or not worse)

    def store(connection: Connection) -> None:
        models.add(
            connection,
            trained.model.version,
            trained.model.to_bytes(),
            card,
            taxonomy_version=rules.version,
            now=now_us(),
            precisions=stage_precisions(trained),
        )
        if published:
            models.publish(connection, trained.model.version)

    in_transaction(engine, store)
    if as_json:
        click.echo(json.dumps(card, ensure_ascii=False, indent=2))
    else:
        print_card(card, Console())
        click.echo("stored and published" if published else "stored, not published", err=True)
    if publish and not published and comparison is not None:
        raise WorseModel(
            f"model {trained.model.version} is stored but not published: its macro-F1 over stages is "
            f"{-comparison.value:.3f} below that of {before} (95 % interval of the difference "
            f"{comparison.interval.low:+.3f} to {comparison.interval.high:+.3f}); see what changed in the labels, or "
            f"publish it all the same with `vocbeam models publish {trained.model.version}`"
        )


def told_labels(
    connection: Connection, governance: Governance, *, overrides: bool, hints: bool, own: bool
) -> dict[str, list[Label]]:
    """Labels from corrections, from hints and from the governance file's own words, those that are wanted, by source.

    Of a text that somebody corrected, neither hints nor phrases are asked. Texts of one customer are one group. A stage
    that the governance file no longer has is left out; of corrections that is said on stderr.
    """

    def known(texts: Iterable[ToldText]) -> list[Label]:
        return [
            Label(text, stage, topic, group=customer, time=at)
            for text, stage, topic, at, customer in texts
            if stage in governance.stage_owner
        ]

    found: dict[str, list[Label]] = {}
    corrected = list(corrected_texts(connection)) if overrides else []
    if corrected:
        found["corrections"] = known(corrected)
        outdated = len(corrected) - len(found["corrections"])
        if outdated:
            click.echo(
                f"{outdated:,} corrected texts have stages that the governance file no longer has; they are left out",
                err=True,
            )
    if hints:
        found["hints in past events"] = known(hinted_texts(connection))
    if own:
        found["phrases of the governance file"] = list(phrases(governance))
    settled = {text_digest(told.text) for told in corrected}
    return {
        source: [label for label in labels if source == "corrections" or text_digest(label.text) not in settled]
        for source, labels in found.items()
    }


def data_digest(labelled: Labelled) -> str:
    """SHA-256 (hex) of the labelled texts, whatever order they came in."""
    rows = zip(labelled.texts, labelled.stages, labelled.topics, labelled.sentiments, labelled.weights, strict=True)
    lines = sorted(json.dumps(row, ensure_ascii=False) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(trained: Trained, governance: Governance, rng: np.random.Generator) -> dict[str, Any]:
    """The part of a model card that follows from cross-validation: settings, thresholds and figures of every head."""
    stages, model = trained.stages, trained.model
    sure = stages.sure(model.stage_thresholds)
    right = stages.predicted == stages.truth
    heads = {"stage": stages, "department": by_department(stages, governance)}
    if any(topic for _, topic in model.classes):
        heads["topic"] = trained.topics
    if trained.sentiment is not None:
        heads["sentiment"] = trained.sentiment
    reference = model.reference
    return {
        "settings": {
            name: head._asdict()
            for name, head in (
                ("tags", trained.topics.settings),
                ("sentiment", trained.sentiment and trained.sentiment.settings),
            )
            if head
        },
        "features": len(model.features),
        "stage_thresholds": model.stage_thresholds,
        "tagged": {
            "share": float(sure.mean()),
            "precision": float(right[sure].mean()) if sure.any() else None,
        },
        "heads": {
            name: evaluation_json(evaluate(head.classes, head.truth, head.predicted, head.probabilities, rng))
            for name, head in heads.items()
        },
        "overlaps": [
            {**asdict_of(pair), "share": _figure(pair.share)}
            for pair in overlaps(stages.classes, stages.truth, stages.predicted)
        ],
        "reference": None
        if reference is None
        else {
            "texts": reference.texts,
            "confidence": list(reference.confidence),
            "stages": dict(reference.stages),
            "terms": len(reference.terms),
        },
    }


def stage_precisions(trained: Trained) -> list[models.StagePrecision]:
    """How often each stage that the model is sure enough to give was right in cross-validation."""
    stages = trained.stages
    sure = stages.sure(trained.model.stage_thresholds)
    found = []
    for number, stage in enumerate(stages.classes):
        given = sure & (stages.predicted == number)
        n, right = int(given.sum()), int((given & (stages.truth == number)).sum())
        found.append(models.StagePrecision(stage, n, right, wilson_interval(n, right).low or 0.0))
    return found


def by_department(stages: Validated, governance: Governance) -> Validated:
    """The same predictions as departments: that of the stage, with the probability of all stages it owns."""
    owners = [governance.stage_owner[stage] for stage in stages.classes]
    departments = tuple(sorted(set(owners)))
    of_stage = np.array([departments.index(owner) for owner in owners])
    summed = stages.probabilities @ np.eye(len(departments))[of_stage]
    predicted = of_stage[stages.predicted]
    return Validated(departments, stages.rows, of_stage[stages.truth], predicted, summed, stages.settings)


def compare_models(
    published: LinearTextModel, stages: Validated, labelled: Labelled, rng: np.random.Generator
) -> Figure | None:
    """Macro-F1 over stages of a new model less that of the published one; None without a text both can be asked about.

    Each is judged by predictions for texts that it had not seen: the new one's cross-validation, and of the published
    one its own cross-validation where it has learned a text, else what it says now.
    """
    texts = [labelled.texts[row] for row in stages.rows]
    if not texts:
        return None
    said = [published.seen.get(text_digest(text)) for text in texts]
    now = [published.stages[number] for number in published.judge(texts).stages]
    before = [seen or current for seen, current in zip(said, now, strict=True)]
    classes = sorted({*stages.classes, *before})
    number = {name: index for index, name in enumerate(classes)}
    of_new = np.array([number[name] for name in stages.classes])
    return macro_f1_difference(
        of_new[stages.truth], np.array([number[name] for name in before]), of_new[stages.predicted], len(classes), rng
    )


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain JSON; intervals are [low, high]."""
    return {
        "texts": evaluation.n,
        "macro_f1": _figure(evaluation.macro_f1),
        "accuracy": _figure(evaluation.accuracy),
        "calibration_error": _figure(evaluation.calibration.error),
        "calibration_error_of_a_perfect_forecaster": _figure(evaluation.calibration.perfect),
        "coverage": [
            {"share": c.share, "confidence": c.confidence, "accuracy": _figure(c.accuracy)} for c in evaluation.coverage
        ],
        "classes": [
            {**asdict_of(c), "precision": _figure(c.precision), "recall": _figure(c.recall)} for c in evaluation.classes
        ],
        "confusions": [{"truth": a, "predicted": b, "texts": n} for a, b, n in evaluation.confusions],
    }


def asdict_of(row: Any) -> Mapping[str, Any]:
    """Fields of a named tuple."""
    fields: Mapping[str, Any] = row._asdict()
    return fields


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else {"value": figure.value, "low": figure.interval.low, "high": figure.interval.high}
