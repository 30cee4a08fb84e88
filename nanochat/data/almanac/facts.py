"""Facts from the tables: the statements, questions and answers that are made of each.

A `Fact` is one relation of one table row, such as a country and its capital. The two directions of a fact ("The capital
of France is …", "Paris is the capital of …") share a `group`. Whole groups are held out, chosen by a checksum of the
group's name, so the same facts are held out whatever the size and the seed.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .grammar import Deck, Section, Values, fill, gaps, section, sections, sentence
from .numbers import COMPUTED, computed
from .tables import table

HELD_OUT_PERCENT = 8  # of the groups: stated in pretraining, asked only in the test
SINGLES = ("space", "body", "units", "shapes", "colours", "calendar", "geography", "food", "general")
ALWAYS = ("France", "1984", "planet_count", "light_speed")  # in every size, and never held out
_PEOPLE = (("people", "name"), ("books", "author"), ("inventions", "person"))
# The surname as it is used alone: da Vinci and van Gogh, but Beethoven
_SURNAME = re.compile(r"(?!the |.* (?:the|of|and) ).+? ((?:(?:da|di|du|Le|van(?= Gogh)) )*[A-Z][^ ]*[a-z])")
_QUOTES = ("'", '"', "'", '"', "")
_NOUN_FRAMES = (
    "What is {}?",
    "What's {}?",
    "Whats {}?",
    "Tell me {}.",
    "Please tell me {}.",
    "Can you tell me {}?",
    "Could you tell me {}?",
    "Do you know {}?",
    "I want to know {}.",
    "Name {}.",
    "Give me {}.",
    "{}?",
    "{}",
)
_CLAUSE_FRAMES = (
    "Can you tell me {}?",
    "Could you tell me {}?",
    "Please tell me {}.",
    "Tell me {}.",
    "Do you know {}?",
    "I want to know {}.",
    "I wonder {}.",
)


@dataclass(frozen=True, eq=False)
class Fact:
    """One relation of one row: how it is stated, asked and answered."""

    relation: Section
    values: Values
    keys: tuple[str, ...]
    value: str
    group: str
    askable: bool  # False if the question would have more than one right answer

    @property
    def answers(self) -> tuple[str, str]:
        """The accepted answers: the full sentence, then the short answer ("Paris")."""
        bare = self.relation["V"]
        return sentence(self.relation["A"][0], self.values), fill(bare[0] if bare else f"{{{self.value}}}", self.values)

    @property
    def held_out(self) -> bool:
        """Whether pretraining states it but no training question asks it."""
        if self.needed:
            return False
        return zlib.crc32(self.group.encode()) % 100 < HELD_OUT_PERCENT

    @property
    def needed(self) -> bool:
        """Whether every size must be able to answer it."""
        return _needed(self.values)

    def statements(self) -> tuple[str, ...]:
        """Every wording that states it; the full answer is one of them, and is included twice."""
        values = {**self.values, "quote": '"'}
        return tuple(
            sentence(each, values) for each in (*self.relation["A"] * 2, *self.relation["S"]) if self._has(each)
        )

    def test_questions(self) -> tuple[str, ...]:
        """The wordings that only the test asks."""
        values = {**self.values, "quote": "'"}
        return tuple(sentence(each, values) for each in self.relation["T"] if self._has(each))

    def question(self, rng: random.Random) -> str:
        """A training question, drawn at random, without augmentation."""
        values = {**self.values, "quote": rng.choice(_QUOTES)}
        roll = rng.random()
        tag, frames = ("Q", ("{}",)) if roll < 0.5 else ("N", _NOUN_FRAMES) if roll < 0.8 else ("W", _CLAUSE_FRAMES)
        if not (wordings := [each for each in self.relation[tag] if self._has(each)]):
            wordings, frames = list(self.relation["Q"]), ("{}",)
        words, frame = fill(rng.choice(wordings), values), rng.choice(frames)
        if frame in ("Name {}.", "Give me {}.") and not re.match("the (?!name|number)", words):
            frame = "Tell me {}."
        return sentence(frame.format(words), {})

    def follow_up(self, rng: random.Random) -> str:
        """An elliptical follow-up ("And of Spain?") to the same question about something else; "" if there is none."""
        wordings = self.relation["F"]
        return sentence(rng.choice(wordings), {**self.values, "quote": "'"}) if wordings else ""

    def _has(self, template: str) -> bool:
        return all(self.values.get(key, "") or key in ("quote", "z") for key in gaps(template))


def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a table, whether it is a file or computed."""
    return computed(name) if name in COMPUTED else table(name)


