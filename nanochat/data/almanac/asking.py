"""Augmentation of questions: lead-ins, lower case, missing words and typos, as people type them."""

from __future__ import annotations

import random
import re

from ..questions import Conversation, Turn
from .grammar import uncapitalized

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
_FUNCTION_WORDS = frozenset({
    "the", "a", "an", "is", "are", "was", "do", "does", "did", "of", "in", "to", "on", "me", "you", "can", "could", "please",
    "it", "that", "there",
})  # fmt: skip
_LOWER_CASE = re.compile(r"\b[a-z]{4,}\b")


def augmented(question: str, rng: random.Random, keep: str = "") -> str:
    """`question` as somebody might type it: unchanged in two cases of five, else with one or more random changes.

    These are a lead-in, a typo, missing function words, American spelling, lower case and a missing question mark. The
    words of `keep` get no typo and are not left out. A text without letters or digits is returned unchanged.
    """
    original = question
    if (roll := rng.random()) < 0.15:
        lead = rng.choice(_LEADS)
        question = lead.format(uncapitalized(question) if lead.endswith(", {}") else question)
    elif roll < 0.21:
        question = with_typo(question, rng, keep)
    elif roll < 0.33:
        question = without_function_words(question, rng, keep)
    if rng.random() < 0.15:
        question = _AMERICAN.sub(lambda match: _SPELLED[match[0].lower()], question)
    if rng.random() < 0.22:
        question = question.lower()
    if rng.random() < 0.18:
        question = question.rstrip("?.")
    return question if any(map(str.isalnum, original)) else original


def without_function_words(text: str, rng: random.Random, keep: str = "") -> str:
    """`text` without about half of its function words ("What capital France?"), except those that occur in `keep`.

    A text of fewer than four words is returned unchanged.
    """
    words, kept = text.split(" "), set(re.findall(r"\w+", keep.casefold()))
    droppable = [word.casefold() in _FUNCTION_WORDS - kept for word in words]
    if len(words) < 4 or all(droppable):
        return text
    kept_words = [word for word, small in zip(words, droppable, strict=True) if not small or rng.random() < 0.5]
    return kept_words[0][:1].upper() + " ".join(kept_words)[1:] if text[:1].isupper() else " ".join(kept_words)


def with_typo(text: str, rng: random.Random, keep: str = "") -> str:
    """`text` with a typo: two letters swapped, one left out or one doubled, in a lower-case word not in `keep`."""
    kept = set(re.findall(r"\w+", keep.casefold()))
    words = [match for match in _LOWER_CASE.finditer(text) if match[0] not in kept]
    if not words:
        return text
    match = rng.choice(words)
    word, at = match[0], rng.randrange(1, len(match[0]) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    wrong = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return text[: match.start()] + wrong + text[match.end() :]


def exchange(question: str, answer: str) -> tuple[Turn, Turn]:
    """A question and its answer as two turns."""
    return Turn("user", question), Turn("assistant", answer)


def single(
    question: str, answers: tuple[str, ...], *, context: str = "", skill: str, split: str, conv_id: str
) -> Conversation:
    """A conversation of one question. All `answers` are accepted; the assistant gives the first."""
    return Conversation(exchange(question, answers[0]), context, answers, skill, split, conv_id)
