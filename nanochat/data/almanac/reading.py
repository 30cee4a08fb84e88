"""Reading comprehension: short passages about invented people, and questions answered by a span of the passage.

As in SQuAD 2.0 (Rajpurkar, Jia and Liang 2018, "Know What You Don't Know"), some questions have no answer in the passage;
the right answer to these is "I don't know.".

A family is a section of reading.txt, with the templates of passages of one kind. A portrait is a passage about several
people and their traits, from portraits.txt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from ..questions import IDK, Conversation, Turn
from .asking import augmented, exchange
from .grammar import Deck, Section, Values, fill, gaps, section, sections, sentence, uncapitalized
from .pools import draw, draw_all

UNANSWERABLE = 0.2  # share of questions that the passage does not answer
_KEEP_OPTIONAL = 0.8  # probability that an optional sentence is in the passage
_PORTRAITS = 5  # portraits are as frequent as this many families together
_OTHER_PERSON = 0.3  # share of the family passages with sentences about another person
_ABSENT_PERSON = 0.2  # share of the passages with a question about a person who does not occur in them
_HARMLESS = (
    "job",
    "age",
    "town",
    "food",
    "colour",
    "instrument",
    "sport",
    "subject",
)  # traits that no family asks about without naming the person

Trait = tuple[Section, Values]  # a trait, and whose it is ("who") with its value ("x")


@dataclass(frozen=True)
class Passage:
    """A passage with the questions that it answers, as (question, answer span), and those that it does not."""

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
    """A random passage from the templates of `family`, with one wording of each question."""
    values = draw_all(family.head, rng, held_out)
    stated: list[str] = []
    before = True
    for tag, text in family.lines:
        optional = tag == "O" or (tag == "C" and before)
        before = tag == "P" or (optional and (len(stated) < 2 or rng.random() < _KEEP_OPTIONAL))
        if before:
            stated.append(rng.choice(text.split(" | ")))
    known = set().union(*map(_slots, stated))
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
    sentences = [sentence(each, values) for each in stated]
    if (roll := rng.random()) < 0.4:
        place = ("before", "after")[roll < 0.2]
        sentences.insert(0 if place == "before" else len(sentences), rng.choice(section("fillers", place)["-"]))
    return Passage(family.name, " ".join(sentences), tuple(answerable), tuple(unanswerable))


def _person(slot: str, values: Values) -> Values:
    """The values of the person in `slot`, under the name "who"."""
    return {f"who{key[len(slot) :]}": word for key, word in values.items() if key.partition(".")[0] == slot}


def _draw_trait(trait: Section, who: Values, rng: random.Random, held_out: bool, used: set[str]) -> Trait:
    while (x := draw(trait.head, rng, held_out)[""]) in used:
        pass
    used.add(x)
    return trait, {**who, "x": x}


def _trait_sentences(stated: list[Trait], rng: random.Random) -> list[str]:
    """One sentence for each trait; sometimes with "he" or "she" if the previous sentence is about the same person."""
    text, before = [], ""
    for trait, values in stated:
        template = rng.choice(trait["P"])
        if values["who"] == before and rng.random() < 0.6:
            template = rng.choice([each for each in trait["P"] if each.startswith("{who}")] or [template])
            template = re.sub(r"^\{who\}", "{who.He}", template)
        text.append(sentence(template, values))
        before = values["who"]
    return text


def _trait_questions(stated: list[Trait], rng: random.Random) -> list[tuple[str, str]]:
    asked = [(sentence(rng.choice(trait["Q"]), values), values["x"]) for trait, values in stated]
    return asked + [(sentence(rng.choice(trait["R"]), values), values["who"]) for trait, values in stated]


def portrait_passage(rng: random.Random, held_out: bool) -> Passage:
    """A passage about two or three people with one to three traits each.

    The unanswerable questions ask for a trait that the passage states of other people only, or of nobody.
    """
    traits = rng.sample(sections("portraits"), rng.choice((3, 4)))
    slots = ("a", "b", "c")[: rng.choice((2, 2, 3))]
    people = draw_all(" ".join(f"{slot}=person" for slot in slots), rng, held_out)
    stated: list[Trait] = []
    unanswerable, used = [], set(people.values())
    for slot in slots:
        who = _person(slot, people)
        has = rng.sample(traits, rng.choice((2, 2, 3) if len(slots) == 2 else (1, 2, 2)))
        stated += [_draw_trait(trait, who, rng, held_out, used) for trait in has]
        unanswerable += [sentence(rng.choice(trait["Q"]), who) for trait in traits if trait not in has]
    if rng.random() < 0.5:
        rng.shuffle(stated)
    text = " ".join(_trait_sentences(stated, rng))
    return Passage("portraits", text, tuple(_trait_questions(stated, rng)), tuple(unanswerable))


def short_passage(rng: random.Random) -> Passage:
    """A passage about one or two people with one trait each."""
    traits = rng.sample(sections("portraits"), 2)
    slots = ("a", "b")[: rng.choice((1, 2))]
    people = draw_all(" ".join(f"{slot}=person" for slot in slots), rng, False)
    used = set(people.values())
    stated = [_draw_trait(rng.choice(traits), _person(slot, people), rng, False, used) for slot in slots]
    return Passage("short", " ".join(_trait_sentences(stated, rng)), tuple(_trait_questions(stated, rng)), ())


def short_passages(rng: random.Random) -> Iterator[Passage]:
    """Endless short passages. A model learns from these first that answers are spans of the passage."""
    while True:
        yield short_passage(rng)


def with_other_person(passage: Passage, rng: random.Random, held_out: bool) -> Passage:
    """`passage` with two sentences about another person before or after it, and the questions they answer."""
    while (people := draw_all("a=person", rng, held_out))["a"] in passage.text:
        pass
    used = set(re.findall(r"\w+", passage.text))
    traits = rng.sample([each for each in sections("portraits") if each.name in _HARMLESS], 2)
    stated = [_draw_trait(trait, _person("a", people), rng, held_out, used) for trait in traits]
    text = [passage.text, " ".join(_trait_sentences(stated, rng))]
    rng.shuffle(text)
    return replace(passage, text=" ".join(text), answerable=(*passage.answerable, *_trait_questions(stated, rng)))


def absent_person_question(passage: Passage, rng: random.Random, held_out: bool) -> str:
    """A question about a person who does not occur in the passage."""
    trait = rng.choice(sections("portraits"))
    while (who := draw("person", rng, held_out)[""]) in passage.text:
        pass
    return sentence(rng.choice(trait["Q"]), {"who": who})


def span(text: str, words: str) -> str:
    """`words` as they appear in `text`, where a sentence may have capitalized them."""
    at = text.find(words)
    if at < 0:
        at = text.casefold().find(words.casefold())
    return text[at : at + len(words)]


def passages(rng: random.Random, held_out: bool = False) -> Iterator[Passage]:
    """Endless passages, every family equally often."""
    families = Deck((*sections("reading"), *[None] * _PORTRAITS), rng)
    while True:
        family = families.draw()
        passage = family_passage(family, rng, held_out) if family else portrait_passage(rng, held_out)
        if family and rng.random() < _OTHER_PERSON:
            passage = with_other_person(passage, rng, held_out)
        if rng.random() < _ABSENT_PERSON:
            passage = replace(
                passage, unanswerable=(*passage.unanswerable, absent_person_question(passage, rng, held_out))
            )
        yield passage


def about(
    passage: Passage,
    rng: random.Random,
    turns: int,
    *,
    split: str,
    conv_id: str,
    noise: float = 0.25,
    unanswerable: float = UNANSWERABLE,
) -> Conversation:
    """A conversation of up to `turns` different questions about one passage.

    `unanswerable` is the share of questions that the passage does not answer, `noise` the share that is augmented.
    """
    known, open_ = list(passage.answerable), list(passage.unanswerable)
    rng.shuffle(known)
    rng.shuffle(open_)
    said: list[Turn] = []
    answers: tuple[str, ...] = ()
    for _ in range(min(turns, len(known))):
        if open_ and rng.random() < unanswerable:
            question, answers = open_.pop(), (IDK,)
        else:
            question, words = known.pop()
            found = span(passage.text, words)
            answers = (f"{found}.", found)
        if (roll := rng.random()) < noise / 4:
            lead = rng.choice(section("fillers", "lead")["-"])
            question = fill(lead, {"question": uncapitalized(question) if ", {" in lead else question})
        elif roll < noise:
            question = augmented(question, rng, keep=passage.text)
        said += exchange(question, answers[0])
    return Conversation(tuple(said), passage.text, answers, "reading", split, conv_id)
