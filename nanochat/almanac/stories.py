"""Short stories for children: an opening, one of ten plots, an ending, in many wordings."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ..qa import Conversation
from .asking import dressed, single
from .grammar import Deck, Section, Values, section, sections, sentence
from .pools import draw_all

_CAST = "hero=heroes friend=friends trait=traits home=homes spot=spots day=days weather=weathers water=waters"
_SHE, _HE = ("princess", "witch", "girl", "hen", "cow"), ("king", "wizard", "boy", "knight", "giant")
_REQUESTS = (
    "Tell me a story about {a hero}.",
    "Tell me a story about {a hero}!",
    "Can you tell me a story about {a hero}?",
    "Please tell me a story about {a hero}.",
    "I want to hear a story about {a hero}.",
    "A story about {a hero}, please.",
    "Write a story about {a hero}.",
    "Do you know a story about {a hero}?",
    "Tell a short story about {a hero}.",
    "Story about {a hero}",
)
_ANY = (
    "Tell me a story.",
    "Tell me a story!",
    "Can you tell me a story?",
    "I want to hear a story.",
    "A story, please.",
)


def story(plot: Section, rng: random.Random) -> tuple[str, Values]:
    """One telling of `plot`, and what it is about."""
    values = draw_all(f"{_CAST} {plot.head}", rng, held_out=False)
    sex = "she" if values["hero"] in _SHE else "he" if values["hero"] in _HE else rng.choice(("she", "he"))
    values |= draw_all(f"who={sex} pal={rng.choice(('she', 'he'))}", rng, held_out=False)
    opening = rng.choice(section("stories", "opening")["-"])
    ending = rng.choice(section("stories", "ending")["-"])
    body = [rng.choice(text.split(" | ")) for _, text in plot.lines]
    return " ".join(sentence(each, values) for each in (opening, *body, ending)), values


def _tellings(rng: random.Random) -> Iterator[tuple[str, Values]]:
    plots = Deck([each for each in sections("stories") if each.name not in ("opening", "ending")], rng)
    while True:
        yield story(plots.draw(), rng)


def plain_stories(rng: random.Random) -> Iterator[str]:
    """Stories without end."""
    return (text for text, _ in _tellings(rng))


def story_talk(rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    """`Tell me a story about a fox.` and the like, without end."""
    for number, (text, values) in enumerate(_tellings(rng)):
        request = rng.choice(_ANY) if rng.random() < 0.15 else sentence(rng.choice(_REQUESTS), values)
        question = dressed(request, rng, values["hero"])
        yield single(question, (text,), skill="stories", split=split, id=f"{prefix}/{number}")
