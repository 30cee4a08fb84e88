"""Reading: short passages about people who do not exist, and questions answered by a span of them, word for word.

What a passage leaves out is asked as well, with "I don't know." as the answer (the form of SQuAD v2:
Rajpurkar, Jia and Liang 2018, "Know What You Don't Know").
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from ..questions import IDK, Conversation, Turn
from .asking import dressed, exchange
from .grammar import Deck, Section, Values, fill, gaps, section, sections, sentence, uncapitalised
from .pools import draw, draw_all

UNANSWERABLE = 0.2  # share of questions that the passage does not answer
_TELL_OPTIONAL = 0.8
_PORTRAITS = 5  # as often as so many families
_STRANGERS = 0.3  # share of the family passages that also tell of somebody else
_NOBODY = 0.2  # share of the passages after which somebody is asked about who does not occur in them
_HARMLESS = (
    "job",
    "age",
    "town",
    "food",
    "colour",
    "instrument",
    "sport",
    "subject",
)  # traits no family asks for at large

Trait = tuple[Section, Values]  # a trait, and of whom ("who") it is told what ("x")


@dataclass(frozen=True)
class Passage:
    """A passage with the questions it answers, as (question, span), and those it does not."""

    family: str
    text: str
    answerable: tuple[tuple[str, str], ...]
    unanswerable: tuple[str, ...]


@cache
def _slots(template: str) -> frozenset[str]:
    return frozenset(key for key in gaps(template) if "." not in key)


@cache
def _named(template: str) -> frozenset[str]:
    return frozenset(key.partition(".")[0] for key in gaps(template))


def family_passage(family: Section, rng: random.Random, held_out: bool) -> Passage:
    """A new passage of `family`; one wording is drawn for each question."""
    values = draw_all(family.head, rng, held_out)
    told: list[str] = []
    before = True
    for tag, text in family.lines:
        optional = tag == "O" or (tag == "C" and before)
        before = tag == "P" or (optional and (len(told) < 2 or rng.random() < _TELL_OPTIONAL))
        if before:
            told.append(rng.choice(text.split(" | ")))
    known = set().union(*map(_slots, told))
    answerable, unanswerable = [], []
    for tag, text in family.lines:
        if tag in "POC":
            continue
        fitting = [each for each in text.split(" | ") if _named(each) <= known]
        if not fitting:
            continue
        question = sentence(rng.choice(fitting), values)
        if tag in known:
            answerable.append((question, values[tag]))
        else:
            unanswerable.append(question)
    sentences = [sentence(each, values) for each in told]
    if (roll := rng.random()) < 0.4:
        place = ("before", "after")[roll < 0.2]
        sentences.insert(0 if place == "before" else len(sentences), rng.choice(section("fillers", place)["-"]))
    return Passage(family.name, " ".join(sentences), tuple(answerable), tuple(unanswerable))


def _person(slot: str, values: Values) -> Values:
    """The person of `slot`, as "who"."""
    return {f"who{key[len(slot) :]}": word for key, word in values.items() if key.partition(".")[0] == slot}


def _draw_trait(trait: Section, who: Values, rng: random.Random, held_out: bool, used: set[str]) -> Trait:
    while (x := draw(trait.head, rng, held_out)[""]) in used:
        pass
    used.add(x)
    return trait, {**who, "x": x}


def _trait_sentences(told: list[Trait], rng: random.Random) -> list[str]:
    """One sentence for each; "he" or "she" now and then where the sentence before was about the same person."""
    text, before = [], ""
    for trait, values in told:
        template = rng.choice(trait["P"])
        if values["who"] == before and rng.random() < 0.6:
            template = rng.choice([each for each in trait["P"] if each.startswith("{who}")] or [template])
            template = re.sub(r"^\{who\}", "{who.He}", template)
        text.append(sentence(template, values))
        before = values["who"]
    return text


def _trait_questions(told: list[Trait], rng: random.Random) -> list[tuple[str, str]]:
    asked = [(sentence(rng.choice(trait["Q"]), values), values["x"]) for trait, values in told]
    return asked + [(sentence(rng.choice(trait["R"]), values), values["who"]) for trait, values in told]


def portrait_passage(rng: random.Random, held_out: bool) -> Passage:
    """Two or three people with one to three traits each. Some traits are told of one person and asked of another."""
    traits = rng.sample(sections("portraits"), rng.choice((3, 4)))
    slots = ("a", "b", "c")[: rng.choice((2, 2, 3))]
    people = draw_all(" ".join(f"{slot}=person" for slot in slots), rng, held_out)
    told: list[Trait] = []
    unanswerable, used = [], set(people.values())
    for slot in slots:
        who = _person(slot, people)
        has = rng.sample(traits, rng.choice((2, 2, 3) if len(slots) == 2 else (1, 2, 2)))
        told += [_draw_trait(trait, who, rng, held_out, used) for trait in has]
        unanswerable += [sentence(rng.choice(trait["Q"]), who) for trait in traits if trait not in has]
    if rng.random() < 0.5:
        rng.shuffle(told)
    text = " ".join(_trait_sentences(told, rng))
    return Passage("portraits", text, tuple(_trait_questions(told, rng)), tuple(unanswerable))


def short_passage(rng: random.Random) -> Passage:
    """One or two people with one trait each: hardly more than one place to look for an answer."""
    traits = rng.sample(sections("portraits"), 2)
    slots = ("a", "b")[: rng.choice((1, 2))]
    people = draw_all(" ".join(f"{slot}=person" for slot in slots), rng, False)
    used = set(people.values())
    told = [_draw_trait(rng.choice(traits), _person(slot, people), rng, False, used) for slot in slots]
    return Passage("short", " ".join(_trait_sentences(told, rng)), tuple(_trait_questions(told, rng)), ())


def short_passages(rng: random.Random) -> Iterator[Passage]:
    """Short passages without end: a model finds out from them that answers stand in the text, long before it finds any
    in passages of eight sentences."""
    while True:
        yield short_passage(rng)


def with_stranger(read: Passage, rng: random.Random, held_out: bool) -> Passage:
    """`read` with two sentences about somebody else before or after it, and the questions they answer."""
    while (people := draw_all("a=person", rng, held_out))["a"] in read.text:
        pass
    used = set(re.findall(r"\w+", read.text))
    traits = rng.sample([each for each in sections("portraits") if each.name in _HARMLESS], 2)
    told = [_draw_trait(trait, _person("a", people), rng, held_out, used) for trait in traits]
    text = [read.text, " ".join(_trait_sentences(told, rng))]
    rng.shuffle(text)
    return replace(read, text=" ".join(text), answerable=(*read.answerable, *_trait_questions(told, rng)))


def about_nobody(read: Passage, rng: random.Random, held_out: bool) -> str:
    """A question about a person who does not occur in the passage."""
    trait = rng.choice(sections("portraits"))
    while (who := draw("person", rng, held_out)[""]) in read.text:
        pass
    return sentence(rng.choice(trait["Q"]), {"who": who})


def span(text: str, words: str) -> str:
    """`words` as they stand in `text` (a sentence may have given them a capital)."""
    at = text.find(words)
    if at < 0:
        at = text.casefold().find(words.casefold())
    return text[at : at + len(words)]


def passages(rng: random.Random, held_out: bool = False) -> Iterator[Passage]:
    """Passages without end, every family equally often."""
    families = Deck((*sections("reading"), *[None] * _PORTRAITS), rng)
    while True:
        family = families.draw()
        read = family_passage(family, rng, held_out) if family else portrait_passage(rng, held_out)
        if family and rng.random() < _STRANGERS:
            read = with_stranger(read, rng, held_out)
        if rng.random() < _NOBODY:
            read = replace(read, unanswerable=(*read.unanswerable, about_nobody(read, rng, held_out)))
        yield read


def about(
    read: Passage,
    rng: random.Random,
    turns: int,
    *,
    split: str,
    id: str,
    noise: float = 0.25,
    unanswerable: float = UNANSWERABLE,
) -> Conversation:
    """A conversation of up to `turns` different questions about one passage, a share of which it does not answer."""
    known, open_ = list(read.answerable), list(read.unanswerable)
    rng.shuffle(known)
    rng.shuffle(open_)
    said: list[Turn] = []
    answers: tuple[str, ...] = ()
    for _ in range(min(turns, len(known))):
        if open_ and rng.random() < unanswerable:
            question, answers = open_.pop(), (IDK,)
        else:
            question, words = known.pop()
            found = span(read.text, words)
            answers = (f"{found}.", found)
        if (roll := rng.random()) < noise / 4:
            lead = rng.choice(section("fillers", "lead")["-"])
            question = fill(lead, {"question": uncapitalised(question) if ", {" in lead else question})
        elif roll < noise:
            question = dressed(question, rng, keep=read.text)
        said += exchange(question, answers[0])
    return Conversation(tuple(said), read.text, answers, "reading", split, id)
