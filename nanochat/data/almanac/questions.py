"""Questions about facts: those to train on, and the two kinds kept for the test (new wordings; facts never asked)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ..questions import Conversation
from .asking import dressed, exchange, single
from .facts import Fact
from .grammar import Deck, normalised

Facts = tuple[Fact, ...]


def reserved(told: Facts) -> frozenset[str]:
    """Every wording of every fact that only the test may ask, normalised."""
    return frozenset(normalised(question) for fact in told for question in fact.test_questions())


def _dressed(fact: Fact, rng: random.Random) -> str:
    return dressed(fact.question(rng), rng, keep=" ".join(fact.values.values()))


def _by_relation(told: Facts) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in told:
        if fact.askable and not fact.held_out:
            found.setdefault(fact.relation.name, []).append(fact)
    return found


def trained(told: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "train", without end: every fact that is not held out equally often (three times for those every
    size must know), in trained wordings."""
    yield from _asked([fact for fact in told if fact.askable and not fact.held_out], told, rng, "train", prefix)


def only_told(told: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "fact", without end: the facts that training tells and never asks, in trained wordings."""
    yield from _asked([fact for fact in told if fact.askable and fact.held_out], told, rng, "fact", prefix)


def _asked(chosen: list[Fact], told: Facts, rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    held_out = reserved(told)
    deck = Deck([fact for fact in chosen for _ in range(3 if fact.needed else 1)], rng)
    number = 0
    while chosen:
        fact = deck.draw()
        question = _dressed(fact, rng) if split == "train" else fact.question(rng)
        if normalised(question) not in held_out:
            yield single(
                question, fact.answers, skill="facts", split=split, id=f"{prefix}/{fact.relation.name}/{number}"
            )
            number += 1


def followed_up(told: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "train", without end: "What is the capital of France?" and then "And of Spain?"."""
    held_out = reserved(told)
    related = [[fact for fact in found if fact.relation["F"]] for found in _by_relation(told).values()]
    deck = Deck([found for found in related if len(found) > 1 for _ in found], rng)
    number = 0
    while True:
        first, second = rng.sample(deck.draw(), 2)
        questions = _dressed(first, rng), second.follow_up(rng)
        if not held_out & {*map(normalised, questions)}:
            turns = (*exchange(questions[0], first.answers[0]), *exchange(questions[1], second.answers[0]))
            id = f"{prefix}/{first.relation.name}/{number}"
            yield Conversation(turns, "", second.answers, "facts", "train", id)
            number += 1


def in_new_words(told: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "wording", without end: facts that training asks, in wordings kept for the test, relations in balance."""
    by_relation = _by_relation(told)
    relations = Deck([name for name, found in by_relation.items() for _ in range(min(4, len(found)))], rng)
    decks = {name: Deck(found, rng) for name, found in by_relation.items()}
    number = 0
    while True:
        fact = decks[relations.draw()].draw()
        question = rng.choice(fact.test_questions())
        id = f"{prefix}/{fact.relation.name}/{number}"
        yield single(question, fact.answers, skill="facts", split="wording", id=id)
        number += 1
