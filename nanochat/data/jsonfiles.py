"""How files of records are opened: one set of rules for plain and packed files, JSON lists and JSON lines.

The last suffix says what a file is, whatever its case, and a `.gz` after it says that it is packed: `notes.json.txt` is
text, `notes.JSONL.GZ` is JSON lines. Within JSON the content has the last word: lines, a list, or a list in an object.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ..config import UserError

LINES = (".jsonl", ".ndjson")
JSON = (".json", *LINES)
WRAPPERS = ("data", "examples", "questions", "records")  # {"data": [record, …]}, as SQuAD has it
BLOCK = 1 << 16  # bytes parsed at a time
READ_AGAIN = 1 << 26  # bytes: to find a fault, larger files are not read a second time

# An escape that the end of the text may have cut, half of a surrogate pair, or anything else that a backslash begins.
_ESCAPE = re.compile(
    rb"(?P<open>\\(?:u(?:H{0,3}|[dD][89abAB]HH(?:\\(?:uH{0,3})?)?))?\Z)"
    rb"|\\u[dD][89abAB]HH\\u[dD][c-fC-F]HH|(?P<half>\\u[dD][89a-fA-F]HH)|\\.".replace(b"H", b"[0-9a-fA-F]"),
    re.DOTALL,
)


def suffix(path: Path) -> str:
    """The suffix that says what is in a file, in small letters: of `a.JSON.gz` that is ".json"."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The bytes of a file, unpacked and without the byte order mark; and the file itself, to ask how far it was read.

    Raises UserError if it cannot be read, also while it is being read.
    """
    try:
        with path.open("rb") as raw, gzip.open(raw) if is_packed(path) else raw as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            yield cast("IO[bytes]", stream), raw
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}); check the file, or get it again") from error


def records(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) for each record in what `opened` gave for `path`, one at a time.

    Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes "?". Raises UserError, which names the line
    or the record, for what is not JSON or not UTF-8.
    """
    begin = stream.tell()
    prefix = _prefix(stream, path, begin)
    stream.seek(begin)
    yield from _lines(stream, path) if prefix is None else _elements(stream, path, prefix)


def _prefix(stream: IO[bytes], path: Path, begin: int) -> str | None:
    """Where ijson finds the records; None if each line is one."""
    head = stream.read(BLOCK).lstrip()
    if suffix(path) in LINES:
        return "item" if head.startswith(b"[") and not _several_lists(head) else None
    if not head.startswith(b"{"):
        return "item" if head.startswith(b"[") else None
    stream.seek(begin)
    if wrapper := _wrapper(stream):
        return f"{wrapper}.item"
    stream.seek(begin)
    first = next((line for line in stream if line.strip()), b"")
    return None if first.rstrip().endswith(b"}") else ""  # "": an object that goes over several lines


def _several_lists(head: bytes) -> bool:
    """Whether the first line is a whole list, and another line follows."""
    first, _, others = head.partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(others.strip())


def _wrapper(stream: IO[bytes]) -> str:
    """The key of the list that an object wraps, "" if it does not; reads no further than it must."""
    import ijson

    events = ijson.sendable_list()
    parser, sound = ijson.parse_coro(events), True
    for block in _mended(stream):
        try:
            parser.send(block)
        except (ijson.JSONError, UnicodeDecodeError):  # perhaps only of the next line
            sound = False
        for prefix, event, _ in events:
            if event == "start_array" and prefix in WRAPPERS:
                return prefix
            if (prefix, event) == ("", "end_map"):
                return ""
        events.clear()
        if not sound:
            break
    return ""


def _lines(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                record = json.loads(b"".join(_mended(io.BytesIO(line))).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8; save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON ({error}); mend or remove it") from error
            yield where, record


def _elements(stream: IO[bytes], path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    import ijson

    found = ijson.sendable_list()
    parser = ijson.items_coro(found, prefix, use_float=True, multiple_values=not prefix)
    number, fault = 0, None
    blocks = _mended(stream)
    while fault is None:
        block = next(blocks, None)
        try:
            if block is None:
                parser.close()
            else:
                parser.send(block)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            fault = error
        for record in found:
            number += 1
            yield f"{path}, record {number}", record
        found.clear()
        if block is None:
            break
    if fault is not None:
        raise UserError(f"{path}{_fault(path) or f', after record {number}: not valid JSON; mend it'}") from fault


def _fault(path: Path) -> str:
    """What is wrong in a malformed file, and in which line, which ijson does not tell; "" for a large one."""
    with opened(path) as (stream, _):
        content = stream.read(READ_AGAIN)
    try:
        json.loads(content if len(content) < READ_AGAIN else b"0")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f", line {line} is not UTF-8; save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        return f": not valid JSON ({error}); mend it"
    return ""


def _mended(stream: IO[bytes]) -> Iterator[bytes]:
    """The blocks of a JSON text with "?" for half surrogate pairs: yajl takes the letter after one for the other half."""
    rest = b""

    def mend(match: re.Match[bytes]) -> bytes:
        nonlocal rest
        rest = match["open"] or b""
        return b"?" if match["half"] else b"" if rest else match[0]

    while block := stream.read(BLOCK):
        block, rest = rest + block, b""
        # A look whether there is anything to mend, or an escape that the end may have cut, saves most of the time.
        doubtful = b"\\ud" in block or b"\\uD" in block or b"\\" in block[-11:]
        yield _ESCAPE.sub(mend, block) if doubtful else block
    if rest:
        yield rest
