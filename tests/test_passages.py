"""Cutting texts into passages: all is held, none is too long, and edits change few."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pgrerank.passages import Passage, Tokenise, cut
from tests.helpers.tokenizers import of_bytes, of_pieces

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _tokenise(tokenizer: Tokenizer) -> Tokenise:
    return lambda texts: [
        e.offsets for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _pieces_of_words() -> Tokenizer:
    """As BERT reads: control characters are nothing, and a word of 101 letters is one token."""
    vocabulary = {"[UNK]": 0} | {
        token: number
        for number, token in enumerate(
            [*LETTERS, *(f"##{x}{y}" for x in LETTERS for y in LETTERS)], 1
        )
    }
    vocabulary |= {f"##{x}": len(vocabulary) + n for n, x in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def tokens_of_words(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Each word is a token."""
    found = []
    for text in texts:
        begins = list(itertools.accumulate((len(w) + 1 for w in text.split(" ")), initial=0))
        found.append([(b, b + len(w)) for b, w in zip(begins, text.split(" "), strict=False) if w])
    return found


TOKENISE = {make.__name__: _tokenise(make()) for make in (_pieces_of_words, of_bytes, of_pieces)}
TEXTS = st.lists(
    st.text(st.sampled_from("aab .\n。中🙂é\x01\u0301\u200d"))
    | st.text()
    | st.sampled_from(["\n" * 40, "a" * 200]),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("tokenise", TOKENISE.values(), ids=TOKENISE)
@given(text=TEXTS, size=st.integers(4, 20), data=st.data())
def test_passages_hold_the_whole_text_in_order_and_fit(
    tokenise: Tokenise, text: str, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 4))
    passages = cut(text, tokenise, size=size, overlap=overlap)
    assert passages == cut(text, tokenise, size=size, overlap=overlap)
    held = {place for one in passages for place in range(one.start, one.end)}
    assert {place for place, letter in enumerate(text) if not letter.isspace()} <= held
    for before, after in itertools.pairwise(passages):
        assert before.start < after.start
        assert before.end < after.end
        assert overlap or before.end <= after.start
    texts = [text[one.start : one.end] for one in passages]
    assert texts == [one.text for one in passages]
    assert all(one.strip() for one in texts)
    for one, tokens in zip(texts, tokenise(texts), strict=True):
        assert len(tokens) <= size or len(one) == 1


