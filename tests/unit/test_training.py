"""Training, calibration, thresholds, and a model that says what carried its decision and when it doesn't know."""

from __future__ import annotations

import numpy as np
import pytest

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.labels import Label, collect
from vocbeam.transforms.text_model import NEVER, LinearTextModel
from vocbeam.transforms.training import (
    LEAST_FOR_OWN_THRESHOLD,
    Settings,
    Validated,
    calibrate,
    split,
    text_digest,
    thresholds,
    train,
)

GRID = (Settings(),)

PARCEL = ("parcel", "courier", "tracking", "doorstep")
CARD = ("card", "charged", "invoice", "payment")
FILLER = ("please", "hello", "today", "again", "yesterday", "why", "thanks", "really")


def labels(n: int, seed: int = 0) -> list[Label]:
    """Texts of two stages, one of them with two topics, told apart by their nouns."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        about, stage = (PARCEL, "deliver") if i % 2 else (CARD, "pay")
        noun = about[int(rng.integers(4))]
        topic = "refund" if stage == "pay" and noun in ("charged", "invoice") else ""
        words = [noun, *rng.choice(FILLER, 3)]
        rows.append(Label(" ".join(rng.permutation(words)), stage, topic, "negative" if i % 2 else "positive"))
    return rows


def trained() -> LinearTextModel:
    return train(collect(labels(400)), "v1", precision=0.9, grid=GRID).model


@pytest.fixture(scope="module")
def model() -> LinearTextModel:
    return trained()


def test_predict__stage_topic_and_the_word_that_carried_them(model: LinearTextModel) -> None:
    parcel, charged = model.predict(["hello where is my parcel", "why was I charged"]).tags
    assert parcel is not None
    assert charged is not None
    assert (parcel.stage, parcel.topic, parcel.words[0]) == ("deliver", "", "parcel")
    assert (charged.stage, charged.topic, charged.words[0]) == ("pay", "refund", "charged")
    assert parcel.confidence > 0.9


def test_predict__abstains_where_nothing_is_known(model: LinearTextModel) -> None:
    assert model.predict(["", "???", "1234567"]) == ([None, None, None], [None, None, None])


def test_predict__sentiment_of_all_but_tags_of_those_that_are_wanted(model: LinearTextModel) -> None:
    texts = ["the courier lost my parcel", "the payment worked", "???"]
    predicted = model.predict(texts, [False, True, True])
    assert predicted.sentiments == ["negative", "positive", None]
    assert [tag and tag.stage for tag in predicted.tags] == [None, "pay", None]


def test_predict__batches_agree_with_single_texts(model: LinearTextModel) -> None:
    texts = [label.text for label in labels(1_003, seed=5)]
    together = model.predict(texts)
    alone = [model.predict([text]) for text in texts[:50]]
    assert together.sentiments[:50] == [one.sentiments[0] for one in alone]
    for a, (b,) in zip(together.tags, (one.tags for one in alone), strict=False):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a.stage, a.topic, a.words) == (b.stage, b.topic, b.words)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


def test_bytes__round_trip_and_strangers(model: LinearTextModel) -> None:
    texts = [label.text for label in labels(100, seed=3)]
    again = LinearTextModel.from_bytes(model.to_bytes())
    assert again.version == "v1"
    assert again.seen == model.seen
    assert again.predict(texts) == model.predict(texts)
    with pytest.raises(ConfigError, match="no text model that this release can read"):
        LinearTextModel.from_bytes(b"PK\x03\x04 something else")


def test_train__is_repeatable(model: LinearTextModel) -> None:
    texts = [label.text for label in labels(50, seed=9)]
    assert trained().predict(texts) == model.predict(texts)


def test_train__sentiment_has_a_head_of_its_own(model: LinearTextModel) -> None:
    assert model.sentiment is not None
    assert model.sentiment.classes == ("negative", "positive")
    assert model.judge(["the courier lost my parcel", "the payment worked"]).sentiments.tolist() == [0, 1]


def test_train__remembers_what_it_said_before_it_had_seen_a_text(model: LinearTextModel) -> None:
    first = labels(400)[1]
    assert model.seen[text_digest(first.text.upper())] in {"deliver", "pay"}


def test_train__needs_two_stages() -> None:
    with pytest.raises(ConfigError, match="at least two stages"):
        train(collect([Label("a b", "pay"), Label("c d", "pay")]), "v", precision=0.9)


def test_train__labels_that_say_nothing_are_never_used_as_tags() -> None:
    """Shuffled labels: no confidence reaches the wanted precision, so the model abstains."""
    rng = np.random.default_rng(1)
    rows = [label._replace(stage=str(rng.choice(["deliver", "pay"])), topic="") for label in labels(400)]
    model = train(collect(rows), "noise", precision=0.95, grid=GRID).model
    given = [p for p in model.predict([label.text for label in labels(200, seed=2)]).tags if p is not None]
    assert len(given) < 40


def test_split__keeps_equal_texts_and_groups_together() -> None:
    rows = [label._replace(group=f"g{i // 3}") for i, label in enumerate(labels(120))]
    rows += [row._replace(text=row.text.upper(), group=None) for row in rows[:40]]
    labelled = collect(rows)
    truth = np.array([row.stage == "pay" for row in rows]).astype(int)
    predicted: list[int] = []
    for learn, predict in split(labelled, np.arange(len(rows)), truth, seed=0):
        predicted += predict.tolist()
        assert not {rows[i].text.lower() for i in learn} & {rows[i].text.lower() for i in predict}
        assert not ({rows[i].group for i in learn} - {None}) & {rows[i].group for i in predict}
    assert sorted(predicted) == list(range(len(rows)))


def test_split__the_past_predicts_the_future() -> None:
    rows = [label._replace(time=1_000 - i, text=f"{label.text} {i}") for i, label in enumerate(labels(120))]
    labelled = collect(rows)
    truth = np.array([row.stage == "pay" for row in rows]).astype(int)
    parts = list(split(labelled, np.arange(len(rows)), truth, seed=0))
    assert len(parts) == 5
    for learn, predict in parts:
        assert max(rows[i].time or 0 for i in learn) < min(rows[i].time or 0 for i in predict)


def test_calibrate__finds_the_temperature_of_overconfident_scores() -> None:
    """Scores three times as large as the log-odds they come from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((len(logits), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    slope, shifts = calibrate(3 * logits, truth)
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert np.abs(shifts - shifts.mean()).max() < 0.1


def test_train__probabilities_are_those_of_all_texts_whatever_the_confidence_in_their_labels() -> None:
    """Sure labels are right, unsure ones are drawn; if only the sure ones counted, the mean would be near 1."""
    rng = np.random.default_rng(2)
    rows = [label._replace(topic="", text=f"{label.text} {i}") for i, label in enumerate(labels(600))]
    rows[::2] = [row._replace(stage=str(rng.choice(["deliver", "pay"])), weight=0.1) for row in rows[::2]]
    trained_on = train(collect(rows), "v", precision=0.9, grid=GRID)
    right = trained_on.stages.predicted == trained_on.stages.truth
    assert trained_on.stages.confidence.mean() == pytest.approx(right.mean(), abs=0.05)


def validated(confidence: list[float], right: list[bool]) -> Validated:
    """Predictions of class 0 of two, with these confidences."""
    probabilities = np.array([[c, 1 - c] for c in confidence])
    n = len(right)
    truth = np.array([0 if ok else 1 for ok in right])
    return Validated(("a", "b"), np.arange(n), truth, np.zeros(n, np.int64), probabilities, Settings())


def test_thresholds__lowest_confidence_that_keeps_the_precision() -> None:
    # Right, right, wrong, right, wrong from the most confident on: shares 1, 1, 2/3, 3/4, 3/5.
    found = validated([0.9, 0.8, 0.7, 0.65, 0.6], [True, True, False, True, False])
    assert thresholds(found, 0.75)[0] == pytest.approx(0.65)
    assert thresholds(found, 0.8)[0] == pytest.approx(0.8)


def test_thresholds__never_where_no_confidence_is_enough() -> None:
    assert thresholds(validated([0.9, 0.8], [False, False]), 0.5) == [NEVER, NEVER]


def test_thresholds__own_where_there_are_enough_predictions() -> None:
    n = LEAST_FOR_OWN_THRESHOLD
    bad = validated([0.6 + i / 1000 for i in range(n)], [False] * n)
    assert thresholds(bad, 0.5)[0] == NEVER
    good = validated([0.6 + i / 1000 for i in range(n)], [True] * n)
    assert thresholds(good, 0.5)[0] == pytest.approx(0.6)
