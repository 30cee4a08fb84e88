"""Conversations as tokens: the chat template, the files of a prepared question/answer set, and its batches.

A conversation becomes `<|endoftext|> [<|context|> passage] (<|user|> text <|assistant|> text <|end|>)*`.
Training, evaluation and chat all use `render` and `render_prompt`, so a model always sees the format it was trained on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..config import UserError
from ..files import atomic_write, scratch
from .conversation import IDK, Conversation, Turn, ask, from_record, read_qa, to_record
from .packing import Batch, MarkIds, Stream, answer_mask, epoch_order, fill, packed

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

__all__ = [
    "IDK", "Conversation", "QAData", "Turn", "answer_mask", "ask", "from_record", "load_qa", "qa_batch",
    "qa_val_batches", "read_qa", "render", "render_all", "render_prompt", "to_record", "write_qa",
]  # fmt: skip

VAL_SHARE = 10  # one group in this many is held out if the set has no validation split of its own
CHUNK = 512  # conversations encoded at a time: enough work for all cores, little memory


def _texts(conv: Conversation) -> list[str]:
    return ([conv.context] if conv.context else []) + [turn.text for turn in conv.turns]


def _join(conv: Conversation, encoded: Iterator[list[int]], tok: Tokenizer) -> list[int]:
    """The chat template: each special token that begins a text is followed by the next of the `encoded` texts."""
    ids = [tok.eot]
    if conv.context:
        ids += [tok.context, *next(encoded)]
    for turn in conv.turns:
        if turn.role == "user":
            ids += [tok.user, *next(encoded)]
        else:
            ids += [tok.assistant, *next(encoded), tok.end]
    return ids


def render(conv: Conversation, tok: Tokenizer) -> list[int]:
    """The token ids of a conversation. The special tokens are single ids, which no text that a user types can produce."""
    return _join(conv, map(tok.encode, _texts(conv)), tok)


def render_all(convs: list[Conversation], tok: Tokenizer) -> list[list[int]]:
    """`render` of each conversation, on all cores; repeated texts, such as passages, are encoded once."""
    texts = list(dict.fromkeys(text for conv in convs for text in _texts(conv)))
    encoded = dict(zip(texts, tok.encode_batch(texts), strict=True))
    return [_join(conv, map(encoded.__getitem__, _texts(conv)), tok) for conv in convs]


def render_prompt(conv: Conversation, tok: Tokenizer) -> list[int]:
    """The prompt: the tokens up to the <|assistant|> after the last question.

    If that question has an answer, it is left out, so that the prompt is a prefix of `render(conv)`.
    """
    asked = replace(conv, turns=conv.turns[:-1]) if conv.answered else conv
    return [*render(asked, tok), tok.assistant]


def write_qa(
    convs: Iterable[Conversation],
    folder: Path,
    name: str,
    tok: Tokenizer,
    *,
    block_size: int,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write qa_input.json (all conversations, for people), qa_train.bin, qa_val.bin (flat ids), qa_val.jsonl (records, to
    score answers) and, last, meta.json.

    Conversations whose split is not "train" are held out. If there are none, a tenth of the passages (or of the questions,
    without passages) is held out, always the same. If there is a split "val", qa_val.bin has only that: the validation
    loss selects the best weights, so the other splits, which are tests, must not be part of it. qa_val.jsonl has all
    held-out conversations. Conversations of more than block_size + 1 tokens or without an answer are dropped and counted.

    Returns the content of meta.json, including `origin`, which describes the source of `convs`. The text is never in memory
    as a whole. Raises UserError if nothing is left for training or validation. The files in `folder` are replaced only
    when all new ones are complete.
    """
    folder = Path(folder)
    dtype = np.dtype(np.uint16 if tok.vocab_size <= 2**16 else np.uint32)
    # Which conversations are held out is known only at the end: until then all of them wait in nameless files.
    with scratch(folder.parent) as waiting, scratch(folder.parent) as shown:
        kept, dropped = _spool(_copied(convs, shown), waiting, name, tok, block_size, dtype)
        held_out = _held_out(kept, name)
        waiting.seek(0)
        shown.seek(0)
        counts = _publish(waiting, shown, kept, held_out, folder, tok, dtype)
    meta = {
        "name": name,
        "block_size": block_size,
        "dtype": dtype.name,
        "tokenizer_name": tok.name,
        "tokenizer_fingerprint": tok.fingerprint,
        **(origin or {}),
        "marks": MarkIds(tok.eot, tok.context, tok.user, tok.assistant, tok.end)._asdict(),
        **counts,
        **dropped,
    }
    with atomic_write(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=1)
    return meta


