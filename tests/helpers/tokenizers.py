"""Tokenizers of kinds that cutting has to get right."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers


def of_bytes() -> Tokenizer:
    """Each byte is a token, as in decoders' tokenizers: an emoji has four of them."""
    alphabet = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def of_pieces() -> Tokenizer:
    """Marks the start of a text like a space: a piece has more tokens than within its text."""
    alphabet = [
        ("▁", -9.0),
        ("a", -3.0),
        ("aa", -1.0),
        ("aaa", -0.5),
        ("▁aaa", -0.4),
        ("<u>", -20.0),
    ]
    tokenizer = Tokenizer(models.Unigram(alphabet, unk_id=5))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer
