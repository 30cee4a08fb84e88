"""Words for the gaps of passages and stories: lists, and names made of syllables so that they must be read, not known.

Each pool is split: what is drawn for held-out passages is never drawn for training ones.
"""

from __future__ import annotations

import random
import zlib
from functools import cache

from .grammar import fill, number_word, section, sections, words

_PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
_NAMES = {"she": "girls", "he": "boys"}
_MONEY = ("dollars", "euros", "pounds", "coins", "cents", "crowns")


# Training passages now and then name a thing by a word that nobody knows ("a tavel", as in Berko's "wug" test of 1958):
# with forty foods one can guess what somebody ate, with endless ones one must read. Held-out passages only have real
# words. The word stands in one of these frames, so that it fits its gap and spans of several words are endless too.
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
MADE_UP = 0.35  # share of the words of those pools


@cache
def pool(name: str, held_out: bool = False) -> tuple[str, ...]:
    """The words of `[name]` in pools.txt: the training part, or the part kept for held-out passages."""
    found = words("pools", name)
    if section("pools", name).head != "split":
        return found
    return tuple(word for at, word in enumerate(found) if (at % 5 == 4) == held_out)


@cache
def _listed() -> frozenset[str]:
    return frozenset(word for each in sections("pools") for half in (False, True) for word in pool(each.name, half))


def composed(rng: random.Random, held_out: bool, suffixes: tuple[str, ...] = ("",)) -> str:
    """A name made of one to three syllables, "Taldovin"; a checksum says which names are held out."""
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
    """One of some ten thousand syllables ("strook"). The readable ones of `[syllables]` are too few for training: who has
    only ever copied them does not copy "Heidi"."""
    return "".join(rng.choice(pool(part)) for part in ("onsets", "vowels", "codas"))


def town(rng: random.Random, held_out: bool) -> str:
    """The name of a town that is on no map."""
    return composed(rng, held_out, ("",) if rng.random() < 0.3 else pool("towns"))


def person(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A first name and its pronoun: a known name or a composed one."""
    if rng.random() < 0.6:
        name = composed(rng, held_out)
        return name, "she" if name[-1] in "aei" else "he"
    pronoun = rng.choice(("he", "she"))
    return rng.choice(pool("girls" if pronoun == "she" else "boys", held_out)), pronoun


def number(rng: random.Random, low: int, high: int) -> str:
    """A number, mostly in words."""
    value = rng.randint(low, high)
    return str(value) if rng.random() < 0.3 else number_word(value)


def draw(kind: str, rng: random.Random, held_out: bool = False) -> dict[str, str]:
    """A word of the pool `kind`, under "", and for people their pronouns under ".he", ".his", ".him", ".He", ".His"."""
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
    """Values for "who=person thing=things aim=aims:who": one draw for each slot, no word twice."""
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
