"""Throughput of the text model beside plain scikit-learn, in CPU time of one core; see docs/tagging.md."""

from __future__ import annotations

import json
import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread: a core is what is measured. Before NumPy is loaded.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.throughput import QUIET_LOAD, machine, spread
from vocbeam.pipelines.verify_tagging import LABELS, PRECISION, SEED
from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.labels import SENTIMENTS, Label, LabelMapping, collect, load_label_mapping, read_labels
from vocbeam.transforms.text_features import GRAM_LENGTHS
from vocbeam.transforms.text_model import LinearTextModel
from vocbeam.transforms.training import Settings, train

PROJECT = Path(__file__).resolve().parents[1]

CHUNK = 1_000
"""Texts at a time."""

SINGLES = 200
"""Texts that are also tagged one by one: enough for a mean, at some milliseconds each."""

LONG = 1_000
"""Characters of the long texts, at least: an e-mail."""

HASHED = 2**18
"""Columns of each hashing vectoriser: few collisions among the 100,000 n-grams of such sets."""

WORDS: Mapping[str, Any] = {"ngram_range": (1, 2), "strip_accents": "unicode", "token_pattern": r"\w+"}
GRAMS: Mapping[str, Any] = {"analyzer": "char_wb", "ngram_range": GRAM_LENGTHS, "strip_accents": "unicode"}
"""The same words, pairs of words and n-grams inside words as the text model's."""

OURS = "vocbeam"
PACKAGES = ("scikit-learn", "scipy", "numpy")


@dataclass(frozen=True)
class TextSet:
    """Labelled texts to learn from, and others to tag."""

    name: str
    learn: Sequence[Label]
    tag: Sequence[str]


@dataclass(frozen=True)
class Contender:
    """Tags a chunk of texts with all heads. `singly`: gets the first SINGLES texts, each as a chunk of its own."""

    name: str
    tag: Callable[[Sequence[str]], object]
    singly: bool = False

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """CPU time of tagging, in the units of the table."""
        size = 1 if self.singly else CHUNK
        texts = texts[:SINGLES] if self.singly else texts
        began = time.process_time()
        for start in range(0, len(texts), size):
            self.tag(texts[start : start + size])
        spent = time.process_time() - began
        characters = sum(map(len, texts))
        return {"texts a CPU-second": len(texts) / spent, "CPU-seconds a million characters": spent / characters * 1e6}


