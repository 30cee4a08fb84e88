"""How people put a question: with a word before it, in a hurry, with a slip of the finger."""

from __future__ import annotations

import random
import re

from ..qa import Conversation, Turn
from .grammar import uncapitalised

_LEADS = (
    "Hey, {}",
    "Hello, {}",
    "Hi! {}",
    "Please, {}",
    "Question: {}",
    "Quick question: {}",
    "I have a question. {}",
    "Tell me: {}",
    "Tell me, {}",
    "Now, {}",
    "So, {}",
    "OK, {}",
    "One more question: {}",
    "I want to know: {}",
    "Can you help me? {}",
    "{} Do you know?",
    "{} Please tell me.",
    "{} Thanks.",
)
_PLAIN = re.compile(r"\b[a-z]{4,}\b")


def dressed(question: str, rng: random.Random, keep: str = "") -> str:
    """`question` as somebody may type it: three in four as it is, the others with a lead-in, in lower case, without
    its question mark or with one slip in a word that does not occur in `keep`. What has neither letters nor digits stays
    as it is."""
    plain = question
    if (roll := rng.random()) < 0.12:
        lead = rng.choice(_LEADS)
        question = lead.format(uncapitalised(question) if lead.endswith(", {}") else question)
    elif roll < 0.17:
        question = slipped(question, rng, keep)
    if rng.random() < 0.10:
        question = question.lower()
    if rng.random() < 0.10:
        question = question.rstrip("?.")
    return question if any(map(str.isalnum, plain)) else plain


def slipped(text: str, rng: random.Random, keep: str = "") -> str:
    """`text` with two letters swapped, one left out or one doubled in a plain word that does not occur in `keep`."""
    kept = set(re.findall(r"\w+", keep.casefold()))
    words = [match for match in _PLAIN.finditer(text) if match[0] not in kept]
    if not words:
        return text
    match = rng.choice(words)
    word, at = match[0], rng.randrange(1, len(match[0]) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    wrong = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return text[: match.start()] + wrong + text[match.end() :]


def exchange(question: str, answer: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    return Turn("user", question), Turn("assistant", answer)


def single(
    question: str, answers: tuple[str, ...], *, context: str = "", skill: str, split: str, id: str
) -> Conversation:
    """A conversation of one question; the first of `answers` is the one given."""
    return Conversation(exchange(question, answers[0]), context, answers, skill, split, id)
