"""Writing a prepared corpus: its text file, and its token files for training and validation."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .. import files
from ..config import UserError
from ..tokenizer import Tokenizer
from .questions import Conversation, render_all
from .textfiles import Piece

CHUNK = 1_500_000  # characters encoded at a time: enough work for all cores; more would only take more memory
TOKENS = 1 << 18  # tokens read at a time in the search for the split
TRAIN_SHARE = 0.9


def length(piece: Piece) -> int:
    """The number of characters of a piece in readable form."""
    return len(piece.text if isinstance(piece.text, str) else readable(piece.text))


def plain_texts(piece: Piece) -> list[str]:
    """The texts of a piece, without special tokens; each is encoded by itself."""
    if isinstance(piece.text, str):
        return [piece.text]
    return [piece.text.context, *(turn.text for turn in piece.text.turns)]


def readable(conv: Conversation) -> str:
    """A conversation as readable text: the passage, then lines `User: …` and `Assistant: …`."""
    turns = [f"{turn.role.capitalize()}: {turn.text}" for turn in conv.turns]
    return "\n".join([conv.context] * bool(conv.context) + turns)


def write(pieces: Iterator[Piece], folder: Path, name: str, tok: Tokenizer, dtype: np.dtype) -> dict[str, Any]:
    """Write pretrain_input.txt, pretrain_train.bin and pretrain_val.bin; returns their entries for meta.json.

    Raises UserError if the text is too short to be split. `name` is the corpus in error messages.
    """
    digest = hashlib.sha256(tok.fingerprint.encode())
    lengths = tok.byte_lengths()
    stripped = documents = n_bytes = 0
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(files.atomic_write(folder / "pretrain_input.txt", "w"))
        train = stack.enter_context(files.atomic_write(folder / "pretrain_train.bin", "w+b"))
        val = stack.enter_context(files.atomic_write(folder / "pretrain_val.bin"))
        for chunk in _chunks(pieces):
            for piece in chunk:
                text.write("\n\n" if piece.first and documents else "")
                text.write(piece.text if isinstance(piece.text, str) else readable(piece.text))
                documents += piece.first
                stripped += piece.stripped
            ids = _encode(chunk, tok, dtype)
            n_bytes += int(lengths[ids].sum())
            digest.update(ids.tobytes())
            train.write(ids.tobytes())
        total = Counts(documents, train.tell() // dtype.itemsize, n_bytes)
        boundary, before = _split(train, dtype, tok, total)
        if not before.tokens:
            raise UserError(f"{name} has too little text to hold out a validation split; add more text")
        # Then both splits have a part of the same document, each between its own <|endoftext|>.
        inside = boundary != "document"
        end = np.array([tok.eot], dtype).tobytes()
        val.write(end * inside)
        train.seek(before.tokens * dtype.itemsize)
        shutil.copyfileobj(train, val)
        val.write(end)
        train.truncate(before.tokens * dtype.itemsize)
        train.seek(0, os.SEEK_END)
        train.write(end)
        # Without meta.json the folder counts as not prepared, so old and new files are never mixed.
        (folder / "meta.json").unlink(missing_ok=True)
    digest.update(str(before.tokens).encode())
    after = Counts(
        total.documents - before.documents + inside,
        total.tokens - before.tokens + inside + 1,
        total.bytes - before.bytes,
    )
    return {
        "fingerprint": digest.hexdigest()[:16],
        "split": boundary,
        "stripped_bytes": stripped,
        "train": before._replace(tokens=before.tokens + 1)._asdict(),
        "val": after._asdict(),
    }


def _chunks(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    chunk, n_chars = [], 0
    for piece in pieces:
        chunk.append(piece)
        n_chars += length(piece)
        if n_chars >= CHUNK:
            yield chunk
            chunk, n_chars = [], 0
    if chunk:
        yield chunk


def _encode(chunk: list[Piece], tok: Tokenizer, dtype: np.dtype) -> np.ndarray:
    """The ids of the pieces, with <|endoftext|> before each document; encoded on all cores."""
    texts = iter(tok.encode_batch([piece.text for piece in chunk if isinstance(piece.text, str)]))
    convs = iter(render_all([piece.text for piece in chunk if not isinstance(piece.text, str)], tok))
    parts = []
    for piece in chunk:
        if isinstance(piece.text, str):
            parts += [np.array([tok.eot] * piece.first, dtype), np.array(next(texts), dtype)]
        else:
            parts.append(np.array(next(convs), dtype))  # begins with <|endoftext|> itself
    return np.concatenate(parts)


class Counts(NamedTuple):
    """The size of a part of the corpus."""

    documents: int
    tokens: int
    bytes: int  # of the text in UTF-8, for bits per byte


def _split(file: IO[bytes], dtype: np.dtype, tok: Tokenizer, total: Counts) -> tuple[str, Counts]:
    """The boundary nearest to TRAIN_SHARE of the bytes, as (what it separates, size of the part before it).

    A boundary of documents that is near is preferred, then one of lines; otherwise any will do, even one of tokens. The
    part before it is empty if there is almost no text.
    """
    lengths = tok.byte_lengths()
    pieces = [tok.token_bytes(token) for token in range(tok.vocab_size)]
    ends_line = np.array([piece.endswith(b"\n") for piece in pieces]) & (lengths > 0)
    begins_word = np.array([not piece[:1].isspace() for piece in pieces]) & (lengths > 0)
    begins_char = np.array([piece[0] & 0xC0 != 0x80 for piece in pieces]) & (lengths > 0)
    nearest: dict[str, tuple[float, Counts]] = {}
    last, seen = tok.eot, Counts(0, 0, 0)
    file.seek(0)
    # Not memory-mapped, as mapped pages would count as memory of this process.
    while len(ids := np.fromfile(file, dtype, TOKENS)):
        previous = np.concatenate([[last], ids[:-1]])
        begins = ids == tok.eot
        documents = seen.documents + np.cumsum(begins)
        ends = seen.bytes + np.cumsum(lengths[ids])
        starts = ends - lengths[ids]
        distances = np.abs(starts / max(total.bytes, 1) - TRAIN_SHARE)
        for unit, at_boundary in (
            ("document", begins & (starts > 0)),
            ("line", ends_line[previous] & begins_word[ids]),
            ("token", (lengths[previous] > 0) & begins_char[ids]),
        ):
            if len(at := np.flatnonzero(at_boundary)):
                i = at[np.argmin(distances[at])]
                before = Counts(int(documents[i] - begins[i]), seen.tokens + int(i), int(starts[i]))
                found = (float(distances[i]), before)
                nearest[unit] = min(nearest.get(unit, found), found)
        last, seen = ids[-1], Counts(int(documents[-1]), seen.tokens + len(ids), int(ends[-1]))
    for unit, tolerance in (("document", 0.05), ("line", 0.05), ("document", 0.4), ("line", 0.4), ("token", 1)):
        if unit in nearest and nearest[unit][0] <= tolerance:
            return unit, nearest[unit][1]
    return "none", Counts(0, 0, 0)