def text_sets(data: Path, most: int) -> Iterator[TextSet]:
    """Questions to a bank, and comments of a shop's customers as they are and joined to long ones; `most` of each."""
    rng = np.random.default_rng(SEED)
    mapping = load_label_mapping(LABELS / "banking77.yaml")
    learn, test = (list(read_labels(data / "banking77" / f"{part}.csv.gz", mapping)) for part in ("train", "test"))
    rng.shuffle(learn)  # type: ignore[arg-type]  # lists are shuffled in place
    # The set has no sentiment: drawn labels make a head of the same cost.
    learn = [label._replace(sentiment=str(rng.choice(SENTIMENTS))) for label in learn[:most]]
    yield TextSet("banking77", learn, [label.text for label in test][:most])

    # Scores stand for stages, which the set doesn't have.
    scored = load_label_mapping(LABELS / "olist.yaml").model_copy(update={"stage": "review_score"})
    comments = list(read_labels(data / "olist" / "olist_order_reviews_dataset.csv.gz", LabelMapping(**vars(scored))))
    rng.shuffle(comments)  # type: ignore[arg-type]
    half = min(most, len(comments) // 2)
    learn, rest = comments[:half], [label.text for label in comments[half:]]
    yield TextSet("Olist", learn, rest[:most])
    yield TextSet(f"Olist, joined to {LONG:,} characters", learn, joined(rest)[:most])


def joined(texts: Sequence[str]) -> list[str]:
    """Texts of LONG characters or more, each of as many of `texts` in a row as that takes."""
    found, parts = [], []
    for text in texts:
        parts.append(text)
        if sum(map(len, parts)) >= LONG:
            found.append(" ".join(parts))
            parts = []
    return found


def heads(learn: Sequence[Label]) -> Mapping[str, Sequence[str]]:
    """Head → the label of each text, of those with something to decide; a department follows from its stage."""
    columns = {
        "stage": [label.stage or "" for label in learn],
        "topic": [label.topic for label in learn],
        "sentiment": [label.sentiment or "" for label in learn],
    }
    return {name: column for name, column in columns.items() if len(set(column)) > 1}


def tfidf() -> FeatureUnion:
    """Features with a vocabulary and weights that are learned."""
    words = TfidfVectorizer(**WORDS, sublinear_tf=True)
    grams = TfidfVectorizer(**GRAMS, sublinear_tf=True, min_df=2)
    return make_union(words, grams)


def hashed() -> FeatureUnion:
    """The same without a vocabulary."""
    parts = [
        HashingVectorizer(**options, n_features=HASHED, norm=None, alternate_sign=False) for options in (WORDS, GRAMS)
    ]
    return make_union(*(make_pipeline(part, TfidfTransformer(sublinear_tf=True)) for part in parts))


class PerHead:
    """scikit-learn as it is mostly used: for each head a pipeline of its own, which vectorises the texts anew."""

    def __init__(self, features: Callable[[], FeatureUnion], learn: Sequence[Label]) -> None:
        texts = [label.text for label in learn]
        self.pipelines: dict[str, Pipeline] = {
            name: make_pipeline(features(), LinearSVC(random_state=SEED)).fit(texts, labels)
            for name, labels in heads(learn).items()
        }

    def tag(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """Head → the class of each text."""
        return {name: pipeline.predict(texts) for name, pipeline in self.pipelines.items()}


@dataclass(frozen=True)
class Measured:
    """One set: its texts, what a model takes to keep and to load, and the figures of each contender, run after run."""

    texts: int
    characters: int
    heads: Sequence[str]
    megabytes: Mapping[str, float]
    loading_s: Sequence[float]
    runs: Mapping[str, Sequence[Mapping[str, float]]]

    def ratios(self, name: str) -> list[float]:
        """How often `name` would have tagged the texts in the time the text model took, in each run."""
        rate = "texts a CPU-second"
        return [ours[rate] / other[rate] for ours, other in zip(self.runs[OURS], self.runs[name], strict=True)]


def measure(texts: TextSet, runs: int, say: Callable[[str], None]) -> Measured:
    """Trains all contenders on the same texts and lets them take turns on others.

    The text model remembers words. In each run it is loaded anew and first tags what it learned from: so it knows what
    a process knows after a while, and no text that is timed.
    """
    stored = train(
        collect(texts.learn), "benchmark", precision=PRECISION, seed=SEED, grid=(Settings(),)
    ).model.to_bytes()
    plain, hashing = (PerHead(features, texts.learn) for features in (tfidf, hashed))
    megabytes = {
        OURS: len(stored) / 1e6,
        "TF-IDF": len(pickle.dumps(plain)) / 1e6,
        "hashing": len(pickle.dumps(hashing)) / 1e6,
    }
    loading, figures = [], {}
    for number in range(1, runs + 1):
        began = time.perf_counter()
        model = LinearTextModel.from_bytes(stored)
        loading.append(time.perf_counter() - began)
        model.predict([label.text for label in texts.learn])
        contenders = (
            Contender(OURS, model.predict),
            Contender(f"{OURS}, one by one", model.predict, singly=True),
            Contender("scikit-learn, TF-IDF for each head", plain.tag),
            Contender("scikit-learn, hashing for each head", hashing.tag),
            Contender("scikit-learn, TF-IDF for each head, one by one", plain.tag, singly=True),
        )
        for contender in contenders:
            figures.setdefault(contender.name, []).append(contender.measure(texts.tag))
        say(f"{texts.name}: run {number} of {runs}")
    return Measured(
        len(texts.tag), sum(map(len, texts.tag)), list(heads(texts.learn)), megabytes, loading, figures
    )  # fmt: skip


def show(name: str, found: Measured) -> Table:
    """A line a contender."""
    title = (
        f"{name}: {found.texts:,} texts of {found.characters / found.texts:.0f} characters; "
        f"heads: {', '.join(found.heads)}; "
        f"model {found.megabytes[OURS]:.1f} MB, loaded in {spread([1e3 * s for s in found.loading_s])} ms"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("median (least–greatest)")
    columns = list(found.runs[OURS][0])
    for column in (*columns, f"{OURS} is faster by"):
        table.add_column(column, justify="right")
    for contender, runs in found.runs.items():
        ratio = "" if contender == OURS else f"{statistics.median(found.ratios(contender)):.1f}"
        table.add_row(contender, *(spread([run[column] for run in runs]) for column in columns), ratio)
    return table


@click.command()
@click.option(
    "--data",
    envvar="VOCBEAM_DATA",
    default=PROJECT.parent / "shared" / "data",
    show_default="../shared/data beside this checkout",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the real data sets.",
)
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Of everything, one after another.")
@click.option("--texts", default=10_000, show_default=True, type=click.IntRange(100), help="At most, of each set.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout instead of tables.")
def main(data: Path, runs: int, texts: int, as_json: bool) -> None:
    """Measure the text model with all its heads, beside plain scikit-learn, on texts that none has seen."""
    log = Console(stderr=True, highlight=False)
    if os.getloadavg()[0] > QUIET_LOAD:
        log.print(
            f"load average {os.getloadavg()[0]:.2f}: something else is running; CPU time suffers less than wall time"
        )
    about = machine(None, PACKAGES)
    try:
        found = {texts.name: measure(texts, runs, log.print) for texts in text_sets(data, texts)}
    except ConfigError as error:
        raise SystemExit(f"{error}; name the folder of the data sets (--data, VOCBEAM_DATA)") from error
    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    if as_json:
        ratios = {name: {other: each.ratios(other) for other in each.runs} for name, each in found.items()}
        sets = {name: {**vars(each), "ratios": ratios[name]} for name, each in found.items()}
        click.echo(json.dumps({**about, "sets": sets}, indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name, value in about.items():
        console.print(f"{name}: {value}", highlight=False)
    for name, each in found.items():
        console.print(show(name, each))


if __name__ == "__main__":
    main()
