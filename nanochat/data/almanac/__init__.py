"""The embedded default corpus: a small, correct, readable English, made from tables of facts and lists of wordings.

    pretrain_documents(size, seed)   text, and question-and-answer documents in chat form
    conversations(size, seed)        questions with answers: split "train" and four held-out splits

Everything is a pure function of (size, seed). Which facts, names and wordings are held out depends on neither, so no
training set, whatever its seed, holds what another one's test asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from ...config import unknown as unknown_name
from ..questions import Conversation
from .facts import Fact, paragraphs, select
from .grammar import stream
from .questions import followed_up, in_new_words, only_told, trained
from .reading import about, passages, short_passages
from .smalltalk import repeated, talk
from .stories import plain_stories, story_talk
from .unknown import unanswerable

HELD_OUT_SPLITS = ("wording", "fact", "passage", "smalltalk")
VAL_SHARE = 0.03  # conversations of the training kind kept apart for the validation loss


@dataclass(frozen=True)
class Size:
    """How much of the almanac is made."""

    name: str
    core_only: bool  # only the core rows of the tables
    rows: int | None  # at most so many rows of a table (and those that every size needs)
    pretrain_bytes: int
    conversations: int  # in the split "train"
    held_out: int  # in each held-out split
    facts: float  # weight of facts in the split "train", beside those of _TRAIN


SIZES = {
    "smoke": Size("smoke", True, 2, 60_000, 300, 24, 30),
    "default": Size("default", True, None, 5_000_000, 50_000, 400, 30),
    "full": Size("full", False, None, 14_000_000, 200_000, 1_200, 55),
}
# How often each skill comes among the conversations, beside facts
_TRAIN = {"reading": 30, "short": 5, "smalltalk": 25, "repeated": 4, "stories": 0.5, "unknown": 5.5}
# Per cent of the bytes. "talked" (facts, small talk, unknown), "read" and "requested" (stories) are in chat form.
_PRETRAIN = {"told": 17, "passages": 2, "stories": 4, "talked": 31, "read": 39, "repeated": 5, "requested": 2}


def _size(name: str) -> Size:
    if name not in SIZES:
        raise unknown_name("size of the almanac", name, SIZES)
    return SIZES[name]


def _told(size: Size) -> tuple[Fact, ...]:
    return select(size.core_only, size.rows)


def fact_count(size: str = "default") -> int:
    """How many different facts the pretraining text of this size tells (both directions of one count once)."""
    return len({fact.group for fact in _told(_size(size))})


def _read(rng: random.Random, split: str, prefix: str, turns: Callable[[random.Random], int]) -> Iterator[Conversation]:
    held_out = split == "passage"
    for number, passage in enumerate(passages(rng, held_out)):
        noise = 0.0 if held_out else 0.2
        yield about(passage, rng, turns(rng), split=split, id=f"{prefix}/{passage.family}/{number}", noise=noise)


def _read_first(rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Short passages, nearly all of whose questions have an answer: where a fifth of them had none, "I don't know." was the
    safest thing to say for so long that a short training learned nothing else.
    """
    for number, read in enumerate(short_passages(rng)):
        id = f"{prefix}/{read.family}/{number}"
        yield about(read, rng, rng.randint(2, 4), split="train", id=id, noise=0.2, unanswerable=0.03)


def _after_others(
    source: Iterator[Conversation], others: Iterator[Conversation], rng: random.Random
) -> Iterator[Conversation]:
    """Conversations of `source`; one in six goes on a chat of one to three of the others.

    Somebody who only ever heard first questions answers the fifth one by what was said before it.
    """
    for conversation in source:
        if rng.random() < 1 / 6:
            before = islice(others, rng.choice((1, 2, 3)))
            turns = tuple(turn for each in (*before, conversation) for turn in each.turns)
            conversation = replace(conversation, turns=turns)
        yield conversation


def _skills(size: Size, rng: Callable[[str], random.Random], prefix: str) -> dict[str, Iterator[Conversation]]:
    told = _told(size)
    asked = trained(told, rng("facts"), f"{prefix}/facts")
    follow = followed_up(told, rng("follow"), f"{prefix}/follow")
    return {
        "facts": _mixed({asked: 92, follow: 8}, rng("mixed facts")),
        "reading": _read(rng("reading"), "train", f"{prefix}/reading", lambda rng: rng.choice((2, 3, 4, 5, 6))),
        "short": _read_first(rng("short"), f"{prefix}/short"),
        "smalltalk": talk(rng("smalltalk"), "train", f"{prefix}/smalltalk"),
        "repeated": repeated(
            (passage.text for passage in passages(rng("copied"))), rng("repeated"), f"{prefix}/repeated"
        ),
        "stories": story_talk(rng("stories"), "train", f"{prefix}/stories"),
        "unknown": unanswerable(rng("unknown"), "train", f"{prefix}/unknown"),
    }


