"""Reading of JSON lists and JSON lines, compressed or not, record by record.

The last suffix, upper or lower case, decides what a file is, and `.gz` after it means that it is compressed:
`notes.json.txt` is text, `notes.JSONL.GZ` is JSON lines. Within JSON files the content decides: it may be JSON lines, a
list, or an object that contains a list.
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
READ_AGAIN = 1 << 26  # bytes: only smaller files are read a second time to find the line of a syntax error

# An escape that the end of the text may have cut off, half of a surrogate pair, a whole pair, or another escape.
_ESCAPE = re.compile(
    rb"(?P<open>\\(?:u(?:H{0,3}|[dD][89abAB]HH(?:\\(?:uH{0,3})?)?))?\Z)"
    rb"|\\u[dD][89abAB]HH\\u[dD][c-fC-F]HH|(?P<half>\\u[dD][89a-fA-F]HH)|\\.".replace(b"H", b"[0-9a-fA-F]"),
    re.DOTALL,
)


def suffix(path: Path) -> str:
    """The suffix that says what is in a file, in lower case: ".json" for `a.JSON.gz`."""
    return (path.with_suffix("") if is_compressed(path) else path).suffix.lower()


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the decompressed bytes of a file without a byte order mark, the file itself, whose position shows the progress).

    Raises UserError if the file cannot be opened, or if reading it fails later.
    """
    try:
        with path.open("rb") as raw, gzip.open(raw) if is_compressed(path) else raw as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            yield cast("IO[bytes]", stream), raw
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}); check the file, or get a new copy") from error


def records(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (its place, for error messages; the record) for each record in the stream that `opened` gave for `path`.

    Half of a surrogate pair, which JSON can represent and UTF-8 cannot, becomes "?". Raises UserError, naming the line or
    the record, for what is not JSON or not UTF-8.
    """
    begin = stream.tell()
    prefix = _prefix(stream, path, begin)
    stream.seek(begin)
    yield from _lines(stream, path) if prefix is None else _elements(stream, path, prefix)


def _prefix(stream: IO[bytes], path: Path, begin: int) -> str | None:
    """The ijson prefix of the records; None for JSON lines."""
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
    return None if first.rstrip().endswith(b"}") else ""  # "": the file is a sequence of objects of several lines each


def _several_lists(head: bytes) -> bool:
    """Whether the first line is a complete list, and more lines follow."""
    first, _, others = head.partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(others.strip())


def _wrapper(stream: IO[bytes]) -> str:
    """The key of the list of records in a JSON object, "" if there is none; reads no more than necessary."""
    import ijson

    events = ijson.sendable_list()
    parser, sound = ijson.parse_coro(events), True
    for block in _without_lone_surrogates(stream):
        try:
            parser.send(block)
        except (ijson.JSONError, UnicodeDecodeError):  # the error may be in a later line, after the answer
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
                record = json.loads(b"".join(_without_lone_surrogates(io.BytesIO(line))).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8; save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON ({error}); correct or remove it") from error
            yield where, record


def _elements(stream: IO[bytes], path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    import ijson

    found = ijson.sendable_list()
    parser = ijson.items_coro(found, prefix, use_float=True, multiple_values=not prefix)
    number, fault = 0, None
    blocks = _without_lone_surrogates(stream)
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
        raise UserError(f"{path}{_fault(path) or f', after record {number}: not valid JSON; correct it'}") from fault


def _fault(path: Path) -> str:
    """The error in a malformed file with its line, which ijson does not report; "" for a large file."""
    with opened(path) as (stream, _):
        content = stream.read(READ_AGAIN)
    try:
        json.loads(content if len(content) < READ_AGAIN else b"0")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f", line {line} is not UTF-8; save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        return f": not valid JSON ({error}); correct it"
    return ""


def _without_lone_surrogates(stream: IO[bytes]) -> Iterator[bytes]:
    """The blocks of a JSON text with "?" for unpaired surrogates: yajl takes the letter after one for the other half."""
    rest = b""

    def replace_surrogate(match: re.Match[bytes]) -> bytes:
        nonlocal rest
        rest = match["open"] or b""
        return b"?" if match["half"] else b"" if rest else match[0]

    while block := stream.read(BLOCK):
        block, rest = rest + block, b""
        # Most blocks contain no surrogates and no escape that their end may have cut off; the regex would be slow for them.
        doubtful = b"\\ud" in block or b"\\uD" in block or b"\\" in block[-11:]
        yield _ESCAPE.sub(replace_surrogate, block) if doubtful else block
    if rest:
        yield rest
