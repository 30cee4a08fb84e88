"""Scores of answers and texts: SQuAD's exact match and F1, refusals, repetition, and overlap with the training text.

Everything here works on texts; no model is needed.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from ..data.conversation import IDK

OPEN_SKILLS = ("stories",)  # open-ended: exact match and F1 mean nothing
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def normalize(text: str) -> str:
    """Lower-cased text without ASCII punctuation, articles and redundant whitespace, as in SQuAD's own script (Rajpurkar
    et al. 2016, section 6.1).

    The order matters: without its period, "a." is an article.
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", text).split())


_REFUSALS = {normalize(text) for text in (IDK, "I do not know.")}


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer: "I don't know" up to normalization, or no text at all."""
    return not text.strip() or normalize(text) in _REFUSALS


def _comparable(text: str) -> str:
    """The normalized text, or "" for a refusal, as SQuAD 2.0 writes "no answer"."""
    normal = normalize(text)
    return "" if normal in _REFUSALS else normal


def _accepted(answers: Iterable[str]) -> list[str]:
    """The answers to compare a prediction with, normalized. As in SQuAD's script, answers that normalize to nothing are
    dropped, and a question without answers is unanswerable.
    """
    return [_comparable(answer) for answer in answers if normalize(answer)] or [""]


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the prediction equals one of the accepted answers after normalization."""
    return _comparable(prediction) in _accepted(answers)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Word-level F1, 0 to 1, with the closest accepted answer: the harmonic mean of precision and recall.

    If either side is "no answer", it is 1 if both are and 0 otherwise (Rajpurkar et al. 2018).
    """
    return max(_word_f1(_comparable(prediction).split(), answer.split()) for answer in _accepted(answers))


def _word_f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    same = sum((Counter(prediction) & Counter(answer)).values())
    # = 2PR / (P + R) with P = same / |prediction| and R = same / |answer|
    return 2 * same / (len(prediction) + len(answer))


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval (Wilson 1927), 95 % by default, of `right` out of n > 0; also valid at 0 and n."""
    p = right / n
    center, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


@dataclass(frozen=True)
class Scored:
    """One question with the model's answer and its scores. `stopped`: the model ended the answer by itself."""

    skill: str
    split: str
    question: str
    prediction: str
    answers: tuple[str, ...]
    em: bool
    f1: float
    stopped: bool
    context: str = ""

    @property
    def answerable(self) -> bool:
        """Whether the question has an answer, so that a refusal is wrong."""
        return bool(self.answers) and not any(is_refusal(answer) for answer in self.answers)


