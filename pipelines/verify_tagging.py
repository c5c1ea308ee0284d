"""`vocbeam verify tagging`: the text model on real texts, against figures fixed beforehand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from vocbeam.pipelines.settings import EXAMPLE_GOVERNANCE
from vocbeam.schemas.errors import ConfigError, VocbeamError
from vocbeam.schemas.governance import Governance, load_governance
from vocbeam.schemas.timebase import to_micros
from vocbeam.transforms.labels import Label, collect, load_label_mapping, phrases, read_labels
from vocbeam.transforms.model_evaluation import Evaluation, evaluate
from vocbeam.transforms.sentence_embedding import SentenceEmbedding
from vocbeam.transforms.text_features import TextFeatures
from vocbeam.transforms.text_model import LinearTextModel
from vocbeam.transforms.training import GRID, MAX_FEATURES, Settings, fit_head, train

PROJECT = Path(__file__).parent.parent
LABELS = PROJECT / "examples" / "labels"
GOVERNANCE = EXAMPLE_GOVERNANCE.parent
OUTPUT_WIDTH = 150

PRECISION = 0.9
SEED = 0

FIRST_TEST_DAY = to_micros(datetime(2015, 2, 21, 8, tzinfo=UTC))
"""Midnight of 21 February 2015 in the Pacific time of the tweets."""

CORRECTIONS = (10, 50, 200)
"""Corrected texts a stage, on top of the governance file's phrases."""

OUTER_FOLDS = 5


class TaggingMissedTarget(VocbeamError):
    """A figure of the text model is worse than it has to be."""

    exit_code = 3


@dataclass(frozen=True)
class Result:
    """One figure: what of which set, on how many texts, and where it has to lie; None where nothing is demanded."""

    data_set: str
    what: str
    texts: int
    value: float
    low: float | None = None
    high: float | None = None
    demanded: str = ""
    met: bool | None = None
    note: str = ""


def run_banking(data: Path) -> Iterator[Result]:
    """Intents as they are, and as stages and departments of a bank; cold start and learning curve."""
    mapping = load_label_mapping(LABELS / "banking77.yaml")
    governance = load_governance(GOVERNANCE / "bank.yaml")
    learn, test = (list(read_labels(data / "banking77" / f"{part}.csv.gz", mapping)) for part in ("train", "test"))
    started = time.process_time()
    model = train(collect(learn, governance), "banking77", precision=PRECISION, seed=SEED).model
    seconds = time.process_time() - started
    heads = judge(model, test, governance)
    yield figure("banking77", "macro-F1 over 77 intents", heads["topic"], at_least=0.90)
    yield calibration("banking77", "calibration error over intents", heads["topic"], below=0.05)
    yield figure("banking77", "macro-F1 over 9 stages", heads["stage"])
    yield figure("banking77", "macro-F1 over 8 departments", heads["department"])
    yield calibration("banking77", "calibration error over stages", heads["stage"], below=0.05)
    yield tagged("banking77", model, test)
    yield from cost("banking77", model, learn, test, seconds, at_least=10_000)
    yield from cold_start("banking77", governance, learn, test)


def run_tweets(data: Path) -> Iterator[Result]:
    """Reasons of complaints, learned until 20 February and told on 21 and 22 February."""
    mapping = load_label_mapping(LABELS / "tweets.yaml")
    governance = load_governance(GOVERNANCE / "airline.yaml")
    labels = list(read_labels(data / "twitter_airline" / "tweets_2015-02-16_to_22.csv.gz", mapping))
    learn = [label for label in labels if label.time is not None and label.time < FIRST_TEST_DAY]
    test = [label for label in labels if label.time is not None and label.time >= FIRST_TEST_DAY]
    started = time.process_time()
    model = train(collect(learn, governance), "tweets", precision=PRECISION, seed=SEED).model
    seconds = time.process_time() - started
    reasons = [label for label in test if label.stage is not None]
    heads = judge(model, reasons, governance)
    yield figure("tweets", "macro-F1 over 9 reasons", heads["topic"])
    for kept in heads["topic"].coverage:
        accuracy = kept.accuracy
        yield Result(
            "tweets", f"accuracy of the {kept.share:.0%} most confident", round(kept.share * len(reasons)),
            accuracy.value, accuracy.interval.low, accuracy.interval.high,
        )  # fmt: skip
    yield calibration("tweets", "calibration error over reasons", heads["topic"], below=0.10)
    yield figure("tweets", "macro-F1 over 8 stages", heads["stage"])
    yield figure("tweets", "macro-F1 over 7 departments", heads["department"])
    yield calibration("tweets", "calibration error over stages", heads["stage"], below=0.10)
    feelings = sentiment(model, test)
    yield figure("tweets", "macro-F1 of sentiment", feelings)
    yield calibration("tweets", "calibration error of sentiment", feelings, below=0.10)
    yield tagged("tweets", model, reasons)
    yield from cost("tweets", model, learn, test, seconds)
    yield from cold_start("tweets", governance, [label for label in learn if label.stage is not None], reasons)


