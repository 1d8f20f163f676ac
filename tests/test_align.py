"""Token vectors that say what they stand for, and which of a document's answer the query's."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pgrerank.errors import ModelError
from pgrerank.models import Encoder, ModelSpec, ReadableTokens, Role, load_encoder
from pgrerank.models.readable import Row, read_text
from pgrerank.models.windows import Cutter, Window
from pgrerank.tokens import maxsim, pack
from pgrerank.worker import aligning
from pgrerank.worker.aligning import alignment
from tests.helpers import models_fixtures as tiny

FLOAT32 = {"dtype": "float32"}
TEXTS = [
    "The pool, the cat.",
    "",
    "中中。 🙂 cat\n\n  pool",
    "[SEP] cat [CLS]",
    "cat pool berlin yes no. " * 12,
    "Été à Berlin: ﬁnally",
]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    prompts = {"query": "query ", "document": "passage: "}
    folder = tiny.save_sentence_transformer(tmp_path_factory.mktemp("prompted"), prompts)
    return load_encoder(
        ModelSpec("tiny", "late_interaction", "sentence_transformer", str(folder), None, FLOAT32)
    )


@pytest.fixture(scope="module")
def colbert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_multi_vector_encoder(tmp_path_factory.mktemp("colbert"))


@pytest.fixture(scope="module")
def colbert(colbert_folder: Path) -> Encoder:
    return load_encoder(_colbert_spec(colbert_folder))


def _colbert_spec(folder: Path) -> ModelSpec:
    return ModelSpec("tiny", "late_interaction", "multi_vector_encoder", str(folder), None, FLOAT32)


def _read(encoder: Encoder, text: str, role: Role = "document") -> ReadableTokens:
    [found] = encoder.encode_readable([text], role=role)
    return found


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("name", ["prompted", "colbert"])
def test_each_token_vector_says_what_it_stands_for(
    name: str, role: Role, request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    encoded = encoder.encode(TEXTS, role=role, embeddings=False, tokens=True).tokens
    assert encoded is not None
    for text, vectors, found in zip(
        TEXTS, encoded, encoder.encode_readable(TEXTS, role=role), strict=True
    ):
        np.testing.assert_allclose(found.vectors, vectors, atol=1e-5)
        assert len(found.texts) == len(found.spans) == len(vectors)
        spans = [span for span in found.spans if span is not None]
        assert spans == sorted(spans)
        for token, span in zip(found.texts, found.spans, strict=True):
            assert span is None or token == text[slice(*span)]
            assert token == token.strip() != ""
        if name == "prompted":
            assert len(spans) == len(found.spans)
            letters = [at for at, letter in enumerate(text) if letter.isalpha()]
            covered = {at for span in spans for at in range(*span)}
            assert text.startswith("[SEP]") or covered >= set(letters)


def test_tokens_of_an_encoder_are_pieces_of_the_text_without_prompt(prompted: Encoder) -> None:
    found = _read(prompted, "Pool, 中  berlin's")
    assert found.texts == ["Pool", ",", "中", "berlin", "'", "s"]
    assert found.spans == [(0, 4), (4, 5), (6, 7), (9, 15), (15, 16), (16, 17)]
    assert _read(prompted, "query cat", "query").texts == ["query", "cat"]
    assert _read(prompted, "[SEP] cat [CLS]").spans == [(6, 9)]


def test_spans_go_on_over_windows(prompted: Encoder) -> None:
    text = "yes no. " + "cat pool berlin. " * 30
    found = _read(prompted, text)
    assert len(found.texts) == 3 + 30 * 4
    assert [text[slice(*span)] for span in found.spans if span] == found.texts
    assert found.spans[-1] == (len(text) - 2, len(text) - 1)


def test_late_interaction_tokens_have_prefix_special_tokens_and_expansion(colbert: Encoder) -> None:
    query = _read(colbert, "cat pool, no", "query")
    expansion = ["[MASK]"] * 5
    assert query.texts == ["[CLS]", "query", "cat", "pool", ",", "no", "[SEP]", *expansion]
    assert query.spans == [None, None, (0, 3), (4, 8), (8, 9), (10, 12), None, *[None] * 5]
    document = _read(colbert, "cat, pool.")
    assert document.texts == ["[CLS]", "passage", "cat", "pool", "[SEP]"]
    assert document.spans == [None, None, (0, 3), (5, 9), None]
    assert not set(document.texts) & set(string.punctuation)
    windows = _read(colbert, "cat pool berlin yes no " * 12)
    assert windows.texts.count("[CLS]") > 2
    assert sum(span is not None for span in windows.spans) == 60


def test_a_model_that_merges_token_vectors_can_t_say_what_they_stand_for(
    colbert_folder: Path, tmp_path: Path
) -> None:
    plain = MultiVectorEncoder(str(colbert_folder), device="cpu", local_files_only=True)
    plain.append(HierarchicalTokenPooling(2))
    plain.save(str(tmp_path / "pooling"), create_model_card=False)
    encoder = load_encoder(_colbert_spec(tmp_path / "pooling"))
    assert len(_tokens(encoder, "cat pool berlin yes no")) < 8
    with pytest.raises(ModelError, match=r"model tiny: .* that merges token vectors"):
        encoder.encode_readable(["cat pool berlin yes no"], role="document")


def _tokens(encoder: Encoder, text: str) -> Any:
    found = encoder.encode([text], role="document", embeddings=False, tokens=True).tokens
    assert found is not None
    return found[0]


def test_static_embeddings_have_no_token_vectors_to_read(tmp_path: Path) -> None:
    folder = tiny.save_static_embedding(tmp_path)
    encoder = load_encoder(ModelSpec("tiny", "embedding", "sentence_transformer", str(folder)))
    with pytest.raises(ModelError, match=r"model tiny: .* makes no token vectors"):
        encoder.encode_readable(["cat"], role="query")


def _bytes() -> Tokenizer:
    """Each byte is a token, a space among them; several make one character."""
    alphabet = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _joining() -> Tokenizer:
    """Makes one token of the letters at the seam of a prompt and a text."""
    vocabulary = [(letter, -5.0) for letter in "ab:"] + [(":a", -1.0), ("<unk>", -99.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=4))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _row(cutter: Cutter, text: str, before: list[int], after: list[int]) -> Row:
    ids = [*before, *cutter.tokenise([text])[0].ids, *after]
    return Row(np.array(ids, np.int64), np.ones(len(ids), np.bool_))


def test_bytes_of_one_character_share_its_span() -> None:
    cutter = Cutter(_bytes())
    row = _row(cutter, "p: a🙂", [7, 7], [9])
    texts, spans = read_text(cutter, "p: ", [Window("a🙂", 5)], [row])
    assert texts[-6:-1] == ["a", "🙂", "🙂", "🙂", "🙂"]
    assert spans == [None] * 5 + [(0, 1)] + [(1, 2)] * 4 + [None]


def test_a_text_is_found_where_a_template_puts_the_prompt_elsewhere() -> None:
    cutter = Cutter(_bytes())
    row = _row(cutter, "cat", [3, 4, 5], [6])
    texts, spans = read_text(cutter, "p: ", [Window("cat", 3)], [row])
    assert texts[3:6] == ["c", "a", "t"]
    assert spans == [None, None, None, (0, 1), (1, 2), (2, 3), None]


def test_a_text_that_is_not_found_is_spelt_by_the_tokenizer() -> None:
    cutter = Cutter(_bytes())
    row = Row(np.array(cutter.tokenise(["dog"])[0].ids), np.array([True, False, True]))
    assert read_text(cutter, "", [Window("cat", 3)], [row]) == (["d", "g"], [None, None])


def test_a_token_that_prompt_and_text_share_stands_for_what_is_of_the_text() -> None:
    cutter = Cutter(_joining())
    assert len(cutter.tokenise(["b:ab"])[0].ids) == 3
    row = _row(cutter, "b:ab", [], [])
    texts, spans = read_text(cutter, "b:", [Window("ab", 2)], [row])
    assert (texts, spans) == (["b", "a", "b"], [None, (0, 1), (1, 2)])


def _readable(vectors: Any) -> ReadableTokens:
    matrix = np.asarray(vectors, np.float32)
    return ReadableTokens(matrix, [f"t{n}" for n in range(len(matrix))], [None] * len(matrix))


def test_an_alignment_says_who_answers_whom() -> None:
    query = _readable([[1, 0], [0, 1]])
    document = _readable([[0.5, 0.1], [0.123456, 0.9], [0.5, 0.2]])
    assert alignment(query, document) == {
        "tokens": ["t0", "t1", "t2"],
        "spans": [None, None, None],
        "best": [0, 1],  # of two that are as close, the first
        "scores": [0.5, 0.9],
        "heat": [0.5, 0.9, 0.5],
        "heat_from": [0, 1, 0],
    }


@pytest.mark.parametrize(("asked", "read"), [(0, 3), (3, 0), (0, 0)])
def test_without_tokens_all_lists_are_empty(asked: int, read: int) -> None:
    found = alignment(_readable(np.ones((asked, 4))), _readable(np.ones((read, 4))))
    assert list(found.values()) == [[]] * 6


@pytest.mark.parametrize("chunk", [1, 20, 1 << 20])
def test_an_alignment_s_scores_add_up_to_maxsim(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aligning, "_CHUNK_ELEMENTS", chunk)
    generator = np.random.default_rng(5)
    query = _readable(generator.normal(size=(7, 16)))
    document = _readable(generator.normal(size=(90, 16)))
    found = alignment(query, document)
    products = document.vectors.astype(np.float64) @ query.vectors.T.astype(np.float64)
    assert found["best"] == products.argmax(axis=0).tolist()
    assert found["heat_from"] == products.argmax(axis=1).tolist()
    np.testing.assert_allclose(found["scores"], products.max(axis=0), atol=1e-4)
    np.testing.assert_allclose(found["heat"], products.max(axis=1), atol=1e-4)
    [score] = maxsim(query.vectors, [pack(document.vectors, "float16")])
    assert sum(found["scores"]) == pytest.approx(score, abs=0.01)


@pytest.mark.parametrize("make", [_bytes, _joining])
def test_a_tokenizer_spells_each_of_its_tokens(make: Callable[[], Tokenizer]) -> None:
    cutter = Cutter(make())
    assert [cutter.spell(token) for token in cutter.tokenise(["ab"])[0].ids] == ["a", "b"]