@cache
def _surnames() -> dict[str, str]:
    """From full name to surname ("Einstein", "van Gogh"), for people whose surname nobody else in the tables has."""
    names = {row[column] for name, column in _PEOPLE for row in rows(name)}
    found = {name: match[1] for name in names if (match := _SURNAME.fullmatch(name))}
    bearers = Counter(found.values())
    return {name: last for name, last in found.items() if bearers[last] == 1 and last not in names}


def _chosen(name: str, core_only: bool, limit: int | None) -> list[dict[str, str]]:
    found = [row for row in rows(name) if row["core"] == "1" or not core_only]
    for table_name, column in _PEOPLE:
        if name == table_name:
            found = [{**row, "last": _surnames().get(row[column], "")} for row in found]
    return [row for at, row in enumerate(found) if limit is None or at < limit or _needed(row)]


def _needed(row: Values) -> bool:
    return any(value in ALWAYS for value in row.values())


def _directions(relation: Section) -> Iterator[tuple[str, tuple[str, ...], str, bool]]:
    """Each direction that a relation's head describes, as (table, key columns, value column, swapped)."""
    name, _, rest = relation.head.partition(": ")
    key, arrow, value, *_ = rest.split()
    yield name, tuple(key.split(",")), value, False
    if arrow == "<->":
        yield name, (key,), value, True


@cache
def select(core_only: bool, limit: int | None) -> tuple[Fact, ...]:
    """All facts, in a fixed order, of at most `limit` rows of each table; of core rows only if `core_only`.

    Relations marked "full" are used only if `core_only` is False.
    """
    found = []
    for relation in sections("facts"):
        if core_only and relation.head.endswith(" full"):
            continue
        for name, keys, value, swapped in _directions(relation):
            chosen = [_swap(row, keys[0], value) if swapped else row for row in _chosen(name, core_only, limit)]
            seen = Counter(_subject(row, keys) for row in rows(name) if not swapped)
            if "<->" in relation.head:  # a word that occurs in several pairs has no single opposite
                seen = Counter((row[column],) for row in rows(name) for column in (*keys, value))
            for row in chosen:
                if all(row.get(column, "") for column in (*keys, value)):
                    askable = seen[_subject(row, keys)] == 1 and row[keys[0]] != row[value]
                    found.append(Fact(relation, row, keys, value, _group(name, keys, value, row), askable))
    for name in SINGLES:
        found += [_single(name, row) for row in _chosen(name, core_only, limit)]
    return tuple(found)


def _single(name: str, row: Values) -> Fact:
    """A fact that fits no relation. Its other wordings come from singles.txt, by the form of its question, and asked.txt."""
    *shapes, any_shape = sections("singles")
    shape, found = next((shape, found) for shape in shapes if (found := _fit(shape, row)) is not None)
    asked = tuple(("Q", text) for text in section("asked", name)[row["id"]])
    lines = (("A", "{statement}"), *shape.lines, *any_shape.lines, *asked)
    return Fact(
        Section(f"{name}:{shape.name}", "", lines), {**row, **found}, ("id",), "answer", f"{name} {row['id']}", True
    )


def _fit(shape: Section, row: Values) -> dict[str, str] | None:
    """What the head of a shape finds in the question of a row; None if it is not the shape of that question."""
    if shape.head == f"={row['id']}":
        return {}
    match = re.fullmatch(shape.head, row["question"])
    return {key: text or "" for key, text in match.groupdict().items()} if match else None


def _swap(row: Values, key: str, value: str) -> dict[str, str]:
    return {**row, key: row[value], value: row[key]}


def _subject(row: Values, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(row.get(column, "") for column in keys)


def _group(name: str, keys: tuple[str, ...], value: str, row: Values) -> str:
    columns = sorted({*keys, value})
    return " ".join((name, *columns, *sorted(row[column] for column in columns)))


def paragraphs(facts: tuple[Fact, ...], rng: random.Random) -> Iterator[str]:
    """Endless short paragraphs of statements. Each round states every fact once, in a wording not used recently."""
    wordings = {fact: Deck(fact.statements(), rng) for fact in facts}
    while True:
        for chunk in _round(list(facts), rng):
            yield " ".join(wordings[fact].draw() for fact in chunk)


def _round(facts: list[Fact], rng: random.Random) -> list[list[Fact]]:
    """All facts in chunks of up to 6, grouped by subject, by relation, or not at all."""
    rng.shuffle(facts)
    theme = rng.choice((lambda fact: next(iter(fact.values.values())), lambda fact: fact.relation.name, lambda fact: 0))
    groups: dict[object, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(theme(fact), []).append(fact)
    chunks, alone = [], [fact for group in groups.values() if len(group) == 1 for fact in group]
    for group in (*(group for group in groups.values() if len(group) > 1), alone):
        while group:
            size = rng.randint(2, 6)
            chunks.append(group[:size])
            group = group[size:]
    rng.shuffle(chunks)
    return chunks
