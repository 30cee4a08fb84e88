"""Helpers for the tests of conversations: a tokenizer with readable ids, and example conversations."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from nanochat.data.questions import Conversation, Turn
from nanochat.tokenizer import PATTERN, SPECIALS, Tokenizer

# One token for each byte: ids can be checked by eye, and "A" is 65.
TOK = Tokenizer(
    "bytes", {bytes([i]): i for i in range(256)}, PATTERN, {name: 256 + i for i, name in enumerate(SPECIALS)}
)
EOT, CONTEXT, USER, ASSISTANT, END = range(256, 261)


def talk(*texts: str, **fields) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return Conversation(turns, **fields)


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


texts = st.text(min_size=1, max_size=20).filter(str.strip)


@st.composite
def conversations(draw) -> Conversation:
    n = draw(st.integers(1, 3))
    said = draw(st.lists(texts, min_size=2 * n, max_size=2 * n))
    answers = (said[-1], *draw(st.lists(texts, max_size=2)))
    labels = {key: draw(st.sampled_from(("", "x"))) for key in ("skill", "id")}
    return talk(*said, context=draw(st.just("") | texts), answers=answers, **labels)
