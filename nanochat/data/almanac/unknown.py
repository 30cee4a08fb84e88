"""Unanswerable questions: about current events, private people, and things that do not exist.

Invented countries, books, animals and people are asked about in the same wordings as real ones, so that only the
unfamiliar name shows that the question has no answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache

from ..questions import IDK, Conversation
from .asking import augmented, single
from .facts import Fact, rows
from .grammar import Values, normalized, section, sentence
from .pools import composed, draw, pool
from .tables import table

_ANSWERS = (IDK, "I do not know.", "I don't know")


def _country(rng: random.Random, held_out: bool) -> Values:
    return {"name": composed(rng, held_out, ("nia", "land", "stan", "via", "ria", "dor", "vania")), "the": ""}


def _city(rng: random.Random, held_out: bool) -> Values:
    return {"capital": composed(rng, held_out, pool("towns"))}


def _element(rng: random.Random, held_out: bool) -> Values:
    return {"name": composed(rng, held_out, ("ium", "dium", "tium", "gen", "lon")).lower()}


def _animal(rng: random.Random, held_out: bool) -> Values:
    name = composed(rng, held_out, ("bit", "fish", "mox", "dle", "wump", "zel", "gorp")).lower()
    ending = "" if name.endswith("fish") else "es" if name.endswith("x") else "s"
    return {"name": name, "plural": name + ending}


def _person(rng: random.Random, held_out: bool) -> Values:
    last = composed(rng, held_out, ("son", "man", "ski", "berg", "etti", "ov", ""))
    name = f"{composed(rng, held_out)} {last}"
    who = dict.fromkeys(("name", "author", "person"), name)
    return {**who, "last": last, "pronoun": rng.choice(("he", "she")), "verb": "invented"}


def _book(rng: random.Random, held_out: bool) -> Values:
    colour, thing = rng.choice(pool("colours")).capitalize(), rng.choice(pool("things", held_out)).capitalize()
    title = rng.choice(("The {c} {t} of {n}", "The {t} of {n}", "{n}", "The {t} and the {u}", "The {c} {t}"))
    other = rng.choice(pool("things", held_out)).capitalize()
    name = title.format(c=colour, t=thing, u=other, n=composed(rng, held_out))
    return {"title": name, "kind": rng.choice(("novel", "book", "story"))}


def _machine(rng: random.Random, held_out: bool) -> Values:
    return {
        "thing": f"the {composed(rng, held_out).lower()} {rng.choice(('machine', 'engine', 'lamp', 'law', 'wheel'))}",
        "verb": "invented",
    }


_INVENTED: dict[str, Callable[[random.Random, bool], Values]] = {
    "capital": _country,
    "continent": _country,
    "language": _country,
    "currency": _country,
    "country_of": _city,
    "symbol": _element,
    "atomic_number": _element,
    "author": _book,
    "book_of": _person,
    "sound": _animal,
    "young": _animal,
    "kind": _animal,
    "legs": _animal,
    "inventor": _machine,
    "profession": _person,
    "known_for": _person,
    "invention_of": _person,
}


def _made_up(rng: random.Random, held_out: bool) -> tuple[str, str]:
    name = rng.choice(("capital", "author", *_INVENTED))
    values = _INVENTED[name](rng, held_out)
    fact = Fact(section("facts", name), values, (), "", "", True)
    question = rng.choice(fact.test_questions()) if held_out else fact.question(rng)
    return question, " ".join(values.values())


def _listed(rng: random.Random, held_out: bool) -> tuple[str, str]:
    while True:
        question = rng.choice(table("unknown"))["question"]
        if question.startswith("Who is the president"):
            if not held_out:
                return question, ""
        elif (zlib.crc32(question.encode()) % 6 == 0) == held_out:
            return question, ""


def _changing(rng: random.Random, held_out: bool) -> tuple[str, str]:
    tag = "T" if held_out else "Q"
    name = rng.choice(("president", "president", "leader", "leader", "future"))
    values: dict[str, str] = {"verb": rng.choice(("rain", "snow", "be warm", "be cold"))}
    values |= rng.choice([row for row in rows("countries") if row["capital"]]) if name == "leader" else {}
    values |= {f"who{part}": word for part, word in draw("person", rng, held_out).items()}
    values.setdefault("the", "")
    return sentence(rng.choice(section("unknown", name)[tag]), values), values["who"] + values.get("name", "")


@cache
def _reserved() -> frozenset[str]:
    """The questions, normalized, about who leads a country that only the test may ask."""
    wordings = [each for name in ("president", "leader") for each in section("unknown", name)["T"]]
    return frozenset(
        normalized(sentence(each, row)) for row in rows("countries") if row["capital"] for each in wordings
    )


def unanswerable(rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    """Endless questions whose right answer is "I don't know."; held-out splits have names and wordings of their own."""
    held_out = split != "train"
    number = 0
    while True:
        make = rng.choice((_made_up, _made_up, _listed, _changing))
        question, keep = make(rng, held_out)
        if not held_out:
            original, question = question, augmented(question, rng, keep)
            if normalized(question) in _reserved():  # the augmentation made it a held-out wording
                question = original
        yield single(question, _ANSWERS, skill="unknown", split=split, conv_id=f"{prefix}/{make.__name__[1:]}/{number}")
        number += 1
