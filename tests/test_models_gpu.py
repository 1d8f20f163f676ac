"""Models on a GPU say what they say on a CPU, from several threads, and by CUDA graphs too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pgrerank.models import ModelSpec, load_encoder, load_reranker
from pgrerank.models.graphs import SEEN
from tests.helpers import models_fixtures as tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TEXTS = ["cat", "the cat sat in the pool", "berlin pool cat yes", "no", "cat " * 40]
EXACT = {"dtype": "float32", "device": "cpu"}


def _encoders(folder: Path, prompts: dict[str, str]):
    source = str(tiny.save_sentence_transformer(folder, prompts))
    return [
        load_encoder(ModelSpec("m", "embedding", "sentence_transformer", source, options=options))
        for options in ({}, EXACT)
    ]


def _check(found, expected) -> None:
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=0.03)
    for ours, theirs in zip(found.tokens, expected.tokens, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose((ours * theirs).sum(axis=1), 1, atol=0.02)


@pytest.mark.parametrize("prompts", [{}, {"query": "query ", "document": "no "}])
@pytest.mark.parametrize("role", ["query", "document"])
def test_an_encoder_on_a_gpu(tmp_path: Path, prompts: dict[str, str], role) -> None:
    ours, exact = _encoders(tmp_path, prompts)
    for text in [*TEXTS, *TEXTS]:
        both = [
            encoder.encode([text], role=role, embeddings=True, tokens=True)
            for encoder in (ours, exact)
        ]
        _check(*both)
    _check(*(e.encode(TEXTS, role=role, embeddings=True, tokens=True) for e in (ours, exact)))


def test_recordings_of_several_threads(tmp_path: Path) -> None:
    ours, exact = _encoders(tmp_path, {})
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    expected = exact.encode(texts, role="query", embeddings=True, tokens=False).embeddings

    def encode(text: str):
        return ours.encode([text], role="query", embeddings=True, tokens=False).embeddings[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encode, texts))
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert ours._readings["query"].passes.graphs[0]._recordings


def test_a_reranker_on_a_gpu(tmp_path: Path) -> None:
    source = str(tiny.save_cross_encoder(tmp_path))
    ours, exact = (
        load_reranker(ModelSpec("m", "cross_encoder", "cross_encoder", source, options=options))
        for options in ({}, EXACT)
    )
    pairs = [("cat pool", text) for text in TEXTS * 3]
    expected = exact.score(pairs)
    for _ in range(SEEN + 2):
        np.testing.assert_allclose(ours.score(pairs), expected, atol=0.15 * np.abs(expected).max())
    assert ours.steps()._passes.graphs[0]._recordings
