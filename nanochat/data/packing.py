"""Packing: rows of equal length filled with whole conversations, and the mask of the tokens that carry loss.

Works on token ids only: a conversation is a sequence of ids that starts with `eot` (`questions.py` makes it).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from ..config import UserError

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, docs

IGNORE = -1  # a target that carries no loss
SHELF = 64  # conversations to choose from while a row is packed: more would hardly reduce the padding


class Marks(Protocol):
    """The special token ids that structure a conversation: a `Tokenizer` or a `MarkIds`."""

    @property
    def eot(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def user(self) -> int: ...
    @property
    def assistant(self) -> int: ...
    @property
    def end(self) -> int: ...


class MarkIds(NamedTuple):
    """The special token ids of a tokenizer, without the tokenizer."""

    eot: int
    context: int
    user: int
    assistant: int
    end: int


def answer_mask(ids: np.ndarray, marks: Marks) -> np.ndarray:
    """A boolean mask of the shape of `ids`, (N,) or (B, T): True for answer tokens and the <|end|> after them.

    It is False for <|assistant|>, which is part of the prompt and never generated, and for everything before the first
    special token of a row. A row may hold several conversations.
    """
    ids = np.asarray(ids)
    special = np.zeros(ids.shape, dtype=bool)
    for mark in (marks.eot, marks.context, marks.user, marks.assistant, marks.end):
        special |= ids == mark  # np.isin is much slower for so few values
    # A position is inside an answer if the last special token before it is <|assistant|>.
    last = np.maximum.accumulate(np.where(special, np.arange(ids.shape[-1]), -1), axis=-1)[..., :-1]
    inside = np.zeros(ids.shape, dtype=bool)
    # Before the first special token, position 0 is used in its place: it is then an ordinary token.
    inside[..., 1:] = np.take_along_axis(ids, np.maximum(last, 0), -1) == marks.assistant
    return inside & (~special | (ids == marks.end))


@dataclass(frozen=True, eq=False)
class Stream:
    """Concatenated conversations: conversation i is `ids[starts[i] : starts[i + 1]]`."""

    ids: np.ndarray  # (N,), perhaps memory-mapped
    starts: np.ndarray  # (conversations + 1,) int64
    marks: MarkIds

    @classmethod
    def of(cls, ids: np.ndarray, marks: MarkIds) -> Stream:
        """The stream of `ids`, in which each conversation starts with <|endoftext|>."""
        return cls(ids, np.append(np.flatnonzero(ids == marks.eot), len(ids)), marks)

    def __len__(self) -> int:
        return len(self.starts) - 1


class Packing(NamedTuple):
    """The rows of an epoch: row r holds the conversations `order[starts[r] : starts[r + 1]]`."""

    order: np.ndarray  # (conversations,) a permutation of their numbers
    starts: np.ndarray  # (rows + 1,)

    def row(self, r: int) -> np.ndarray:
        """The numbers of the conversations in row r."""
        return self.order[self.starts[r] : self.starts[r + 1]]


def pack(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Packing:
    """Put whole conversations of `lengths` tokens into rows of at most `capacity` tokens, roughly in the given order.

    The longest of the next `SHELF` conversations that still fits is added to the row; if none fits, a new row begins.
    Every length must be at most `capacity`.
    """
    # Sorted by (length, -position): of equal lengths, the one earliest in the order comes last and is taken first.
    coming = zip(lengths[order].tolist(), range(0, -len(order), -1), strict=True)
    shelf = sorted(islice(coming, SHELF))
    places: list[int] = []
    starts = [0]
    room = capacity
    while shelf:
        at = bisect_right(shelf, (room, 0)) - 1
        if at < 0:
            starts.append(len(places))
            room = capacity
            continue
        length, place = shelf.pop(at)
        places.append(-place)
        room -= length
        if (following := next(coming, None)) is not None:
            insort(shelf, following)
    starts.append(len(places))
    return Packing(order[places], np.array(starts, dtype=np.int64))


def shuffled(n: int, seed: int, number: int) -> np.ndarray:
    """A random permutation of 0…n-1 that depends on (seed, number) only, so any of them can be drawn directly."""
    key = np.array([seed % 2**64, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


@lru_cache(maxsize=4)
def packed(stream: Stream, block_size: int, seed: int | None) -> Packing:
    """Pack all conversations into rows of block_size + 1 tokens: shuffled, or in file order if `seed` is None.

    Raises UserError if a conversation is longer than a row.
    """
    lengths = np.diff(stream.starts)
    if lengths.max() > block_size + 1:
        raise UserError(
            f"a conversation of {lengths.max()} tokens does not fit block_size {block_size}; "
            "prepare the questions again for this model"
        )
    order = np.arange(len(stream)) if seed is None else shuffled(len(stream), seed, 0)
    return pack(lengths, order, block_size + 1)


@lru_cache(maxsize=4)
def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The random order in which an epoch visits its rows."""
    return shuffled(rows, seed, epoch + 1)


def fill(stream: Stream, rows: list[np.ndarray], block_size: int) -> Batch:
    """The batch (x, y, docs), each (B, T) int64 with T = block_size, of rows given as conversation numbers.

    A target y is the next token of x if that is an answer token or its <|end|>, else -1. docs numbers the conversations
    of a row from 0; the padding (eot) at the end of the row has the next number.
    """
    ids = np.full((len(rows), block_size + 1), stream.marks.eot, dtype=np.int64)
    docs = np.empty_like(ids)
    for r, conversations in enumerate(rows):
        at = 0
        for doc, conversation in enumerate(conversations):
            piece = stream.ids[stream.starts[conversation] : stream.starts[conversation + 1]]
            ids[r, at : at + len(piece)] = piece
            docs[r, at : at + len(piece)] = doc
            at += len(piece)
        docs[r, at:] = len(conversations)
    # An eot follows each conversation, that of the next one or of the padding. It is masked, so no target belongs to
    # another conversation than its input.
    y = np.where(answer_mask(ids, stream.marks), ids, IGNORE)[:, 1:]
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(y), np.ascontiguousarray(docs[:, :-1])
