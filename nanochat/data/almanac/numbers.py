"""Tables that are computed rather than stored in files: arithmetic, numbers in words, and neighboring numbers."""

from __future__ import annotations

from functools import cache

from .grammar import number_word

Row = dict[str, str]


def _row(core: bool, **values: object) -> Row:
    return {**{key: str(value) for key, value in values.items()}, "core": "1" if core else "0"}


def _sums() -> list[Row]:
    return [_row(max(a, b) <= 10, a=a, b=b, c=a + b) for a in range(1, 21) for b in range(1, 21)]


def _differences() -> list[Row]:
    return [_row(a <= 10, a=a, b=b, c=a - b) for a in range(1, 21) for b in range(1, a + 1)]


def _products() -> list[Row]:
    return [_row(max(a, b) <= 5, a=a, b=b, c=a * b) for a in range(1, 11) for b in range(1, 11)]


def _numerals() -> list[Row]:
    return [_row(n <= 20, number=n, in_words=number_word(n)) for n in range(101)]


def _neighbours() -> list[Row]:
    return [_row(n <= 20, number=n, after=n + 1, before=n - 1) for n in range(1, 100)]


_TABLES = {
    "sums": _sums,
    "differences": _differences,
    "products": _products,
    "numerals": _numerals,
    "neighbours": _neighbours,
}
COMPUTED = tuple(_TABLES)


@cache
def computed(name: str) -> tuple[Row, ...]:
    """The rows of a computed table, in the same form as those of a table file; not to be changed."""
    return tuple(_TABLES[name]())
