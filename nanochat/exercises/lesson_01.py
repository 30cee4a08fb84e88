"""Checks for the exercises of notebook 01, from text to tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from ..tokenizer import Tokenizer, train_bpe
from . import compare, exercise


@functools.cache
def _tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat, the cat sat on the hat. "] * 4, 300)


@exercise(
    "01.bytes_per_token",
    praise="per byte, not per character, you can compare texts of all languages and all tokenizers.",
    hints=(
        "Two numbers and a division: how many bytes the text has, and how many ids tok.encode(text) gives.",
        "len(text) counts characters. A character outside plain English letters takes several bytes: "
        "text.encode() gives them.",
        "len(text.encode()) / len(tok.encode(text))",
    ),
)
def _bytes_per_token(answer: Callable[[str, Tokenizer], float]) -> str | None:
    tok = _tokenizer()
    for text in ("the cat sat", "the café", "🍞🍞"):
        wanted = len(text.encode()) / len(tok.encode(text))
        if wrong := compare(f"bytes_per_token({text!r}, tok)", answer(text, tok), wanted):
            return wrong
    return None


def _expand(token: int, merges: Sequence[tuple[int, int]]) -> bytes:
    if token < 256:
        return bytes([token])
    left, right = merges[token - 256]
    return _expand(left, merges) + _expand(right, merges)


@exercise(
    "01.expand",
    praise="decoding only undoes merges; it never fails, and never needs the text that the merges were learned from.",
    hints=(
        "An id below 256 is a byte by itself: bytes([id]). Do that case first.",
        "Id 256 is the first merge: merges[id - 256] is the pair it was made from.",
        "Each half of the pair may be a merge itself: call expand on both halves and add what comes back.",
    ),
)
def _expand_check(answer: Callable[[int, Sequence[tuple[int, int]]], bytes]) -> str | None:
    merges = [(116, 104), (256, 101), (32, 257), (258, 110)]  # th, the, ' the', ' then'
    for token in (97, 256, 257, 259):
        if wrong := compare(f"expand({token}, {merges})", answer(token, list(merges)), _expand(token, merges)):
            return wrong
    return None


@exercise(
    "01.windows",
    praise="a window needs one token more than its length, for the last target.",
    hints=(
        "Try it on paper: how many pieces of three neighbouring tokens does a row of five tokens have?",
        "A window of block_size inputs also needs the token after its last input, as that one's target.",
        "The first start is 0, the last is n_tokens - block_size - 1. A text that is too short has no window at all.",
    ),
)
def _windows(answer: Callable[[int, int], int]) -> str | None:
    for n_tokens, block_size in ((5, 2), (1000, 256), (257, 256), (256, 256), (10, 256)):
        wanted = max(0, n_tokens - block_size)
        if wrong := compare(f"n_windows({n_tokens}, {block_size})", answer(n_tokens, block_size), wanted):
            return wrong
    return None


@exercise(
    "01.leak",
    praise="run this on every split you are given; the best validation losses are often the leaky ones.",
    hints=(
        "Count the validation documents that are also training documents, and divide by how many there are.",
        "Look documents up in a set: `set(train)`. A document that is twice in the validation part counts twice.",
        "An empty validation part has no leak: return 0.0 there, before you divide.",
    ),
)
def _leak(answer: Callable[[Sequence[str], Sequence[str]], float]) -> str | None:
    cases: tuple[tuple[list[str], list[str]], ...] = (
        (["a", "b", "c"], ["d", "e"]),
        (["a", "b", "c"], ["c", "d"]),
        (["a", "a", "b"], ["a", "a", "b", "z"]),
        (["a"], []),
    )
    for train, val in cases:
        wanted = sum(document in train for document in val) / max(1, len(val))
        if wrong := compare(f"leak({train}, {val})", answer(list(train), list(val)), wanted):
            return wrong
    return None