def _copied(convs: Iterable[Conversation], file: IO[bytes]) -> Iterator[Conversation]:
    """The same, written to `file` on the way as a JSON list with a record in each line."""
    comma = b"[\n"
    for conv in convs:
        file.write(comma + json.dumps(to_record(conv), ensure_ascii=False).encode("utf-8", "replace"))
        comma = b",\n"
        yield conv
    file.write(b"\n]\n")


def _digest(text: str) -> int:
    text = text.strip().casefold()
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class _Kept(NamedTuple):
    """A conversation in the temporary file: split, digests of passage and first question, ids, bytes of its record."""

    split: str
    passage: int
    question: int
    n_ids: int
    n_record: int


def _spool(
    convs: Iterable[Conversation],
    file: IO[bytes],
    name: str,
    tok: Tokenizer,
    block_size: int,
    dtype: np.dtype,
) -> tuple[list[_Kept], dict[str, Any]]:
    """Write ids and JSON record of each usable conversation to `file`: (these conversations, counts of those dropped)."""
    kept: list[_Kept] = []
    too_long, unanswered = 0, 0
    example, shortest = "", 0
    convs = iter(convs)
    while chunk := list(islice(convs, CHUNK)):
        for conv, ids in zip(chunk, render_all(chunk, tok), strict=True):
            if not conv.answered:
                unanswered += 1
            elif len(ids) > block_size + 1:
                too_long += 1
                shortest = min(shortest or len(ids), len(ids))
                example = example or f"{conv.question[:80]} ({len(ids)} tokens)"
            else:
                record = json.dumps(to_record(conv)).encode()
                file.write(np.array(ids, dtype=dtype).tobytes() + record)
                first = _digest(conv.turns[0].text)
                passage = _digest(conv.context) if conv.context else first
                kept.append(_Kept(conv.split, passage, first, len(ids), len(record)))
    if not kept and too_long:
        raise UserError(
            f"none of the {too_long} conversations of {name} fits block_size {block_size}; "
            f"choose a model with a block_size of at least {shortest - 1}"
        )
    if not kept:
        raise UserError(f"{name} has no answered questions; add some")
    return kept, {"dropped": too_long, "dropped_example": example, "unanswered": unanswered}


