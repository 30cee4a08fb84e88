"""Rows of whole conversations: which tokens carry loss, and how rows of one length are filled.

Nothing here knows about text: a conversation is a run of token ids that starts with `eot` (`questions.py` makes it).
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
# So many conversations stand ready while a row is packed. Measured: the share of the rows that is no padding,
# for 60,000 conversations of random lengths in rows of 257 tokens.
#   on the shelf                     1     16     64    256
#   8 to 120 tokens, uniform      84.4   98.9   99.3   99.3 %
#   8 to 257 tokens, uniform      75.1   95.5   98.1   99.2 %
#   around 170, as in SQuAD       73.2   86.4   87.1   87.1 %   one leaves a gap, two rarely fit
# Packing them takes 0.05 s.
SHELF = 64


class Marks(Protocol):
    """The ids that structure a conversation. A `Tokenizer` has them, a `MarkIds` is only them."""

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
    eot: int
    context: int
    user: int
    assistant: int
    end: int


def answer_mask(ids: np.ndarray, marks: Marks) -> np.ndarray:
    """Bool, the shape of `ids` ((N,) or (B, T)): True exactly at answer tokens and the <|end|> after them.

    The <|assistant|> mark itself is False: the prompt brings it, the model never has to say it. Runs along
    the last axis, over one conversation or many; what comes before the first mark of a row is False.
    """
    ids = np.asarray(ids)
    special = np.zeros(ids.shape, dtype=bool)
    for mark in (marks.eot, marks.context, marks.user, marks.assistant, marks.end):
        special |= ids == mark  # np.isin takes ten times as long for a conversation
    # The special token last seen before each position decides: inside an answer it is <|assistant|>.
    last = np.maximum.accumulate(np.where(special, np.arange(ids.shape[-1]), -1), axis=-1)[..., :-1]
    inside = np.zeros(ids.shape, dtype=bool)
    # Before the first one, position 0 stands in: an ordinary token then.
    inside[..., 1:] = np.take_along_axis(ids, np.maximum(last, 0), -1) == marks.assistant
    return inside & (~special | (ids == marks.end))


@dataclass(frozen=True, eq=False)
class Stream:
    """Conversations one after the other: conversation i is `ids[starts[i] : starts[i + 1]]`."""

    ids: np.ndarray  # (N,), perhaps memory-mapped
    starts: np.ndarray  # (conversations + 1,) int64
    marks: MarkIds

    @classmethod
    def of(cls, ids: np.ndarray, marks: MarkIds) -> Stream:
        """Find where each conversation starts: at its <|endoftext|>."""
        return cls(ids, np.append(np.flatnonzero(ids == marks.eot), len(ids)), marks)

    def __len__(self) -> int:
        return len(self.starts) - 1


class Packing(NamedTuple):
    """Row r holds the conversations `order[starts[r] : starts[r + 1]]`."""

    order: np.ndarray  # (conversations,) each one once
    starts: np.ndarray  # (rows + 1,)

    def row(self, r: int) -> np.ndarray:
        return self.order[self.starts[r] : self.starts[r + 1]]


def pack(lengths: np.ndarray, order: np.ndarray, capacity: int) -> Packing:
    """Put whole conversations into rows of at most `capacity` tokens, taking them in about the given order.

    Of the next `SHELF` conversations the longest that still fits goes into the row; if none fits, a new row
    begins. Every length must be at most `capacity`.
    """
    # (length, -place in the order), sorted: the last of equal lengths has waited longest.
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
    """The permutation of 0…n-1 that belongs to (seed, number); none before it need be drawn."""
    key = np.array([seed % 2**64, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


@lru_cache(maxsize=4)
def packed(stream: Stream, block_size: int, seed: int | None) -> Packing:
    """All conversations in rows of block_size + 1 tokens: shuffled, or in file order if `seed` is None.

    Raises UserError if a conversation does not fit.
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
    """The order in which an epoch visits its rows."""
    return shuffled(rows, seed, epoch + 1)


def fill(stream: Stream, rows: list[np.ndarray], block_size: int) -> Batch:
    """(x, y, docs), each (B, T) int64, of rows given as conversation numbers.

    y is x one token later where that is an answer token or its <|end|>, -1 everywhere else. docs counts the
    conversations of a row from 0; the padding (eot) at its end has the next number.
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
    # After the end of a conversation comes an eot, of the next one or of the padding. The mask leaves it
    # out, so that no target belongs to another conversation than its input.
    y = np.where(answer_mask(ids, stream.marks), ids, IGNORE)[:, 1:]
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(y), np.ascontiguousarray(docs[:, :-1])