def essay(words: int, seed: int, per_paragraph: int = 90) -> str:
    """Sentences of words of letters by chance, in paragraphs."""
    rng = random.Random(seed)
    written = [[] for _ in range(-(-words // per_paragraph))]
    for paragraph in written:
        left = per_paragraph
        while left > 0:
            length = rng.randint(4, 25)
            left -= length
            chosen = ["".join(rng.choices(LETTERS, k=5)) for _ in range(length)]
            paragraph.append(" ".join(chosen).capitalize() + ".")
    return "\n\n".join(map(" ".join, written))


def _texts(text: str, tokenise: Tokenise = tokens_of_words, **how: int) -> list[str]:
    return [one.text for one in cut(text, tokenise, **how)]


@pytest.mark.parametrize("per_paragraph", [90, 1000, 20_000])
def test_an_edit_changes_few_passages(per_paragraph: int) -> None:
    """Of about a hundred; also where there are no paragraphs."""
    text = essay(20_000, per_paragraph, per_paragraph)
    before = set(_texts(text, size=254, overlap=20))
    assert len(before) > 95

    def changed(after: str) -> int:
        return len(set(_texts(after, size=254, overlap=20)) - before)

    assert changed(text + "\n\n" + essay(90, 1)) <= 3
    counts = []
    for tenth in (0, 3, 6, 9):
        place = text.index(" ", len(text) * tenth // 10)
        counts.append(changed(text[:place] + " more" + text[place:]))
        counts.append(changed(text[:place] + text[place + 1000 :]))
    assert sum(counts) / len(counts) < 3
    assert max(counts) <= 8


PARAGRAPHS = st.lists(st.integers(1, 150), min_size=10, max_size=30)
SIZE = 96


@settings(max_examples=30)
@given(lengths=PARAGRAPHS, seed=st.integers(0, 99), words=st.integers(1, SIZE * 2 // 3))
def test_a_paragraph_of_two_thirds_of_a_passage_at_most_changes_three(
    lengths: list[int], seed: int, words: int
) -> None:
    text = "\n\n".join(essay(length, seed + n, 200) for n, length in enumerate(lengths))
    before = set(_texts(text, size=SIZE))
    after = _texts(f"{text}\n\n{essay(words, seed)}", size=SIZE)
    assert len(set(after) - before) <= 3
    assert _texts(text, size=SIZE)[:-2] == after[: max(0, len(before) - 2)]


def test_what_is_put_in_or_taken_out_changes_what_is_around_it() -> None:
    counts = []
    for seed in range(8):
        rng = random.Random(seed)
        paragraphs = [essay(rng.randint(5, 150), seed * 100 + n, 200) for n in range(60)]
        before = set(_texts("\n\n".join(paragraphs), size=SIZE))
        place = rng.randrange(60)
        more = [*paragraphs[:place], essay(60, seed), *paragraphs[place:]]
        less = paragraphs[:place] + paragraphs[place + 2 :]
        for edited in (more, less):
            after = set(_texts("\n\n".join(edited), size=SIZE))
            counts.append(len(after - before))
    assert sum(counts) / len(counts) < 3
    assert max(counts) <= 8


def test_a_text_that_fits_is_one_passage_and_a_blank_one_has_none() -> None:
    assert cut(" two words\n", tokens_of_words, size=4) == [Passage(0, 11, " two words\n")]
    assert cut("", tokens_of_words, size=4) == cut(" \n" * 1000, TOKENISE["of_bytes"], size=4) == []


def test_cuts_are_at_ends_of_sentences() -> None:
    for sentence, end in [
        ("The pool, e.g. this one, has 3.14 m. ", "m."),
        ('He said: "The pool is shut." ', 'shut."'),
        ("Pools are large.\r\n", "large."),
    ]:
        passages = _texts(sentence * 40, size=40)
        assert len(passages) > 2
        assert all(one.endswith(end) for one in passages)


def test_cuts_are_at_ends_of_sentences_without_spaces() -> None:
    passages = _texts("中中中「中中。」中中中中！？" * 30, TOKENISE["_pieces_of_words"], size=40)
    assert len(passages) > 8
    assert {one[-2:] for one in passages} == {"。」", "！？"}


def test_the_end_of_a_paragraph_goes_before_that_of_a_sentence_and_this_before_a_line() -> None:
    wrapped = "One of them is\nwrapped. So it\nis cut in two. "
    assert all(one.endswith(".") for one in _texts(wrapped * 30, size=30))
    paragraphs = _texts("\n\n".join(["One. Two words. Three words here."] * 60), size=30)
    assert len(paragraphs) > 8
    assert all(one.startswith("One.") and one.endswith("here.") for one in paragraphs)


def test_an_overlap_begins_with_a_sentence_or_else_with_a_word() -> None:
    sentences = [f"This is sentence number {number}." for number in range(100)]
    passages = _texts(" ".join(sentences), size=40, overlap=7)
    for before, after in itertools.pairwise(passages):
        assert before.split(". ")[-1] == after.split(". ")[0] + "."
    words = [one.split(" ") for one in _texts(" ".join(map(str, range(400))), size=40, overlap=7)]
    assert all(a[0] == b[-7] for b, a in itertools.pairwise(words))
    plain = _texts(" ".join(map(str, range(400))), size=40)
    assert " ".join(plain).split(" ") == list(map(str, range(400)))


def test_passages_are_at_least_a_third_full_but_the_last() -> None:
    lengths = [len(one.split()) for one in _texts(essay(5000, 5), size=100)]
    assert 34 <= min(lengths[:-1]) < sum(lengths) / len(lengths) / 1.2
    assert lengths[-1] >= 25


def test_accents_and_joined_emoji_stay_whole() -> None:
    for letter in ("e\u0301", "👩\u200d👧", "👍🏽"):
        passages = _texts(letter * 50, TOKENISE["of_bytes"], size=24)
        assert {one.replace(letter, "") for one in passages} == {""}


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "中文字。" * 10**5, "\n" * 10**6 + "a", "a\u0301" * 10**5, "\x01" * 10**6],
    ids=["a word", "Chinese", "lines", "accents", "control characters"],
)
def test_large_texts_take_no_long_time(text: str) -> None:
    begun = time.process_time()
    assert cut(text, TOKENISE["_pieces_of_words"], size=254, overlap=16)
    assert time.process_time() - begun < 20


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 3, expected at least 4 tokens"):
        cut("a", tokens_of_words, size=3)
    with pytest.raises(ValueError, match="overlap is 6, expected 0 to 5: a quarter of the size"):
        cut("a", tokens_of_words, size=20, overlap=6)