def run_olist(data: Path) -> Iterator[Result]:
    """Sentiment of Portuguese comments against the score, each comment judged by a model that saw none of its order."""
    mapping = load_label_mapping(LABELS / "olist.yaml")
    labels = list(read_labels(data / "olist" / "olist_order_reviews_dataset.csv.gz", mapping))
    fold = np.random.default_rng(SEED).integers(0, OUTER_FOLDS, len(labels))
    of_order = {label.group: int(number) for label, number in zip(labels, fold, strict=True)}
    truth: list[int] = []
    scores: list[NDArray[np.floating[Any]]] = []
    probabilities: list[NDArray[np.floating[Any]]] = []
    classes: tuple[str, ...] = ()
    for number in range(OUTER_FOLDS):
        learn = [label for label in labels if of_order[label.group] != number]
        test = [label for label in labels if of_order[label.group] == number]
        features = TextFeatures.learn([label.text for label in learn], max_features=MAX_FEATURES)
        matrix = features.of([label.text for label in learn]).matrix
        names = [label.sentiment or "" for label in learn]
        head, _, _ = fit_head(collect(learn), range(len(learn)), names, [1.0] * len(learn), matrix, SEED, GRID)
        classes = head.classes
        scores.append(head.scores(features.of([label.text for label in test]).matrix))
        probabilities.append(softmax(scores[-1] + head.shifts, axis=1))
        truth += [classes.index(label.sentiment or "") for label in test]
    found = evaluate(
        classes,
        np.array(truth),
        np.concatenate(scores).argmax(axis=1),
        np.concatenate(probabilities),
        np.random.default_rng(SEED),
    )
    yield figure("olist", "macro-F1 of sentiment in Portuguese", found)
    yield Result("olist", "accuracy of sentiment", found.n, found.accuracy.value, *found.accuracy.interval)
    yield calibration("olist", "calibration error of sentiment", found, below=0.05)


def run_embedding(data: Path) -> Iterator[Result]:
    """The intents of banking77 once more, by a model with the optional embedding and the settings that suit the set."""
    mapping = load_label_mapping(LABELS / "banking77.yaml")
    governance = load_governance(GOVERNANCE / "bank.yaml")
    learn, test = (list(read_labels(data / "banking77" / f"{part}.csv.gz", mapping)) for part in ("train", "test"))
    started = time.process_time()
    model = train(
        collect(learn, governance), "embedding", precision=PRECISION, seed=SEED, grid=(Settings(),),
        embedding=SentenceEmbedding(),
    ).model  # fmt: skip
    seconds = time.process_time() - started
    heads = judge(model, test, governance)
    yield figure("embedding", "macro-F1 over 77 intents of banking77", heads["topic"], at_least=0.90)
    yield calibration("embedding", "calibration error over intents", heads["topic"], below=0.05)
    yield figure("embedding", "macro-F1 over 9 stages", heads["stage"])
    yield figure("embedding", "macro-F1 over 8 departments", heads["department"])
    yield tagged("embedding", model, test)
    yield from cost("embedding", model, learn[::50], test, seconds)


DEFAULT_SETS = ("banking77", "tweets", "olist")
"""The fourth needs the extra `embedding`."""

RUNS: Mapping[str, tuple[str, Callable[[Path], Iterator[Result]]]] = {
    "banking77": ("banking77", run_banking),
    "tweets": ("twitter_airline", run_tweets),
    "olist": ("olist", run_olist),
    "embedding": ("banking77", run_embedding),
}
"""Set → its folder below the data, and what computes its figures."""


