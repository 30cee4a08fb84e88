"""How people put a question: with a word before it, in a hurry, with a slip of the finger."""

from __future__ import annotations

import random
import re

from ..questions import Conversation, Turn
from .grammar import uncapitalised

_LEADS = (
    "Hey, {}", "Hello, {}", "Hi! {}", "Hi there! {}", "Good morning. {}", "Nanochat, {}", "Excuse me, {}", "Please, {}",
    "Question: {}", "Quick question: {}", "A quick one: {}", "Next question: {}", "Another question: {}",
    "One more question: {}", "I have a question. {}", "Here is one for you: {}", "Try this one: {}", "Answer this: {}",
    "Tell me: {}", "Tell me, {}", "Just tell me: {}", "Remind me: {}", "Now, {}", "So, {}", "OK, {}", "Well, {}",
    "Listen, {}", "I want to know: {}", "I need to know: {}", "I was wondering: {}", "I am curious. {}", "I forgot. {}",
    "I am not sure. {}", "Can you help me? {}", "Help me, please. {}", "My son wants to know: {}", "A friend asked me: {}",
    "For school: {}", "Quiz time! {}", "Thanks! {}", "Great. {}", "{} Do you know?", "{} Do you know that?",
    "{} Please tell me.", "{} Please answer.", "{} Thanks.", "{} Thank you!", "{} I forgot.",
    "{} Any idea?", "{} It is for school.",
)  # fmt: skip
_SPELLED = {
    "colour": "color", "colours": "colors", "grey": "gray", "centre": "center", "metre": "meter", "metres": "meters",
}  # fmt: skip
_AMERICAN = re.compile(rf"\b(?:{'|'.join(_SPELLED)})\b", re.IGNORECASE)
_SMALL = frozenset({
    "the", "a", "an", "is", "are", "was", "do", "does", "did", "of", "in", "to", "on", "me", "you", "can", "could", "please",
    "it", "that", "there",
})  # fmt: skip
_PLAIN = re.compile(r"\b[a-z]{4,}\b")


def dressed(question: str, rng: random.Random, keep: str = "") -> str:
    """`question` as somebody may type it: two times in five as it is, else with a lead-in, in lower case, without its
    question mark, in American spelling, without some small words or with one slip; the words of `keep` stay. What has
    neither letters nor digits stays as it is."""
    plain = question
    if (roll := rng.random()) < 0.15:
        lead = rng.choice(_LEADS)
        question = lead.format(uncapitalised(question) if lead.endswith(", {}") else question)
    elif roll < 0.21:
        question = slipped(question, rng, keep)
    elif roll < 0.33:
        question = hurried(question, rng, keep)
    if rng.random() < 0.15:
        question = _AMERICAN.sub(lambda match: _SPELLED[match[0].lower()], question)
    if rng.random() < 0.22:
        question = question.lower()
    if rng.random() < 0.18:
        question = question.rstrip("?.")
    return question if any(map(str.isalnum, plain)) else plain


def hurried(text: str, rng: random.Random, keep: str = "") -> str:
    """`text` without half of its small words, but for those of `keep`: "What capital France?" Short texts stay whole."""
    words, kept = text.split(" "), set(re.findall(r"\w+", keep.casefold()))
    small = [word.casefold() in _SMALL - kept for word in words]
    if len(words) < 4 or all(small):
        return text
    left = [word for word, may_go in zip(words, small, strict=True) if not may_go or rng.random() < 0.5]
    return left[0][:1].upper() + " ".join(left)[1:] if text[:1].isupper() else " ".join(left)


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