def conversations(size: str = "default", seed: int = 0) -> Iterator[Conversation]:
    """Questions with answers, a pure function of (size, seed).

    Split "train", in shuffled order; "val", some more of the same kind (it chooses the best weights, so it is no test); then
    the held-out splits: "wording" (new ways to ask; a twelfth of them has no
    answer, skill "unknown"), "fact" (facts that training only tells), "passage" (new names and things to read about)
    and "smalltalk" (new wordings and arguments). Raises UserError for an unknown size.
    """
    chosen = _size(size)

    def rng(purpose: str) -> random.Random:
        return stream(size, seed, "conversations", purpose)

    told, skills = _told(chosen), _skills(chosen, rng, "train")
    before = _skills(chosen, lambda purpose: rng(f"before {purpose}"), "before")
    others = _mixed({before["facts"]: 40, before["smalltalk"]: 45, before["unknown"]: 15}, rng("others"))
    for name in ("facts", "smalltalk", "unknown"):
        skills[name] = _after_others(skills[name], others, rng(f"after others {name}"))
    weights = {"facts": chosen.facts, **_TRAIN}
    each = chosen.conversations / sum(weights.values())
    order = [name for name, weight in weights.items() for _ in range(int(each * weight))]
    rng("order").shuffle(order)
    apart = max(8, round(VAL_SHARE * len(order)))
    for number, name in enumerate(order + order[:apart]):
        conversation = next(skills[name])
        yield conversation if number < len(order) else replace(conversation, split="val")
    new_words = in_new_words(told, rng("wording"), "wording/facts")
    refused = unanswerable(rng("wording unknown"), "wording", "wording/unknown")
    for number in range(chosen.held_out * 12 // 11):
        yield next(refused if number % 12 == 11 else new_words)
    yield from islice(only_told(told, rng("fact"), "fact/facts"), chosen.held_out)
    yield from islice(_read(rng("passage"), "passage", "passage/reading", lambda rng: 1), chosen.held_out)
    yield from islice(talk(rng("held smalltalk"), "smalltalk", "smalltalk/smalltalk"), chosen.held_out)


def pretrain_documents(size: str = "default", seed: int = 0) -> Iterator[str | Conversation]:
    """The pretraining corpus, a pure function of (size, seed): paragraphs that tell facts, passages, stories, and
    three quarters question-and-answer documents. It ends when `Size.pretrain_bytes` are reached. Raises UserError for an
    unknown size.
    """
    chosen = _size(size)

    def rng(purpose: str) -> random.Random:
        return stream(size, seed, "pretrain", purpose)

    skills = _skills(chosen, rng, "pretrain")
    talked = _mixed({skills["facts"]: 66, skills["smalltalk"]: 26, skills["unknown"]: 8}, rng("talked"))
    long = _read(rng("read"), "train", "pretrain/read", lambda rng: rng.randint(4, 8))
    kinds: dict[str, Iterator[str | Conversation]] = {
        "told": paragraphs(_told(chosen), rng("told")),
        "passages": (passage.text for passage in passages(rng("passages"))),
        "stories": plain_stories(rng("plain stories")),
        "talked": _chains(talked, rng("chains")),
        "read": _mixed({long: 60, skills["short"]: 40}, rng("mixed read")),
        "repeated": skills["repeated"],
        "requested": skills["stories"],
    }
    written = dict.fromkeys(kinds, 0)
    while sum(written.values()) < chosen.pretrain_bytes:
        kind = min(kinds, key=lambda name: written[name] / _PRETRAIN[name])
        document = next(kinds[kind])
        written[kind] += length(document)
        yield document


def length(document: str | Conversation) -> int:
    if isinstance(document, str):
        return len(document.encode())
    return sum(len(turn.text.encode()) for turn in document.turns) + len(document.context.encode())


def _mixed(sources: dict[Iterator[Conversation], int], rng: random.Random) -> Iterator[Conversation]:
    """Draws from several sources, in proportion to their weights."""
    while True:
        yield next(rng.choices(list(sources), list(sources.values()))[0])


def _chains(source: Iterator[Conversation], rng: random.Random) -> Iterator[Conversation]:
    """One to four conversations one after another, as one. The last question is the one that counts."""
    while True:
        found = list(islice(source, rng.choice((1, 1, 2, 3, 4))))
        yield replace(found[-1], turns=tuple(turn for each in found for turn in each.turns))
