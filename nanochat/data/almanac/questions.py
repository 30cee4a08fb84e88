"""Questions about facts: for training, and for the splits "wording" (new wordings) and "fact" (facts never asked)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ..questions import Conversation
from .asking import augmented, exchange, single
from .facts import Fact
from .grammar import Deck, normalized

Facts = tuple[Fact, ...]


def reserved(facts: Facts) -> frozenset[str]:
    """The questions, normalized, that only the test may ask."""
    return frozenset(normalized(question) for fact in facts for question in fact.test_questions())


def _augmented(fact: Fact, rng: random.Random) -> str:
    return augmented(fact.question(rng), rng, keep=" ".join(fact.values.values()))


def _by_relation(facts: Facts) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.askable and not fact.held_out:
            found.setdefault(fact.relation.name, []).append(fact)
    return found


def trained(facts: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "train", endless: all facts that are not held out, equally often, but those marked `needed` three times."""
    yield from _asked([fact for fact in facts if fact.askable and not fact.held_out], facts, rng, "train", prefix)


def never_asked(facts: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "fact", endless: facts that pretraining states and training never asks, in training wordings."""
    yield from _asked([fact for fact in facts if fact.askable and fact.held_out], facts, rng, "fact", prefix)


def _asked(chosen: list[Fact], facts: Facts, rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    held_out = reserved(facts)
    deck = Deck([fact for fact in chosen for _ in range(3 if fact.needed else 1)], rng)
    number = 0
    while chosen:
        fact = deck.draw()
        question = _augmented(fact, rng) if split == "train" else fact.question(rng)
        if normalized(question) not in held_out:
            yield single(
                question, fact.answers, skill="facts", split=split, conv_id=f"{prefix}/{fact.relation.name}/{number}"
            )
            number += 1


def followed_up(facts: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "train", endless: a question with a follow-up ("What is the capital of France?", "And of Spain?")."""
    held_out = reserved(facts)
    related = [[fact for fact in found if fact.relation["F"]] for found in _by_relation(facts).values()]
    deck = Deck([found for found in related if len(found) > 1 for _ in found], rng)
    number = 0
    while True:
        first, second = rng.sample(deck.draw(), 2)
        questions = _augmented(first, rng), second.follow_up(rng)
        if not held_out & {*map(normalized, questions)}:
            turns = (*exchange(questions[0], first.answers[0]), *exchange(questions[1], second.answers[0]))
            conv_id = f"{prefix}/{first.relation.name}/{number}"
            yield Conversation(turns, "", second.answers, "facts", "train", conv_id)
            number += 1


def new_wordings(facts: Facts, rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Split "wording", endless: facts that training asks, in held-out wordings, balanced over the relations."""
    by_relation = _by_relation(facts)
    relations = Deck([name for name, found in by_relation.items() for _ in range(min(4, len(found)))], rng)
    decks = {name: Deck(found, rng) for name, found in by_relation.items()}
    number = 0
    while True:
        fact = decks[relations.draw()].draw()
        question = rng.choice(fact.test_questions())
        conv_id = f"{prefix}/{fact.relation.name}/{number}"
        yield single(question, fact.answers, skill="facts", split="wording", conv_id=conv_id)
        number += 1
