"""Words for passages and stories: word lists ("pools"), and invented names that cannot be memorized, only read.

Pools marked "split" are divided: words of held-out passages never occur in training passages.
"""

from __future__ import annotations

import random
import zlib
from functools import cache

from .grammar import fill, number_word, section, sections, words

_PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
_NAMES = {"she": "girls", "he": "boys"}
_MONEY = ("dollars", "euros", "pounds", "coins", "cents", "crowns")


# Training passages sometimes contain invented words ("a tavel", as in Berko's "wug" test of 1958): out of forty foods the
# model could guess what somebody ate, out of endlessly many it has to read. Held-out passages contain only real words.
# An invented word is put into one of these frames, so that it fits grammatically and multi-word spans vary as well.
_MADE_UP = {
    "things": ("%s",), "foods": ("%ss",), "places": ("%s", "%s", "old %s", "%s tower", "%s yard"), "pets": ("%s",),
    "livestock": ("%ss",), "petnames": ("%s",), "dishes": ("%s", "%s stew", "boiled %ss", "%s bread"), "jobs": ("%s",),
    "sports": ("%s", "%sing"), "instruments": ("%s",), "ships": ("%s",), "subjects": ("%s",), "vehicles": ("%s",),
    "materials": ("%s",), "hobbies": ("%sing", "playing the %s", "making %ss", "collecting %ss", "looking after %ss"),
    "spots": ("near the %s", "behind the %s", "under the %s", "beside the %s", "inside the %s", "on the %s"),
    "reasons": ("the %s was closed", "the %s was too loud", "there was no %s left", "the %s fell down"),
    "feelings": ("{he} lost the %s", "{he} was afraid of the %s", "{he} missed the %s", "{he} had the %s to mend"),
    "aims": ("{he} wanted to see the %s", "{he} needed a new %s", "{he} likes old %ss", "{he} had won the %s"),
}  # fmt: skip
_CAPITALISED = ("petnames", "ships")
MADE_UP = 0.35  # share of invented words among those drawn from the pools of _MADE_UP


@cache
def pool(name: str, held_out: bool = False) -> tuple[str, ...]:
    """The words of section `name` in pools.txt. A "split" section has a training part and a held-out part."""
    found = words("pools", name)
    if section("pools", name).head != "split":
        return found
    return tuple(word for at, word in enumerate(found) if (at % 5 == 4) == held_out)


@cache
def _listed() -> frozenset[str]:
    return frozenset(word for each in sections("pools") for half in (False, True) for word in pool(each.name, half))


def composed(rng: random.Random, held_out: bool, suffixes: tuple[str, ...] = ("",)) -> str:
    """An invented name of one to three syllables, such as "Taldovin"; a checksum decides which names are held out."""
    syllables = pool("syllables")
    while True:
        count = rng.choice((2, 2, 3) if suffixes == ("",) else (1, 2))
        if not held_out and rng.random() < 0.4:
            stem = _sound(rng) + (rng.choice(syllables) if rng.random() < 0.4 else "")
        else:
            stem = "".join(rng.choice(syllables) for _ in range(count))
        name = (stem + rng.choice(suffixes)).capitalize()
        if len(name) > 3 and name not in _listed() and (zlib.crc32(name.encode()) % 5 == 0) == held_out:
            return name


def _sound(rng: random.Random) -> str:
    """One of about ten thousand possible syllables, such as "strook".

    The few of `[syllables]` do not suffice for training: a model that has copied only those cannot copy other names.
    """
    return "".join(rng.choice(pool(part)) for part in ("onsets", "vowels", "codas"))


def town(rng: random.Random, held_out: bool) -> str:
    """An invented name of a town."""
    return composed(rng, held_out, ("",) if rng.random() < 0.3 else pool("towns"))


def person(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A first name, real or invented, and the pronoun that goes with it."""
    if rng.random() < 0.6:
        name = composed(rng, held_out)
        return name, "she" if name[-1] in "aei" else "he"
    pronoun = rng.choice(("he", "she"))
    return rng.choice(pool("girls" if pronoun == "she" else "boys", held_out)), pronoun


def number(rng: random.Random, low: int, high: int) -> str:
    """A random number from `low` to `high`, mostly in words."""
    value = rng.randint(low, high)
    return str(value) if rng.random() < 0.3 else number_word(value)


def draw(kind: str, rng: random.Random, held_out: bool = False) -> dict[str, str]:
    """A random word of the pool `kind`, under the key "".

    For people, their pronouns are under the keys ".he", ".his", ".him", ".He" and ".His".
    """
    if kind in ("person", "she", "he"):
        name, pronoun = person(rng, held_out) if kind == "person" else (rng.choice(pool(_NAMES[kind])), kind)
        he, his, him = _PRONOUNS[pronoun]
        return {"": name, ".he": he, ".his": his, ".him": him, ".He": he.capitalize(), ".His": his.capitalize()}
    if kind == "towns":
        return {"": town(rng, held_out)}
    if kind == "surname":
        return {"": f"{rng.choice(('Mr', 'Mrs', 'Miss', 'Mr'))} {composed(rng, held_out)}"}
    if kind == "count":
        return {"": number(rng, 2, 40) if rng.random() < 0.3 else number(rng, 2, 12)}
    if kind == "age":
        return {"": number(rng, 4, 12)}
    if kind == "year":
        return {"": str(rng.randint(1500, 1999))}
    if kind == "price":
        return {"": f"{number(rng, 2, 20)} {rng.choice(_MONEY)}"}
    word = rng.choice(pool(kind, held_out))
    if not held_out and kind in _MADE_UP and rng.random() < MADE_UP:
        word = composed(rng, held_out)
        word = rng.choice(_MADE_UP[kind]) % (word if kind in _CAPITALISED else word.lower())
    if kind == "places":
        word = f"the {word}"
    elif kind == "clocks":
        word += " o'clock"
    return {"": word}


def draw_all(slots: str, rng: random.Random, held_out: bool) -> dict[str, str]:
    """Values for slots such as "who=person thing=things aim=aims:who": one draw for each, no word twice.

    The pronouns in a slot's words refer to the slot named after the colon.
    """
    values: dict[str, str] = {}
    for slot in slots.split():
        key, _, kind = slot.partition("=")
        kind, _, owner = kind.partition(":")
        if kind == "relatives":
            kind, owner = f"{values[f'{owner}.he']}_relatives", ""
        taken = set(values.values())
        while (found := draw(kind, rng, held_out))[""] in taken:
            pass
        if owner:
            found[""] = fill(found[""], {word: values[f"{owner}.{word}"] for word in ("he", "his", "him")})
        values |= {key + part: word for part, word in found.items()}
    return values