def _held_out(kept: list[_Kept], name: str) -> np.ndarray:
    """(conversations,) bool: which conversations are held out."""
    own = np.array([each.split != "train" for each in kept])
    if own.all():
        raise UserError(f"{name} has no conversation to train on; give some the split 'train'")
    if own.any():
        return own
    for groups in np.array([(each.passage, each.question) for each in kept], dtype=np.uint64).T:
        names = np.unique(groups)  # sorted by digest: an order that has nothing to do with the text
        if len(names) > 1:
            return np.isin(groups, names[: max(1, len(names) // VAL_SHARE)])
    raise UserError(f"{name} has one question only; add another, so that one can be held out")


def _for_loss(kept: list[_Kept], held_out: np.ndarray) -> np.ndarray:
    """(conversations,) bool: which of the held-out conversations the validation loss is computed on."""
    named = np.array([each.split == "val" for each in kept])
    return named if named.any() else held_out


def _publish(
    waiting: IO[bytes],
    shown: IO[bytes],
    kept: list[_Kept],
    held_out: np.ndarray,
    folder: Path,
    tok: Tokenizer,
    dtype: np.dtype,
) -> dict[str, Any]:
    """Write the four files from what `_spool` wrote; returns the counts of both splits and a fingerprint."""
    counts = {split: {"conversations": 0, "tokens": 0, "supervised": 0} for split in ("train", "val")}
    fingerprint = hashlib.sha256()
    with (
        # Put in place from the last to the first. The mapped files, which Windows may refuse to replace, go first.
        atomic_write(folder / "qa_input.json") as people,
        atomic_write(folder / "qa_val.jsonl") as records,
        atomic_write(folder / "qa_train.bin") as train,
        atomic_write(folder / "qa_val.bin") as val,
    ):
        for_loss = _for_loss(kept, held_out).tolist()
        for each, is_val, is_loss in zip(kept, held_out.tolist(), for_loss, strict=True):
            ids = np.frombuffer(waiting.read(each.n_ids * dtype.itemsize), dtype)
            record = waiting.read(each.n_record)
            fingerprint.update(bytes([is_val]) + ids.tobytes())
            if is_val:
                if each.split == "train":
                    record = json.dumps({**json.loads(record), "split": "val"}).encode()
                records.write(record + b"\n")
                if not is_loss:
                    continue
            (val if is_val else train).write(ids.tobytes())
            count = counts["val" if is_val else "train"]
            count["conversations"] += 1
            count["tokens"] += len(ids)
            count["supervised"] += int(answer_mask(ids, tok).sum())
        shutil.copyfileobj(shown, people)
        # From here until the new meta.json the folder counts as not prepared: old and new files never mix.
        (folder / "meta.json").unlink(missing_ok=True)
    return {**counts, "fingerprint": fingerprint.hexdigest()[:16]}


@dataclass(frozen=True, eq=False)
class QAData:
    """A prepared question/answer set."""

    folder: Path
    meta: dict[str, Any]
    train: Stream
    val: Stream

    @functools.cached_property
    def val_conversations(self) -> list[Conversation]:
        """All held-out conversations, of every split, with all their accepted answers."""
        return list(read_qa(self.folder / "qa_val.jsonl"))


def load_qa(folder: Path) -> QAData:
    """The set that `write_qa` wrote, memory-mapped. Raises UserError if it is missing or incomplete."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        marks = MarkIds(**meta["marks"])
        streams = {}
        for split in ("train", "val"):
            ids = np.memmap(folder / f"qa_{split}.bin", dtype=meta["dtype"], mode="r")
            streams[split] = Stream.of(ids, marks)
            if (len(ids), len(streams[split])) != (meta[split]["tokens"], meta[split]["conversations"]):
                raise ValueError(f"qa_{split}.bin is not the file that meta.json describes")
    except FileNotFoundError as error:
        raise UserError(f"no prepared questions in {folder}; run `nanochat prepare`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the questions in {folder} are damaged ({error}); prepare them again") from error
    return QAData(folder, meta, **streams)


def qa_batch(data: QAData, *, seed: int, step: int, batch_size: int, block_size: int) -> Batch:
    """The batch (x, y, docs) of a training step, each (B, T) int64: see `packing.fill`. It depends on (seed, step) only.

    Conversations are shuffled and packed into rows once for each seed. An epoch visits every row, and so every
    conversation, once; each epoch has an order of its own. A batch at the end of an epoch is completed with the first rows
    of the next. Raises UserError if a conversation is longer than a row.
    """
    packing = packed(data.train, block_size, seed)
    n = len(packing.starts) - 1
    places = range(step * batch_size, (step + 1) * batch_size)
    rows = [packing.row(epoch_order(n, seed, place // n)[place % n]) for place in places]
    return fill(data.train, rows, block_size)


def qa_val_batches(data: QAData, batch_size: int, block_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The validation rows, always the same, in batches like those of `qa_batch`; the last one may be smaller.

    If there are more than `limit` batches, evenly spaced rows of the whole set are used, since files are often sorted by
    topic.
    """
    packing = packed(data.val, block_size, None)
    n = len(packing.starts) - 1
    wanted = n if limit is None else min(limit * batch_size, n)
    chosen = np.arange(wanted) * n // wanted
    for at in range(0, len(chosen), batch_size):
        yield fill(data.val, [packing.row(r) for r in chosen[at : at + batch_size]], block_size)
