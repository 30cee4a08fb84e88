"""Short children's stories: an opening, one of ten plots and an ending, each in many wordings."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..questions import Conversation
from .asking import augmented, single
from .grammar import Deck, Section, Values, section, sections, sentence
from .pools import draw_all

_CAST = "hero=heroes friend=friends trait=traits home=homes spot=spots day=days weather=weathers water=waters"
_SHE, _HE = ("princess", "witch", "girl", "hen", "cow"), ("king", "wizard", "boy", "knight", "giant")
_NO_PLOTS = ("request", "continue", "opening", "ending")


def story(plot: Section, rng: random.Random) -> tuple[str, Values]:
    """A random story with this plot, and the words that fill its placeholders."""
    values = draw_all(f"{_CAST} {plot.head}", rng, held_out=False)
    sex = "she" if values["hero"] in _SHE else "he" if values["hero"] in _HE else rng.choice(("she", "he"))
    values |= draw_all(f"who={sex} pal={rng.choice(('she', 'he'))}", rng, held_out=False)
    opening = rng.choice(section("stories", "opening")["-"])
    ending = rng.choice(section("stories", "ending")["-"])
    body = [rng.choice(text.split(" | ")) for _, text in plot.lines]
    return " ".join(sentence(each, values) for each in (opening, *body, ending)), values


def _tellings(rng: random.Random) -> Iterator[tuple[str, Values]]:
    plots = Deck([each for each in sections("stories") if each.name not in _NO_PLOTS], rng)
    while True:
        yield story(plots.draw(), rng)


def plain_stories(rng: random.Random) -> Iterator[str]:
    """Endless stories as plain text."""
    return (text for text, _ in _tellings(rng))


def story_talk(rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    """Endless requests for a story ("Tell me a story about a fox."); one in five gives the beginning to be continued."""
    for number, (text, values) in enumerate(_tellings(rng)):
        begun = rng.random() < 0.2
        if begun:
            start, text = cut(text, rng)
            values = {**values, "start": start}
        request = sentence(rng.choice(section("stories", "continue" if begun else "request")["-"]), values)
        question = request if begun else augmented(request, rng, values["hero"])
        yield single(question, (text,), skill="stories", split=split, conv_id=f"{prefix}/{number}")


def cut(text: str, rng: random.Random) -> tuple[str, str]:
    """Split after two to four sentences, so that at least one is left: (beginning, rest)."""
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z][a-z]+ )", text)
    at = min(rng.randint(2, 4), len(sentences) - 1)
    return " ".join(sentences[:at]), " ".join(sentences[at:])