def summary(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """A row for each (skill, split), then one for each split with the skill "all"; rates are between 0 and 1.

    Columns: n, em with its 95 % interval (em_low, em_high), f1, stop_rate, unanswerable and answerable (counts),
    refusal_rate (of the unanswerable) and false_refusal_rate (of the answerable); None where nothing can be counted.
    The rows "all" leave out OPEN_SKILLS, whose own rows have no em and f1.
    """
    groups: dict[tuple[str, str], list[Scored]] = {}
    for item in scored:
        groups.setdefault((item.split, item.skill or "other"), []).append(item)
        if item.skill not in OPEN_SKILLS:
            groups.setdefault((item.split, "all"), []).append(item)
    order = sorted(groups, key=lambda key: (key[1] == "all", *key))
    return [{"skill": skill, "split": split, **_row(groups[split, skill], skill)} for split, skill in order]


def _row(items: list[Scored], skill: str) -> dict[str, Any]:
    n = len(items)
    right = sum(item.em for item in items)
    asked = {answerable: [item for item in items if item.answerable == answerable] for answerable in (True, False)}
    refused = {answerable: [is_refusal(item.prediction) for item in asked[answerable]] for answerable in asked}
    checkable = skill not in OPEN_SKILLS
    low, high = wilson(right, n) if checkable else (None, None)
    return {
        "n": n,
        "em": right / n if checkable else None,
        "em_low": low,
        "em_high": high,
        "f1": fmean(item.f1 for item in items) if checkable else None,
        "stop_rate": fmean(item.stopped for item in items),
        "unanswerable": len(asked[False]),
        "refusal_rate": fmean(refused[False]) if asked[False] else None,
        "answerable": len(asked[True]),
        "false_refusal_rate": fmean(refused[True]) if asked[True] else None,
    }


# --- longer texts ------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORD.findall(text.lower())


def repetition(text: str, n: int = 4) -> float:
    """The share of a text's word n-grams that repeat an earlier one; 0 for a text that never repeats itself."""
    text_words = words(text)
    grams = [tuple(text_words[i : i + n]) for i in range(len(text_words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_overlaps(texts: Sequence[str], training: Iterable[str]) -> list[int]:
    """For each text, the length in words of its longest run that occurs verbatim in a piece of `training`.

    A suffix automaton (Blumer et al. 1985) of `texts` reads the training text once, so memory does not grow with it.
    """
    split = [words(text) for text in texts]
    automaton = _SuffixAutomaton()
    for text in split:
        automaton.add(text)
    longest = automaton.longest_matches(training)
    return [max((longest[state] for state in automaton.path(text)), default=0) for text in split]


class _SuffixAutomaton:
    """A suffix automaton over words. Each state stands for the runs of words that end at the same places of the added
    texts; `length` is that of its longest run, `link` the state of the longest suffix that also ends elsewhere.
    """

    def __init__(self) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.length = [0]
        self.link = [-1]

    def _state(self, length: int, link: int, edges: dict[str, int]) -> int:
        self.next.append(edges)
        self.length.append(length)
        self.link.append(link)
        return len(self.next) - 1

    def _clone(self, state: int, word: str) -> int:
        """The successor of `state` on `word`, split off from longer runs if it stands for any."""
        target = self.next[state][word]
        if self.length[target] == self.length[state] + 1:
            return target
        clone = self._state(self.length[state] + 1, self.link[target], dict(self.next[target]))
        self.link[target] = clone
        while state >= 0 and self.next[state].get(word) == target:
            self.next[state][word] = clone
            state = self.link[state]
        return clone

    def add(self, text: list[str]) -> None:
        """Add all runs of one more text; no run crosses from one text into the next."""
        last = 0
        for word in text:
            if word in self.next[last]:  # an earlier text begins the same way
                last = self._clone(last, word)
                continue
            new = self._state(self.length[last] + 1, 0, {})
            state, last = last, new
            while state >= 0 and word not in self.next[state]:
                self.next[state][word] = new
                state = self.link[state]
            if state >= 0:
                self.link[new] = self._clone(state, word)

    def path(self, text: list[str]) -> Iterable[int]:
        """The states that an added text passes through."""
        state = 0
        for word in text:
            state = self.next[state][word]
            yield state

    def longest_matches(self, training: Iterable[str]) -> list[int]:
        """For each state, the length of its longest suffix that occurs in `training`."""
        longest = [0] * len(self.next)
        for piece in training:
            state = matched = 0
            for word in words(piece):
                while state and word not in self.next[state]:
                    state = self.link[state]
                    matched = self.length[state]
                if word in self.next[state]:
                    state, matched = self.next[state][word], matched + 1
                    longest[state] = max(longest[state], matched)
        by_length = sorted(range(1, len(self.next)), key=self.length.__getitem__)
        for state in reversed(by_length):  # a run that occurs has suffixes that occur
            link = self.link[state]
            if longest[state]:
                longest[link] = max(longest[link], self.length[link])
        for state in by_length:  # an unreached state takes its longest suffix that was reached
            longest[state] = max(longest[state], longest[self.link[state]])
        return longest


def text_measures(texts: Sequence[str], training: Iterable[str]) -> dict[str, float]:
    """Measures of repetition and of copying from the training text, over one or more `texts`.

    n, words (mean length), repetition (mean share of repeated 4-grams), overlap_median and overlap_longest (in words,
    see `longest_overlaps`), and copied (the mean share of a text taken up by its longest overlap).
    """
    lengths = [len(words(text)) for text in texts]
    overlaps = longest_overlaps(texts, training)
    return {
        "n": len(texts),
        "words": fmean(lengths),
        "repetition": fmean(map(repetition, texts)),
        "overlap_median": median(overlaps),
        "overlap_longest": max(overlaps),
        "copied": fmean(run / max(n, 1) for run, n in zip(overlaps, lengths, strict=True)),
    }
