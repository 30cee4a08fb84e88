"""Preparing a corpus: from text to token files, and from token files to batches.

A corpus becomes one stream of ids, `<|endoftext|> document <|endoftext|> document … <|endoftext|>`, with a mark before and
after each document. The first nine tenths are for training, the rest for validation. Corpora may be of any size: only a
few megabytes are in memory at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, paths
from ..config import UserError
from ..tokenizer import Tokenizer, gpt2, parse_spec, train_bpe
from . import jsonfiles, sources
from .questions import QAData, load_qa, write_qa
from .sources import Source
from .textfiles import Piece
from .tokenfiles import CHUNK, length, plain_texts, write

FORMAT = 2  # increase it when a change makes other files from the same source: then prepared data are made again
SAMPLE = (
    10_000_000  # characters from the beginning of a corpus that train a tokenizer: more would take much more memory
)

Progress = Callable[[int, "int | None", str], None]


@dataclass(frozen=True, eq=False)
class CorpusData:
    """A prepared corpus. `train` and `val` are memory-mapped ids, `meta` is what meta.json says."""

    name: str
    folder: Path
    train: np.ndarray
    val: np.ndarray
    meta: dict[str, Any]
    tokenizer: Tokenizer
    reused: bool = False  # whether it was already prepared


def prepare_corpus(
    corpus: str | Source,
    tokenizer: str = "bpe:1024",
    *,
    seed: int = 0,
    size: str = "default",
    progress: Progress | None = None,
) -> CorpusData:
    """Make data/<corpus>/ ready for pretraining; `corpus` is a name, a path, a URL, or what `sources.resolve` made of one.

    Writes pretrain_input.txt (for people), pretrain_train.bin, pretrain_val.bin, the tokenizer and, last,
    meta.json. Reused if source and tokenizer are unchanged. `seed` and `size` are the almanac's.
    `progress(done bytes, total bytes or None, text)` is called from time to time. Raises UserError, and leaves an earlier
    preparation unchanged, if the corpus cannot be read or has too little text.
    """
    report = progress or (lambda done, total, text: None)
    parse_spec(tokenizer)
    source = sources.resolve(corpus, size=size, seed=seed)
    folder, path = source.folder, source.path
    suffix = jsonfiles.suffix(path) if path else ""  # it decides how the file is read
    derived = {
        "format": FORMAT, "source_fingerprint": source.fingerprint, "suffix": suffix, "tokenizer_spec": tokenizer
    }  # fmt: skip
    if (data := _prepared(folder, derived)) is not None:
        _report_end(report, data)
        return data
    total = path.stat().st_size if path else None
    pieces = _reported(source.pieces(), total, report)
    with _all_or_nothing(folder):
        tok, pieces = _tokenizer(tokenizer, pieces)
        dtype = np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)
        meta = {"name": source.name, "corpus": source.origin, "size": size, **derived, "dtype": dtype.name}
        meta |= {"tokenizer_fingerprint": tok.fingerprint, "vocab_size": tok.vocab_size}
        meta |= write(pieces, folder, source.name, tok, dtype)
        tok.save(folder)
        with files.atomic_write(folder / "meta.json", "w") as file:
            json.dump(meta, file, indent=1)
    data = load_corpus(folder)
    _report_end(report, data)
    return data


def load_corpus(folder: Path) -> CorpusData:
    """The corpus that `prepare_corpus` made. Raises UserError if it is missing, damaged or inconsistent."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        dtype, stored = meta["dtype"], meta["tokenizer_fingerprint"]
        tokens = {}
        for split in ("train", "val"):
            tokens[split] = np.memmap(folder / f"pretrain_{split}.bin", dtype=dtype, mode="r")
            if len(tokens[split]) != meta[split]["tokens"]:
                raise ValueError(f"pretrain_{split}.bin is not the file that meta.json describes")
    except FileNotFoundError as error:
        raise UserError(f"no prepared corpus in {folder}; run `nanochat prepare --corpus {folder.name}`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the corpus in {folder} is damaged ({error}); run `nanochat prepare --corpus {folder.name}`"
        ) from error
    tok = Tokenizer.load(folder)
    if tok.fingerprint != stored:
        raise UserError(
            f"meta.json in {folder} names tokenizer {stored}, but tokenizer.json is {tok.fingerprint}; "
            f"run `nanochat prepare --corpus {folder.name}`"
        )
    return CorpusData(meta["name"], folder, tokens["train"], tokens["val"], meta, tok)


def last_prepared() -> CorpusData | None:
    """The corpus that was prepared (or found prepared) last; None if there is none."""
    tokens = (paths.home() / "data").glob("*/pretrain_train.bin")
    metas = paths.newest_first(file.with_name("meta.json") for file in tokens)
    return load_corpus(metas[0].parent) if metas else None


