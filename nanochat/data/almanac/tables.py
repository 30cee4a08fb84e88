"""The tables of facts: one tab-separated file for each theme in `tables/`, with the column names in the first line.

Rows with core == "1" are the best-known ones, used by the small sizes. An empty cell means that nothing is asked, because
the value is disputed, uncertain or changes with time. "0" moons and "zero" legs are values.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one theme ("countries", "planets", ...), each from column name to cell; not to be changed.

    Raises FileNotFoundError for an unknown theme, ValueError for a row with too many or too few cells.
    """
    text = (files(__package__) / "tables" / f"{name}.tsv").read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return tuple(dict(zip(header, row, strict=True)) for row in rows)


@cache
def core(name: str) -> tuple[dict[str, str], ...]:
    """The best-known rows of one theme, in table order."""
    return tuple(row for row in table(name) if row["core"] == "1")
