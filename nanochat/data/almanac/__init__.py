"""The almanac, the default corpus: simple, correct English text generated from tables of facts and lists of wordings.

    pretrain_documents(size, seed)   plain text, and conversations
    conversations(size, seed)        questions with answers: splits "train" and "val", and four held-out test splits

Both are pure functions of (size, seed). Which facts, names and wordings are held out depends on neither, so no training
set, whatever its seed, contains what the test of another one asks.
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
from .questions import followed_up, never_asked, new_wordings, trained
from .reading import about, passages, short_passages
from .smalltalk import repeated, talk
from .stories import plain_stories, story_talk
from .unknown import unanswerable

HELD_OUT_SPLITS = ("wording", "fact", "passage", "smalltalk")
VAL_SHARE = 0.03  # validation conversations, as a share of the training ones


@dataclass(frozen=True)
class Size:
    """How much of the almanac is generated."""

    name: str
    core_only: bool  # use only the core rows of the tables
    rows: int | None  # the most rows used of each table (rows that every size needs come on top); None: all
    pretrain_bytes: int
    conversations: int  # in the split "train"
    held_out: int  # conversations in each held-out split
    facts: float  # weight of facts in the split "train"; _TRAIN has the weights of the other skills


SIZES = {
    "smoke": Size("smoke", True, 2, 60_000, 300, 24, 30),
    "default": Size("default", True, None, 5_000_000, 50_000, 400, 30),
    "full": Size("full", False, None, 14_000_000, 200_000, 1_200, 55),
}
# Relative frequency of each skill in the split "train"; that of facts depends on the size
_TRAIN = {"reading": 30, "short": 5, "smalltalk": 25, "repeated": 4, "stories": 0.5, "unknown": 5.5}
# Percentage of the bytes of the pretraining corpus. The first three are plain text, the others conversations.
_PRETRAIN = {
    "statements": 17, "passages": 2, "stories": 4, "chat": 31, "reading": 39, "repeated": 5, "requested stories": 2,
}  # fmt: skip


def _size(name: str) -> Size:
    if name not in SIZES:
        raise unknown_name("size of the almanac", name, SIZES)
    return SIZES[name]


def _facts(size: Size) -> tuple[Fact, ...]:
    return select(size.core_only, size.rows)


def fact_count(size: str = "default") -> int:
    """How many different facts the pretraining text of this size states; both directions of a fact count as one."""
    return len({fact.group for fact in _facts(_size(size))})


def _reading(
    rng: random.Random, split: str, prefix: str, turns: Callable[[random.Random], int]
) -> Iterator[Conversation]:
    held_out = split == "passage"
    for number, passage in enumerate(passages(rng, held_out)):
        noise = 0.0 if held_out else 0.2
        yield about(passage, rng, turns(rng), split=split, conv_id=f"{prefix}/{passage.family}/{number}", noise=noise)


def _short_reading(rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Questions about short passages, nearly all of them answerable.

    With more unanswerable ones, a short training run learns to answer "I don't know." to everything.
    """
    for number, passage in enumerate(short_passages(rng)):
        yield about(
            passage, rng, rng.randint(2, 4), split="train", conv_id=f"{prefix}/{passage.family}/{number}", noise=0.2,
            unanswerable=0.03,
        )  # fmt: skip


def _after_others(
    source: Iterator[Conversation], others: Iterator[Conversation], rng: random.Random
) -> Iterator[Conversation]:
    """Conversations of `source`, one in six of them preceded by one to three of `others` as earlier turns.

    A model trained only on opening questions lets the earlier turns of a long chat distract it.
    """
    for conversation in source:
        if rng.random() < 1 / 6:
            before = islice(others, rng.choice((1, 2, 3)))
            turns = tuple(turn for each in (*before, conversation) for turn in each.turns)
            conversation = replace(conversation, turns=turns)
        yield conversation


def _skills(size: Size, rng: Callable[[str], random.Random], prefix: str) -> dict[str, Iterator[Conversation]]:
    facts = _facts(size)
    asked = trained(facts, rng("facts"), f"{prefix}/facts")
    follow = followed_up(facts, rng("follow"), f"{prefix}/follow")
    return {
        "facts": _mixed({asked: 92, follow: 8}, rng("mixed facts")),
        "reading": _reading(rng("reading"), "train", f"{prefix}/reading", lambda rng: rng.choice((2, 3, 4, 5, 6))),
        "short": _short_reading(rng("short"), f"{prefix}/short"),
        "smalltalk": talk(rng("smalltalk"), "train", f"{prefix}/smalltalk"),
        "repeated": repeated(
            (passage.text for passage in passages(rng("copied"))), rng("repeated"), f"{prefix}/repeated"
        ),
        "stories": story_talk(rng("stories"), "train", f"{prefix}/stories"),
        "unknown": unanswerable(rng("unknown"), "train", f"{prefix}/unknown"),
    }


