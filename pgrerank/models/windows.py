"""Cuts texts that are longer than a model's window, at ends of sentences where there are any.

Windows don't overlap: an overlap would store the shared token vectors twice and score them twice,
and what it is for, that no sentence is torn, is had by cutting between sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from pgrerank.errors import ModelError
from pgrerank.models.steps import Ids

LARGEST_WINDOW = 8192  # unless max_tokens says otherwise: the cost of attention grows by the square
_SMALLEST_ROOM = 4
_SENTENCE_ENDS = frozenset(".!?:;…")
_WIDE_SENTENCE_ENDS = frozenset("。！？；")  # no space follows these

Text = str | tuple[str, str]


class Window(NamedTuple):
    """A stretch of a text, and its number of tokens without special ones."""

    text: str
    tokens: int


class Tokenised(NamedTuple):
    """A text, and for each of its tokens its id, its first character and the one after its last."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class Cutter:
    """Cuts by a model's own tokenizer, of which it keeps a copy.

    A copy, as `transformers` changes the padding and truncation of its own at each call, which
    fails while another thread is using it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def tokenise(self, texts: Sequence[str]) -> list[Tokenised]:
        """Tokenise without special tokens; half a surrogate pair becomes a question mark."""
        valid = [without_surrogates(text) for text in texts]
        encodings = self._tokenizer.encode_batch(valid, add_special_tokens=False)
        return [Tokenised(text, e.ids, e.offsets) for text, e in zip(valid, encodings, strict=True)]

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The tokens of texts, without special ones: of each its first character and its end."""
        return [one.offsets for one in self.tokenise(texts)]

    def ids(self, texts: Sequence[Text], *, types: bool) -> list[tuple[Ids, Ids | None]]:
        """Tokenise valid texts, or pairs, with special tokens: ids and, if wanted, segments."""
        return [
            (np.array(e.ids, np.int64), np.array(e.type_ids, np.int64) if types else None)
            for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        ]

    def spell(self, token: int) -> str:
        """Write one token by its id, special ones too."""
        return self._tokenizer.decode([token], skip_special_tokens=False).strip()

    def cut(self, text: Tokenised, room: int) -> list[Window]:
        """Give the windows of at most ``room`` tokens which joined are the text; one at least.

        They are of about one length, so that none is left with a few words and no context. A single
        character of more than ``room`` tokens makes a window of its own.
        """
        if len(text.offsets) <= room:
            return [Window(text.text, len(text.offsets))]
        pieces = self.tokenise(list(_pieces(text, room)))
        if len(pieces) == 1:
            return [Window(text.text, len(text.offsets))]
        # Cut inside a word, a piece may have more tokens than it had within the text.
        return [window for piece in pieces for window in self.cut(piece, room)]


def room_for_text(name: str, window: int, overhead: int) -> int:
    """Tokens of a window which special tokens and prompt leave; raises ModelError if none are."""
    if window - overhead < _SMALLEST_ROOM:
        raise ModelError(
            f"model {name}: a window of {window} tokens leaves {window - overhead} for text after"
            f" {overhead} of special tokens and prompt, expected at least {_SMALLEST_ROOM};"
            " raise max_tokens or shorten the prompt"
        )
    return window - overhead


def without_surrogates(text: str) -> str:
    """Give the text with a question mark for each half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _pieces(text: Tokenised, room: int) -> Iterator[str]:
    begin, first, count = 0, 0, len(text.offsets)
    while count - first > room:
        windows = -(-(count - first) // room)
        cut = _best_cut(text, first, first + -(-(count - first) // windows))
        if cut == count:
            break
        end = text.offsets[cut][0]
        if end > begin:
            yield text.text[begin:end]
            begin = end
        first = cut
    yield text.text[begin:]


def _best_cut(text: Tokenised, first: int, last: int) -> int:
    """Find the token to start the next window: the last to start a sentence, or else a word.

    Only the last quarter is searched. Never within a character, whose tokens have one offset.
    """
    starts = [start for start, _ in text.offsets[first : last + 1]]
    word = None
    for cut in range(last, max(first, last - (last - first) // 4), -1):
        if starts[cut - first] == starts[cut - first - 1]:
            continue
        if _starts_sentence(text.text, starts[cut - first]):
            return cut
        if word is None and _starts_word(text.text, starts[cut - first]):
            word = cut
    return word if word is not None else _between_characters(text, first, last)


def _between_characters(text: Tokenised, first: int, last: int) -> int:
    offsets = text.offsets
    for cut in range(last, first, -1):
        if offsets[cut][0] > offsets[cut - 1][0]:
            return cut
    return next(
        (c for c in range(last, len(offsets)) if offsets[c][0] > offsets[first][0]), len(offsets)
    )


def _starts_word(text: str, at: int) -> bool:
    return text[at - 1].isspace() or text[at].isspace()


def _starts_sentence(text: str, at: int) -> bool:
    before = text[max(0, at - 64) : at]
    stripped = before.rstrip()
    if stripped and stripped[-1] in _WIDE_SENTENCE_ENDS:
        return True
    if not _starts_word(text, at):
        return False
    return "\n" in before[len(stripped) :] or stripped[-1:] in _SENTENCE_ENDS