def prepare_qa(qa: str | Source, tok: Tokenizer, block_size: int, *, seed: int = 0, size: str = "default") -> QAData:
    """Prepare a question/answer set for finetuning with `tok`; `qa` is given like a corpus.

    It is prepared by `questions.write_qa` in the folder of its Source, and reused if source, tokenizer, block size and
    format are unchanged. Raises UserError, and leaves an earlier preparation unchanged, if the set cannot be read or has
    nothing to train on.
    """
    source = sources.resolve(qa, "qa", size=size, seed=seed)
    folder = source.folder
    derived = {
        "format": FORMAT, "source_fingerprint": source.fingerprint, "tokenizer_fingerprint": tok.fingerprint,
        "block_size": block_size,
    }  # fmt: skip
    with contextlib.suppress(UserError):
        if derived.items() <= (data := load_qa(folder)).meta.items():
            _use(folder)
            return data
        del data  # Windows replaces no file that is still mapped
    with _all_or_nothing(folder):
        origin = {"format": FORMAT, "qa": source.origin, "source_fingerprint": source.fingerprint}
        write_qa(source.conversations(), folder, source.name, tok, block_size=block_size, origin=origin)
    return load_qa(folder)


def batch(
    tokens: np.ndarray, *, seed: int, step: int, batch_size: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A training batch (x, y), each (B, T) int64: random windows, and the next token of each position.

    It depends on (seed, step) only. Raises UserError if there are fewer than block_size + 1 tokens.
    """
    n_starts = _n_starts(tokens, block_size)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step])))
    return _windows(tokens, rng.integers(n_starts, size=batch_size), block_size)


def val_windows(tokens: np.ndarray, block_size: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The validation windows (x, y), each (N, T) int64: non-overlapping, at most `limit` of them, evenly spaced.

    Raises UserError if there are fewer than block_size + 1 tokens.
    """
    n = (_n_starts(tokens, block_size) - 1) // block_size + 1
    chosen = np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit
    return _windows(tokens, chosen * block_size, block_size)


def _n_starts(tokens: np.ndarray, block_size: int) -> int:
    if len(tokens) < block_size + 1:
        raise UserError(
            f"the corpus has a split of {len(tokens)} tokens, too short for windows of {block_size} + 1; "
            "take more text, a smaller vocabulary or a smaller block_size"
        )
    return len(tokens) - block_size


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    rows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    return rows[:, :-1], rows[:, 1:]


def _prepared(folder: Path, derived: dict[str, Any]) -> CorpusData | None:
    """The corpus in `folder` if its meta.json has the values of `derived`, else None."""
    with contextlib.suppress(UserError):
        data = load_corpus(folder)
        if derived.items() <= data.meta.items():
            _use(folder)
            return replace(data, reused=True)
    return None


def _use(folder: Path) -> None:
    """Make what is prepared in `folder` the newest: what was used last counts like what was prepared last."""
    with contextlib.suppress(PermissionError):  # it may be somebody else's, to be read only
        os.utime(folder / "meta.json")


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """If preparation fails, keep an earlier one that is still complete, and remove the folder if it did not exist before.

    Raises UserError if the system refuses to replace a file, as Windows does while the old one is memory-mapped.
    """
    existed, before = folder.is_dir(), _state(folder)
    meta = folder / "meta.json"
    said = meta.read_bytes() if meta.is_file() else None
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            if not existed:
                folder.rmdir()
            elif said is not None and not meta.is_file() and _state(folder) == before:
                with files.atomic_write(meta) as file:
                    file.write(said)
        if isinstance(error, PermissionError):
            raise UserError(
                f"cannot replace the files in {folder} ({error.strerror or error}); shut down the kernels of all notebooks "
                "that have used them, and whatever else trains on them, then prepare again"
            ) from error
        raise


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Tells whether a file of a prepared set, other than meta.json, has been replaced."""
    others = [file for file in folder.glob("[!.]*") if file.name != "meta.json"]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in others}


def _report_end(report: Progress, data: CorpusData) -> None:
    n_bytes = data.meta["train"]["bytes"] + data.meta["val"]["bytes"]
    report(n_bytes, n_bytes, f"{data.name} is prepared{' already' if data.reused else ''}")


def _reported(pieces: Iterable[Piece], total: int | None, report: Progress) -> Iterator[Piece]:
    said = done = 0
    for piece in pieces:
        yield piece
        done = piece.done or done + length(piece)
        if done - said > CHUNK // 4:
            report(done, total, "reading and encoding")
            said = done


def _tokenizer(spec: str, pieces: Iterator[Piece]) -> tuple[Tokenizer, Iterator[Piece]]:
    """(the tokenizer of `spec`, all pieces, including those that it was trained on)."""
    _, vocab_size = parse_spec(spec)
    if vocab_size is None:
        return gpt2(), pieces
    sample, n_chars = [], 0
    for piece in pieces:
        sample.append(piece)
        n_chars += length(piece)
        if n_chars >= SAMPLE:
            break
    tok = train_bpe(itertools.chain.from_iterable(map(plain_texts, sample)), vocab_size)
    return tok, itertools.chain(sample, pieces)