def conversations(size: str = "default", seed: int = 0) -> Iterator[Conversation]:
    """Questions with answers, a pure function of (size, seed). The splits come in this order:

    - "train", shuffled;
    - "val", more of the same, for the validation loss: it selects the best weights, so it is not a test;
    - "wording", trained facts asked in new wordings; one in twelve is unanswerable (skill "unknown");
    - "fact", facts that pretraining states and no training question asks;
    - "passage", reading questions with new names and things;
    - "smalltalk", new wordings and arguments.

    Raises UserError for an unknown size.
    """
    chosen = _size(size)

    def rng(purpose: str) -> random.Random:
        return stream(size, seed, "conversations", purpose)

    facts, skills = _facts(chosen), _skills(chosen, rng, "train")
    before = _skills(chosen, lambda purpose: rng(f"before {purpose}"), "before")
    others = _mixed({before["facts"]: 40, before["smalltalk"]: 45, before["unknown"]: 15}, rng("others"))
    for name in ("facts", "smalltalk", "unknown"):
        skills[name] = _after_others(skills[name], others, rng(f"after others {name}"))
    weights = {"facts": chosen.facts, **_TRAIN}
    each = chosen.conversations / sum(weights.values())
    order = [name for name, weight in weights.items() for _ in range(int(each * weight))]
    rng("order").shuffle(order)
    validation = max(8, round(VAL_SHARE * len(order)))
    for number, name in enumerate(order + order[:validation]):
        conversation = next(skills[name])
        yield conversation if number < len(order) else replace(conversation, split="val")
    reworded = new_wordings(facts, rng("wording"), "wording/facts")
    unknown = unanswerable(rng("wording unknown"), "wording", "wording/unknown")
    for number in range(chosen.held_out * 12 // 11):
        yield next(unknown if number % 12 == 11 else reworded)
    yield from islice(never_asked(facts, rng("fact"), "fact/facts"), chosen.held_out)
    yield from islice(_reading(rng("passage"), "passage", "passage/reading", lambda rng: 1), chosen.held_out)
    yield from islice(talk(rng("held smalltalk"), "smalltalk", "smalltalk/smalltalk"), chosen.held_out)


def pretrain_documents(size: str = "default", seed: int = 0) -> Iterator[str | Conversation]:
    """The pretraining corpus, a pure function of (size, seed), of at least `Size.pretrain_bytes` bytes.

    About a quarter is plain text: statements of facts, passages and stories. The rest is conversations. Raises UserError
    for an unknown size.
    """
    chosen = _size(size)

    def rng(purpose: str) -> random.Random:
        return stream(size, seed, "pretrain", purpose)

    skills = _skills(chosen, rng, "pretrain")
    chat = _mixed({skills["facts"]: 66, skills["smalltalk"]: 26, skills["unknown"]: 8}, rng("talked"))
    long = _reading(rng("read"), "train", "pretrain/read", lambda rng: rng.randint(4, 8))
    sources: dict[str, Iterator[str | Conversation]] = {
        "statements": paragraphs(_facts(chosen), rng("told")),
        "passages": (passage.text for passage in passages(rng("passages"))),
        "stories": plain_stories(rng("plain stories")),
        "chat": _chains(chat, rng("chains")),
        "reading": _mixed({long: 60, skills["short"]: 40}, rng("mixed read")),
        "repeated": skills["repeated"],
        "requested stories": skills["stories"],
    }
    written = dict.fromkeys(sources, 0)
    while sum(written.values()) < chosen.pretrain_bytes:
        source = min(sources, key=lambda name: written[name] / _PRETRAIN[name])
        document = next(sources[source])
        written[source] += length(document)
        yield document


def length(document: str | Conversation) -> int:
    """The length of a document's text in bytes of UTF-8."""
    if isinstance(document, str):
        return len(document.encode())
    return sum(len(turn.text.encode()) for turn in document.turns) + len(document.context.encode())


def _mixed(sources: dict[Iterator[Conversation], int], rng: random.Random) -> Iterator[Conversation]:
    """Draw from several sources at random, in proportion to their weights."""
    while True:
        yield next(rng.choices(list(sources), list(sources.values()))[0])


def _chains(source: Iterator[Conversation], rng: random.Random) -> Iterator[Conversation]:
    """One to four conversations of `source` joined into one, which takes its skill, passage and answers from the last."""
    while True:
        found = list(islice(source, rng.choice((1, 1, 2, 3, 4))))
        yield replace(found[-1], turns=tuple(turn for each in found for turn in each.turns))
