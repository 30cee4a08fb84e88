"""How text files become documents, in pieces of bounded size whatever the size of the file.

In a text file `<|endoftext|>` alone on a line separates documents. Of JSON and JSON lines the "text" of
each record is one; jsonfiles.py says which files are taken for that. The licence of Project Gutenberg is left out.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..config import UserError
from . import jsonfiles

if TYPE_CHECKING:
    from .questions import Conversation

PIECE = 1 << 18  # characters: sixteen of them fill a chunk that tokenfiles.py encodes on all cores

Part = tuple[bool, str]  # whether it begins a document, text


class Piece(NamedTuple):
    """A document, or a part of a long one: its pieces one after the other are the document."""

    text: str | Conversation
    first: bool  # begins a document
    stripped: int = 0  # bytes of licence that were left out just before or in it
    done: int = 0  # bytes of the file that have been read so far


def read_pieces(path: Path, lines: int = 0) -> Iterator[Piece]:
    """The documents of a file in pieces. With `lines` > 0, a document is so many lines of it.

    Encoding the pieces one by one gives the ids of the whole, as long as PIECE characters never go by without a
    blank or a line break. Raises UserError for a missing or damaged file, for what is not UTF-8, for malformed
    JSON (it names the line), and for a file without text.
    """
    found, n_lines = False, 0
    try:
        with jsonfiles.opened(path) as (stream, raw):
            if jsonfiles.suffix(path) in jsonfiles.JSON:
                parts = _records(jsonfiles.records(stream, path))
            else:
                file = io.TextIOWrapper(stream, encoding="utf-8")
                parts = _groups(file, lines) if lines else _separated(_blocks(file))
            for text, first, stripped in _without_licence(parts):
                found = found or bool(text)
                n_lines += text.count("\n")
                yield Piece(text, first, stripped, raw.tell())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 after line {n_lines}; convert it: iconv -f latin1 -t utf-8 IN > OUT"
        ) from error
    if not found:
        raise UserError(f"{path} has no text in it; give a file with text")


def _blocks(file: IO[str]) -> Iterator[str]:
    """Text in blocks of at most some PIECE characters."""
    rest = ""
    while block := file.read(PIECE):
        rest += block
        cut = _border(rest)
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest


def _border(text: str) -> int:
    """Where to cut `text`, as late as possible: before a line break, else a blank, that follows a word.

    No pattern of our tokenizers goes on from a word into the space after it, so no token is cut.
    """
    for space in "\n ":
        at = len(text)
        while (at := text.rfind(space, 1, at)) > 0:
            if not text[at - 1].isspace():
                return at
    return len(text)


_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*$\n?", re.MULTILINE)


def _separated(blocks: Iterator[str]) -> Iterator[Part]:
    """Cut at `<|endoftext|>` lines; the line breaks around them belong to no document."""
    first, separated = True, False
    for block in blocks:
        texts = _SEPARATOR.split(block)
        for i, text in enumerate(texts):
            if i > 0:
                first = separated = True
            if first and separated:
                text = text.lstrip("\n")
            if i < len(texts) - 1:
                text = text.rstrip("\n")
            if text.strip() or (text and not first):
                yield first, text
                first = False


def _groups(file: IO[str], lines: int) -> Iterator[Part]:
    while group := "".join(itertools.islice(file, lines)):
        if text := group.strip("\n"):
            yield True, text


def _records(records: Iterator[tuple[str, Any]]) -> Iterator[Part]:
    for where, record in records:
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            raise UserError(f'{where}: there is no "text"; each record of a corpus needs one')
        if text.strip():
            for i, block in enumerate(_blocks(io.StringIO(text))):
                yield i == 0, block


# The book stands between these lines, the licence before and after them. The second forms are those of
# before 2005.
_MARK = re.compile(
    r"^(?:(?P<start>\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*|\*END\*? ?THE SMALL PRINT!.*)"
    r"|\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG.*|End of (?:the |this )?Project Gutenberg.*)$\n*",
    re.MULTILINE | re.IGNORECASE,
)


def strip_gutenberg(text: str) -> tuple[str, int]:
    """The text without the licence of Project Gutenberg, and how many bytes of UTF-8 that takes off.

    A file of several books is cleaned book by book; a text without the licence stays as it is.
    """
    kept, _ = _strip(text, keeping=True, head=True)
    return kept, _n_bytes(text) - _n_bytes(kept)


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _strip(text: str, keeping: bool, head: bool) -> tuple[str, bool]:
    """What of `text` is to be kept, and whether so is what follows it. `head`: a document begins here."""
    kept, at = [], 0
    # Looking for the marks in every line is slow; these words in them are quickly found missing.
    marked = "GUTENBERG" in text or "Gutenberg" in text or "SMALL PRINT" in text
    for mark in _MARK.finditer(text) if marked else ():
        if keeping and not (mark["start"] and head):
            kept.append(text[at : mark.start()].rstrip("\n"))
        if mark["start"] and not head:
            kept.append("\n\n")  # between two books
        keeping, head, at = bool(mark["start"]), False, mark.end()
    return "".join([*kept, text[at:] * keeping]), keeping


def _without_licence(parts: Iterator[Part]) -> Iterator[tuple[str, bool, int]]:
    """(text, whether it begins a document, bytes left out)."""
    keeping, begins, stripped = True, False, 0
    for first, text in parts:
        kept, keeping = _strip(text, keeping or first, first)
        begins = begins or first
        stripped += 0 if len(kept) == len(text) else _n_bytes(text) - _n_bytes(kept)
        if kept:
            yield kept, begins, stripped
            begins, stripped = False, 0
    if stripped:
        yield "", False, stripped
