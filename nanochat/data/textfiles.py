"""Reading of documents from text and JSON files, in pieces of bounded size, so that files may be of any size.

In a text file, `<|endoftext|>` alone on a line separates documents. In JSON files (see jsonfiles.py) the "text" of each
record is a document. The license text of Project Gutenberg is removed.
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

PIECE = 1 << 18  # characters: small, so that a chunk of tokenfiles.py has several for encoding on all cores

Part = tuple[bool, str]  # whether it begins a document, text


class Piece(NamedTuple):
    """A document, or a part of a long document, whose pieces concatenated are the document."""

    text: str | Conversation
    first: bool  # whether it begins a document
    stripped: int = 0  # bytes of license text removed from it or just before it
    done: int = 0  # bytes of the file read so far


def read_pieces(path: Path, lines: int = 0) -> Iterator[Piece]:
    """The documents of a file in pieces. With `lines` > 0, that many lines of a text file make a document.

    Encoding the pieces one by one gives the same ids as encoding the whole document, unless PIECE characters in a row
    contain no space or line break. Raises UserError for a missing or damaged file, for a file that is not UTF-8, for
    malformed JSON (naming the line), and for a file without text.
    """
    found, n_lines = False, 0
    try:
        with jsonfiles.opened(path) as (stream, raw):
            if jsonfiles.suffix(path) in jsonfiles.JSON:
                parts = _records(jsonfiles.records(stream, path))
            else:
                file = io.TextIOWrapper(stream, encoding="utf-8")
                parts = _groups(file, lines) if lines else _separated(_blocks(file))
            for text, first, stripped in _without_license(parts):
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
    """The text in blocks of about PIECE characters."""
    rest = ""
    while block := file.read(PIECE):
        rest += block
        cut = _border(rest)
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest


def _border(text: str) -> int:
    """The last place to split `text` at: before a line break that follows a word, or else before such a space.

    In the patterns of our tokenizers no match extends from a word into the space after it, so no token is split.
    """
    for space in "\n ":
        at = len(text)
        while (at := text.rfind(space, 1, at)) > 0:
            if not text[at - 1].isspace():
                return at
    return len(text)


_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*$\n?", re.MULTILINE)


def _separated(blocks: Iterator[str]) -> Iterator[Part]:
    """Split at lines of `<|endoftext|>`; line breaks around these lines belong to no document."""
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


# A book is between these lines, the license before and after them. The second forms were used before 2005.
_MARK = re.compile(
    r"^(?:(?P<start>\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*|\*END\*? ?THE SMALL PRINT!.*)"
    r"|\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG.*|End of (?:the |this )?Project Gutenberg.*)$\n*",
    re.MULTILINE | re.IGNORECASE,
)


def strip_gutenberg(text: str) -> tuple[str, int]:
    """(the text without the license of Project Gutenberg, number of UTF-8 bytes removed).

    If a file holds several books, the license of each is removed; a text without the license is unchanged.
    """
    kept, _ = _strip(text, keeping=True, head=True)
    return kept, _n_bytes(text) - _n_bytes(kept)


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _strip(text: str, keeping: bool, head: bool) -> tuple[str, bool]:
    """(what is kept of `text`, whether what follows is kept). `keeping` and `head`: it is kept, begins a document."""
    kept, at = [], 0
    # The regular expression is slow; most texts contain none of these words.
    marked = "GUTENBERG" in text or "Gutenberg" in text or "SMALL PRINT" in text
    for mark in _MARK.finditer(text) if marked else ():
        if keeping and not (mark["start"] and head):
            kept.append(text[at : mark.start()].rstrip("\n"))
        if mark["start"] and not head:
            kept.append("\n\n")  # between two books
        keeping, head, at = bool(mark["start"]), False, mark.end()
    return "".join([*kept, text[at:] * keeping]), keeping


def _without_license(parts: Iterator[Part]) -> Iterator[tuple[str, bool, int]]:
    """The parts without licenses, as (text, whether it begins a document, bytes removed)."""
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
