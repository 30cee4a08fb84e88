"""Facts: what the tables say, told in many wordings and asked in others.

A `Fact` is one relation of one row. The facts of a row that say the same in two directions share a `group`; what is
held out is a group, chosen by a checksum of its name, so the same facts are held out whatever the size and the seed.
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

HELD_OUT_PERCENT = 8  # of the groups: told in pretraining, asked nowhere but in the test
SINGLES = ("space", "body", "units", "shapes", "colours", "calendar", "geography", "food", "general")
ALWAYS = ("France", "1984", "planet_count", "light_speed")  # what every size must know and ask
_PEOPLE = (("people", "name"), ("books", "author"), ("inventions", "person"))
# as people are called: da Vinci and van Gogh, but Beethoven
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
    """One relation of one row: how it is told, asked and answered."""

    relation: Section
    values: Values
    keys: tuple[str, ...]
    value: str
    group: str
    askable: bool  # False where the question would have two right answers

    @property
    def answers(self) -> tuple[str, str]:
        """The full sentence, then the bare answer."""
        bare = self.relation["V"]
        return sentence(self.relation["A"][0], self.values), fill(bare[0] if bare else f"{{{self.value}}}", self.values)

    @property
    def held_out(self) -> bool:
        """Told in pretraining, never asked in training."""
        if self.needed:
            return False
        return zlib.crc32(self.group.encode()) % 100 < HELD_OUT_PERCENT

    @property
    def needed(self) -> bool:
        """Behind one of the five questions that every size must answer."""
        return _needed(self.values)

    def statements(self) -> tuple[str, ...]:
        """Every wording that tells it; the answer's wording counts double."""
        values = {**self.values, "quote": '"'}
        return tuple(
            sentence(each, values) for each in (*self.relation["A"] * 2, *self.relation["S"]) if self._has(each)
        )

    def test_questions(self) -> tuple[str, ...]:
        """The questions kept for the test."""
        values = {**self.values, "quote": "'"}
        return tuple(sentence(each, values) for each in self.relation["T"] if self._has(each))

    def question(self, rng: random.Random) -> str:
        """One of the many ways to ask it in training, cleanly written."""
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
        """How to ask it right after the same was asked about something else; "" if there is no natural way."""
        wordings = self.relation["F"]
        return sentence(rng.choice(wordings), {**self.values, "quote": "'"}) if wordings else ""

    def _has(self, template: str) -> bool:
        return all(self.values.get(key, "") or key in ("quote", "z") for key in gaps(template))


def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a written or computed table."""
    return computed(name) if name in COMPUTED else table(name)


@cache
def _surnames() -> dict[str, str]:
    """The surname of everybody who is the only one to bear it: "Einstein" for "Albert Einstein", "van Gogh"."""
    names = {row[column] for name, column in _PEOPLE for row in rows(name)}
    found = {name: match[1] for name in names if (match := _SURNAME.fullmatch(name))}
    borne = Counter(found.values())
    return {name: last for name, last in found.items() if borne[last] == 1 and last not in names}


def _chosen(name: str, core_only: bool, limit: int | None) -> list[dict[str, str]]:
    found = [row for row in rows(name) if row["core"] == "1" or not core_only]
    for table_name, column in _PEOPLE:
        if name == table_name:
            found = [{**row, "last": _surnames().get(row[column], "")} for row in found]
    return [row for at, row in enumerate(found) if limit is None or at < limit or _needed(row)]


def _needed(row: Values) -> bool:
    return any(value in ALWAYS for value in row.values())


def _directions(relation: Section) -> Iterator[tuple[str, tuple[str, ...], str, bool]]:
    """(table, key columns, value column, swapped) of a relation's head."""
    name, _, rest = relation.head.partition(": ")
    key, arrow, value, *_ = rest.split()
    yield name, tuple(key.split(",")), value, False
    if arrow == "<->":
        yield name, (key,), value, True


@cache
def select(core_only: bool, limit: int | None) -> tuple[Fact, ...]:
    """Every fact of the core rows (or of all rows), at most `limit` rows of a table, in a fixed order.

    Relations marked "full" are told only with all rows.
    """
    found = []
    for relation in sections("facts"):
        if core_only and relation.head.endswith(" full"):
            continue
        for name, keys, value, swapped in _directions(relation):
            chosen = [_swap(row, keys[0], value) if swapped else row for row in _chosen(name, core_only, limit)]
            seen = Counter(_subject(row, keys) for row in rows(name) if not swapped)
            if "<->" in relation.head:  # a word that stands on either side of several pairs has no one opposite
                seen = Counter((row[column],) for row in rows(name) for column in (*keys, value))
            for row in chosen:
                if all(row.get(column, "") for column in (*keys, value)):
                    askable = seen[_subject(row, keys)] == 1 and row[keys[0]] != row[value]
                    found.append(Fact(relation, row, keys, value, _group(name, keys, value, row), askable))
    for name in SINGLES:
        found += [_single(name, row) for row in _chosen(name, core_only, limit)]
    return tuple(found)


def _single(name: str, row: Values) -> Fact:
    """A fact that stands alone: the shape of its question says how else it may be told and asked, asked.txt how besides."""
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


def paragraphs(told: tuple[Fact, ...], rng: random.Random) -> Iterator[str]:
    """Short themed paragraphs, without end. Every round tells every fact once, each time in another wording."""
    wordings = {fact: Deck(fact.statements(), rng) for fact in told}
    while True:
        for chunk in _round(list(told), rng):
            yield " ".join(wordings[fact].draw() for fact in chunk)


def _round(told: list[Fact], rng: random.Random) -> list[list[Fact]]:
    """All facts in heaps of 2 to 6: about one thing, about one relation, or mixed."""
    rng.shuffle(told)
    theme = rng.choice((lambda fact: next(iter(fact.values.values())), lambda fact: fact.relation.name, lambda fact: 0))
    heaps: dict[object, list[Fact]] = {}
    for fact in told:
        heaps.setdefault(theme(fact), []).append(fact)
    chunks, alone = [], [fact for heap in heaps.values() if len(heap) == 1 for fact in heap]
    for heap in (*(heap for heap in heaps.values() if len(heap) > 1), alone):
        while heap:
            size = rng.randint(2, 6)
            chunks.append(heap[:size])
            heap = heap[size:]
    rng.shuffle(chunks)
    return chunks
