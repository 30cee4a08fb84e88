"""Templates: the text files that hold them, and the rules of English grammar needed to fill them in.

A file in `wordings/` is a list of sections. `[name] head` opens a section; every other line is a tag followed by a
template, or by several alternatives separated by " | ". A placeholder is `{key}`, or `{filter key}` for a word in another
form: see `FILTERS`. Lines that begin with "#" are comments.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Generic, TypeVar

Values = Mapping[str, str]
T = TypeVar("T")

_AN = re.compile(
    r"(?!(?:uni|use|usu|eu|ew|one\b|once)|u[krst][aeiou])[aeiou]|hour|honest|heir|x-|8|1[18]\b", re.IGNORECASE
)
_GAP = re.compile(r"\{(?:(\w+) )?([\w.]+)\}")
_START = re.compile(r"(?:^|(?<=[^A-Z][.!?] ))([\"']?)([a-z])")
_STOPS = re.compile(r"(?<!\.)\.\.(?!\.)")
_BASES = {"invented": "invent", "discovered": "discover", "built": "build", "developed": "develop"}
_AGENTS = {"invented": "inventor", "discovered": "discoverer", "built": "builder", "developed": "developer"}


@dataclass(frozen=True)
class Section:
    """A section of a wordings file, with its `(tag, text)` lines in order."""

    name: str
    head: str
    lines: tuple[tuple[str, str], ...]

    def __getitem__(self, tag: str) -> tuple[str, ...]:
        """All alternatives of the lines with this tag."""
        return self._wordings.get(tag, ())

    @cached_property
    def _wordings(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for tag, text in self.lines:
            found[tag] = (*found.get(tag, ()), *text.split(" | "))
        return found


@cache
def sections(file: str) -> tuple[Section, ...]:
    """The sections of `wordings/<file>.txt`."""
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    text = (resources.files(__package__) / "wordings" / f"{file}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            name, _, head = line[1:].partition("]")
            found.append((name, head.strip(), []))
        else:
            tag, _, rest = line.partition(" ")
            found[-1][2].append((tag, rest.strip()))
    return tuple(Section(name, head, tuple(lines)) for name, head, lines in found)


def section(file: str, name: str) -> Section:
    """The section `name` of `wordings/<file>.txt`."""
    return next(each for each in sections(file) if each.name == name)


@cache
def words(file: str, name: str) -> tuple[str, ...]:
    """The entries of a section that is a plain list, separated by spaces, or by " | " where entries contain spaces."""
    lines = [text for _, text in section(file, name).lines]
    return tuple(word.strip() for text in lines for word in (text.split("|") if "|" in text else text.split()))


def article(noun: str) -> str:
    """`noun` preceded by "a" or "an", depending on its sound: an owl, a unicorn, an hour."""
    return f"{'an' if _AN.match(noun) else 'a'} {noun}"


def possessive(noun: str) -> str:
    """The possessive form: France's, the United States'."""
    return noun + ("'" if noun.endswith("s") else "'s")


def number_word(number: int) -> str:
    """`number` (0 to 100) in words: "seven", "forty-two"."""
    if number < 20:
        return words("english", "ones")[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return words("english", "tens")[tens] + (f"-{number_word(ones)}" if ones else "")


def ordinal(number: int) -> str:
    """`number` (0 to 12) as an ordinal: "third"."""
    return words("english", "ordinals")[number]


def capitalized(text: str) -> str:
    """`text` with each sentence capitalized."""
    return _START.sub(lambda match: match[1] + match[2].upper(), text)


def normalized(text: str) -> str:
    """`text` without case, spacing and punctuation (except + - *), to find test questions in the training set."""
    return " ".join(re.findall(r"\w+|[+*-]", text.casefold()))


def _count(values: Values, key: str) -> str:
    return f"{number_word(int(values[key]))} {key[:-1] if values[key] == '1' else key}"


def _was(values: Values, key: str) -> str:
    head = re.split(r" (?:of|for|in|on) ", values[key])[0]
    return f"{values[key]} {'were' if re.search(r'[^sui]s$', head) else 'was'}"


def uncapitalized(text: str, common: str = "") -> str:
    """`text` for the middle of a sentence: "The cat" becomes "the cat", but "Rome is" stays.

    Words that occur in `common` are taken to be no proper names.
    """
    first = text.split()[0]
    if first in words("english", "openers") or first.lower() in re.findall(r"\w+", common):
        return text[0].lower() + text[1:]
    return text


def _low(values: Values, key: str) -> str:
    return uncapitalized(values[key], values.get("question", ""))


def _with_the(values: Values, key: str) -> str:
    return f"the {values[key]}" if values.get("the") else values[key]


FILTERS: dict[str, Callable[[Values, str], str]] = {
    "a": lambda values, key: article(values[key]),
    "the": _with_the,
    "thes": lambda values, key: possessive(_with_the(values, key)),
    "s": lambda values, key: possessive(values[key]),
    "was": _was,
    "base": lambda values, key: _BASES[values[key]],
    "agent": lambda values, key: _AGENTS[values[key]],
    "low": _low,
    "word": lambda values, key: number_word(int(values[key])),
    "count": _count,
    "q": lambda values, key: values["quote"] + values[key] + values["quote"],
    "ord": lambda values, key: ordinal(int(values[key])),
    "cap": lambda values, key: values[key][:1].upper() + values[key][1:],
}


@cache
def _parts(template: str) -> tuple[tuple[str, str | None, str | None], ...]:
    pieces, at = [], 0
    for match in _GAP.finditer(template):
        pieces.append((template[at : match.start()], match[1], match[2]))
        at = match.end()
    return (*pieces, (template[at:], None, None))


def fill(template: str, values: Values) -> str:
    """`template` with its placeholders replaced by `values`; raises KeyError if a value is missing."""
    text = []
    for literal, name, key in _parts(template):
        text.append(literal)
        if key is not None:
            text.append(FILTERS[name](values, key) if name else values[key])
    return "".join(text)


def sentence(template: str, values: Values) -> str:
    """`fill`, then capitalize each sentence, and merge the two periods after a final abbreviation into one."""
    return capitalized(_STOPS.sub(".", fill(template, values)))


@cache
def gaps(template: str) -> tuple[str, ...]:
    """The keys of the placeholders of `template`."""
    return tuple(key for _, _, key in _parts(template) if key is not None)


def stream(*parts: object) -> random.Random:
    """A random generator seeded by the text of `parts`: independent for each purpose, the same on every machine."""
    return random.Random("almanac " + " ".join(map(str, parts)))


class Deck(Generic[T]):
    """Draws at random without replacement and reshuffles when empty, so every item comes up equally often."""

    def __init__(self, items: Iterable[T], rng: random.Random) -> None:
        self._items, self._rng = tuple(items), rng
        self._left: list[T] = []

    def draw(self) -> T:
        """The next item."""
        if not self._left:
            self._left = list(self._items)
            self._rng.shuffle(self._left)
        return self._left.pop()
