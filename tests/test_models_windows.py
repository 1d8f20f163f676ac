"""Cutting texts and pairs to windows: nothing is lost or too long, and sentences stay whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pgrerank.errors import ModelError
from pgrerank.models import ModelSpec, Role, load_encoder
from pgrerank.models.pairs import cut_pairs, join_scores
from pgrerank.models.steps import Input, Prepared
from pgrerank.models.windows import Cutter, room_for_text
from pgrerank.passages import cut as cut_passages
from tests.helpers import models_fixtures as tiny
from tests.helpers.tokenizers import of_bytes, of_pieces

WORDS = {"[UNK]": 0, "cat": 1, "sat": 2, "mat": 3, ".": 4}


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


TEXTS = st.text(st.sampled_from("aab .\n。中🙂é\x00\u0301")) | st.text()


@pytest.mark.parametrize("make", [_words, of_bytes, of_pieces])
@given(text=TEXTS, room=st.integers(4, 12))
def test_windows_joined_are_the_text_and_fit(make: object, text: str, room: int) -> None:
    cutter = Cutter(make())  # type: ignore[operator]
    tokenised = cutter.tokenise([text])[0]
    windows = cutter.cut(tokenised, room)
    assert "".join(window.text for window in windows) == tokenised.text
    for window in windows:
        assert window.tokens == len(cutter.tokenise([window.text])[0].offsets)
        assert window.tokens <= room or len(window.text.strip()) <= 1


@pytest.mark.parametrize("make", [_words, of_bytes, of_pieces])
def test_a_text_that_fits_is_left_as_it_is(make: object) -> None:
    cutter = Cutter(make())  # type: ignore[operator]
    for text in ("", "   ", " cat\n"):
        windows = cutter.cut(cutter.tokenise([text])[0], 12)
        assert [window.text for window in windows] == [text]


def test_cuts_are_at_ends_of_sentences() -> None:
    cutter, sentence = Cutter(_words()), "The cat sat on the mat. "
    windows = cutter.cut(cutter.tokenise([sentence * 30])[0], 40)
    assert len(windows) > 5
    assert all(window.text.endswith("mat. ") for window in windows)


def test_cuts_are_at_ends_of_sentences_without_spaces() -> None:
    cutter = Cutter(_words())
    windows = cutter.cut(cutter.tokenise(["中中中中中。" * 30])[0], 40)
    assert len(windows) > 4
    assert all(window.text.endswith("。") for window in windows)


def test_a_decimal_point_ends_no_sentence_and_words_are_not_torn() -> None:
    cutter = Cutter(of_bytes())
    windows = cutter.cut(cutter.tokenise(["3.14159 pools " * 30])[0], 30)
    assert len(windows) > 12
    assert {window.text.split(maxsplit=1)[0] for window in windows} <= {"3.14159", "pools"}


def test_windows_are_of_about_one_length() -> None:
    cutter = Cutter(_words())
    windows = cutter.cut(cutter.tokenise(["cat " * 101])[0], 100)
    assert [window.tokens for window in windows] == [51, 50]


def test_a_character_is_never_torn() -> None:
    cutter = Cutter(of_bytes())
    windows = cutter.cut(cutter.tokenise(["🙂" * 10])[0], 6)
    assert [window.text for window in windows] == ["🙂"] * 10


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert Cutter(of_bytes()).tokenise(["a\ud83d"])[0].text == "a?"


def test_the_cutter_leaves_the_models_tokenizer_as_it_was() -> None:
    tokenizer = _words()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert len(Cutter(tokenizer).tokenise(["cat " * 5])[0].offsets) == 5
    assert len(tokenizer.encode("cat " * 5)) == 9


def test_a_window_without_room_for_text_is_refused() -> None:
    assert room_for_text("m", 32, 3) == 29
    with pytest.raises(
        ModelError, match=r"model m: a window of 5 tokens leaves 2 for text after 3"
    ):
        room_for_text("m", 5, 3)


@pytest.mark.parametrize("text", ["the cat sat in the pool. " * 30, "🙂 é " * 90, "yes no" * 70])
@pytest.mark.parametrize("role", ["query", "document"])
def test_no_window_of_an_encoder_would_be_truncated(tmp_path: Path, text: str, role: Role) -> None:
    prompts = {"query": "query ", "document": "passage: "}
    folder = tiny.save_sentence_transformer(tmp_path, prompts)
    encoder = load_encoder(ModelSpec("m", "embedding", "sentence_transformer", str(folder)))
    plain = SentenceTransformer(str(folder), device="cpu")
    [item] = encoder.steps(role, embeddings=True, tokens=False).prepare([text])
    whole = {"text": {"truncation": False}}
    texts = [one.source for one in item.inputs]
    mask = plain.preprocess(texts, prompt=prompts[role], processing_kwargs=whole)["attention_mask"]
    assert tiny.WINDOW / 2 < mask.sum(dim=1).max() <= tiny.WINDOW


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), max_size=5))
def test_pairs_fit_and_lose_nothing(lengths: list[tuple[int, int]]) -> None:
    cutter, room = Cutter(_words()), 20
    pairs = [("cat " * query, "mat " * document) for query, document in lengths]
    for (query, document), cut in zip(pairs, cut_pairs(pairs, cutter, room), strict=True):
        queries, documents = cut.shape
        assert len(cut.windows) == queries * documents
        assert "".join(q for q, _ in cut.windows[::documents]) == query
        assert "".join(d for _, d in cut.windows[:documents]) == document
        assert all(len(q.split()) <= room // 2 for q, _ in cut.windows)
        assert [len(q.split()) + len(d.split()) for q, d in cut.windows] == cut.tokens
        assert all(tokens <= room for tokens in cut.tokens)


def test_a_pair_scores_the_mean_over_query_windows_of_the_maximum_over_document_windows() -> None:
    items = [Prepared([Input("", 1)] * (q * d), (q, d)) for q, d in [(1, 1), (2, 3), (1, 1)]]
    scores = [[5.0], [1.0, 9.0, 2.0, -1.0, -4.0, -3.0], [7.0]]
    assert join_scores("m", items, scores) == [5.0, (9 - 1) / 2, 7.0]
    with pytest.raises(ModelError, match="model m: pair 1 gave nan, not a score"):
        join_scores("m", items[:1] * 2, [[5.0], [math.nan]])


@pytest.mark.parametrize("text", ["the cat sat in the pool. " * 30, "🙂 é " * 90, "yes no" * 70])
def test_each_passage_that_fits_an_encoder_is_one_window(tmp_path: Path, text: str) -> None:
    folder = tiny.save_sentence_transformer(tmp_path, {"document": "passage: "})
    encoder = load_encoder(ModelSpec("m", "embedding", "sentence_transformer", str(folder)))
    passages = cut_passages(text, encoder.offsets, size=encoder.room)
    assert len(passages) > 4
    steps = encoder.steps("document", embeddings=True, tokens=False)
    prepared = steps.prepare([one.text for one in passages])
    assert [len(one.inputs) for one in prepared] == [1] * len(passages)