def judge(model: LinearTextModel, test: Sequence[Label], governance: Governance) -> dict[str, Evaluation]:
    """How a model does by topic, by stage and by department on labels it has not seen."""
    rng = np.random.default_rng(SEED)
    judged = model.judge([label.text for label in test])
    topic_names = ["/".join(pair) for pair in model.classes]
    owners = [governance.stage_owner[stage] for stage in model.stages]
    departments = sorted(set(owners))
    of_stage = np.array([departments.index(owner) for owner in owners])
    by_owner = judged.stage_probabilities @ np.eye(len(departments))[of_stage]
    topics = [f"{label.stage}/{label.topic}" for label in test]
    stages = [label.stage or "" for label in test]
    owned = [governance.stage_owner[stage] for stage in stages]
    heads = {
        "stage": evaluate(model.stages, numbers(stages, model.stages), judged.stages, judged.stage_probabilities, rng),
        "department": evaluate(departments, numbers(owned, departments), of_stage[judged.stages], by_owner, rng),
    }
    if set(topics) <= set(topic_names):
        truth = numbers(topics, topic_names)
        heads["topic"] = evaluate(topic_names, truth, judged.topics, judged.topic_probabilities, rng)
    return heads


def numbers(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Class numbers of class names."""
    of = {name: number for number, name in enumerate(classes)}
    return np.array([of[name] for name in names])


def sentiment(model: LinearTextModel, test: Sequence[Label]) -> Evaluation:
    """How a model does on the sentiment of labels it has not seen."""
    assert model.sentiment is not None, "the labels have sentiments"
    truth = numbers([label.sentiment or "" for label in test], model.sentiment.classes)
    judged = model.judge([label.text for label in test])
    rng = np.random.default_rng(SEED)
    return evaluate(model.sentiment.classes, truth, judged.sentiments, judged.sentiment_probabilities, rng)


def cold_start(
    data_set: str, governance: Governance, learn: Sequence[Label], test: Sequence[Label]
) -> Iterator[Result]:
    """Stages from the governance file's phrases alone, and with more and more corrected texts a stage."""
    own = [label._replace(topic="") for label in phrases(governance)]
    shuffled = [learn[i] for i in np.random.default_rng(SEED).permutation(len(learn))]
    for corrections in (0, *CORRECTIONS):
        counts: dict[str, int] = {}
        added = []
        for label in shuffled:
            stage = label.stage or ""
            counts[stage] = counts.get(stage, 0) + 1
            if counts[stage] <= corrections:
                added.append(label._replace(topic="", time=None))
        model = train(collect([*own, *added], governance), f"{data_set}-{corrections}", precision=PRECISION).model
        heads = judge(model, test, governance)
        name = f"{corrections} corrections a stage" if corrections else f"cold start from {len(own)} phrases"
        error = heads["stage"].calibration.error.value
        note = f"departments {heads['department'].macro_f1.value:.3f}, calibration error {error:.3f}"
        yield figure(data_set, f"macro-F1 over stages, {name}", heads["stage"], note=note)


def tagged(data_set: str, model: LinearTextModel, test: Sequence[Label]) -> Result:
    """Of the tags that are given with the thresholds of the wanted precision, how many are right."""
    predictions = model.predict([label.text for label in test]).tags
    right = [p.stage == label.stage for p, label in zip(predictions, test, strict=True) if p is not None]
    return Result(
        data_set, f"precision of the stages given (wanted {PRECISION:.0%})", len(right), float(np.mean(right)),
        note=f"{len(right) / len(test):.1%} of the texts are given one",
    )  # fmt: skip


def cost(
    data_set: str,
    model: LinearTextModel,
    learn: Sequence[Label],
    test: Sequence[Label],
    seconds: float,
    *,
    at_least: float | None = None,
) -> Iterator[Result]:
    """Size, loading, training and throughput of the model; the latter two in CPU time."""
    stored = model.to_bytes()
    yield demand(Result(data_set, "size of the model, MB", 0, len(stored) / 1e6), below=50)
    started = time.monotonic()
    loaded = LinearTextModel.from_bytes(stored)
    yield demand(Result(data_set, "loading, seconds", 0, time.monotonic() - started), below=2)
    yield Result(data_set, "training with cross-validation, CPU-seconds", 0, seconds)
    # A process knows the words of earlier texts, but not these texts.
    loaded.predict([label.text for label in learn])
    texts = [label.text for label in test]
    started = time.process_time()
    loaded.predict(texts)
    spent = time.process_time() - started
    characters = sum(map(len, texts))
    heads = "tags" if model.sentiment is None else "tags and sentiment"
    note = f"{heads}; {spent / characters * 1e6:.2f} CPU-seconds a million characters"
    result = Result(data_set, "texts a CPU-second, all heads", len(texts), len(texts) / spent, note=note)
    yield result if at_least is None else demand(result, at_least=at_least)


def figure(data_set: str, what: str, found: Evaluation, *, at_least: float | None = None, note: str = "") -> Result:
    """The macro-F1 of an evaluation; what is demanded is demanded of the lower end of its interval."""
    f1 = found.macro_f1
    result = Result(data_set, what, found.n, f1.value, f1.interval.low, f1.interval.high, note=note)
    return result if at_least is None else demand(result, at_least=at_least)


def calibration(data_set: str, what: str, found: Evaluation, *, below: float) -> Result:
    """The calibration error of an evaluation beside that of a perfect forecaster."""
    error, perfect = found.calibration.error, found.calibration.perfect
    note = f"a perfect forecaster {perfect.value:.3f} [{perfect.interval.low:.3f}, {perfect.interval.high:.3f}]"
    return demand(
        Result(data_set, what, found.n, error.value, error.interval.low, error.interval.high, note=note), below=below
    )


def demand(result: Result, *, at_least: float | None = None, below: float | None = None) -> Result:
    """The same figure with what is demanded of it: the lower end of an interval at least, or the value below."""
    fields = {**vars(result)}
    if at_least is not None:
        reached = result.value if result.low is None else result.low
        of = "" if result.low is None else "lower end "
        return Result(**{**fields, "demanded": f"{of}at least {at_least:,g}", "met": reached >= at_least})
    assert below is not None, "one of both is demanded"
    return Result(**{**fields, "demanded": f"below {below:g}", "met": result.value < below})


def verify_tagging(data: Path, sets: Sequence[str], say: Callable[[str], None]) -> list[Result]:
    """All figures of the chosen sets. Raises ConfigError where a set is missing, before anything is computed."""
    for name in sets:
        folder, _ = RUNS[name]
        if not (data / folder).is_dir():
            raise ConfigError(f"the data set {name} is not at {data / folder}; name the folder (--data, VOCBEAM_DATA)")
    results = []
    for name in sets:
        started = time.monotonic()
        for result in RUNS[name][1](data):
            say(f"[{time.monotonic() - started:4.0f} s] {name}: {result.what}")
            results.append(result)
    return results


@click.command("tagging")
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=PROJECT.parent / "shared" / "data",
    show_default="../shared/data beside this checkout",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the real data sets.",
)
@click.option(
    "--sets",
    default=",".join(DEFAULT_SETS),
    show_default=True,
    help=f"Comma separated, of {', '.join(RUNS)} (the last needs the extra of this name).",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def tagging(data: Path, sets: str, as_json: bool) -> None:
    """Train and test the text model on the real texts, and compare with what is demanded of it.

    Settings are chosen by cross-validation on the training texts; the test texts are scored once. Ends with exit code
    3 where a figure misses what is demanded.
    """
    chosen = [name.strip() for name in sets.split(",")]
    unknown = [name for name in chosen if name not in RUNS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is no data set; there are {', '.join(RUNS)}", param_hint="--sets")
    results = verify_tagging(data, chosen, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps([vars(result) for result in results], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else OUTPUT_WIDTH).print(show(results))
    missed = [result for result in results if result.met is False]
    if missed:
        raise TaggingMissedTarget(
            f"{len(missed)} of {len(results)} figures miss what is demanded, the first: {missed[0].data_set}, "
            f"{missed[0].what}: {missed[0].value:.3f}, demanded {missed[0].demanded}"
        )


def show(results: Sequence[Result]) -> Table:
    """A line a figure."""
    table = Table(box=SIMPLE)
    for name in ("set", "what", "texts", "figure", "95 % interval", "demanded", "", "note"):
        table.add_column(name, justify="right" if name in ("texts", "figure") else "left")
    for result in results:
        small = abs(result.value) < 1_000
        table.add_row(
            result.data_set,
            result.what,
            f"{result.texts:,}" if result.texts else "",
            f"{result.value:.3f}" if small else f"{result.value:,.0f}",
            "" if result.low is None else f"{result.low:.3f} – {result.high:.3f}",
            result.demanded,
            {True: "[green]met[/]", False: "[bold red]MISSED[/]", None: ""}[result.met],
            result.note,
        )
    return table
