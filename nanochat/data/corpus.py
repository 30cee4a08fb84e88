"""Preparing a corpus: from text to token files, and from token files to batches.

A corpus becomes one stream of ids, `<|endoftext|> document <|endoftext|> document … <|endoftext|>`, with a mark before and
after each document. The first nine tenths are for training, the rest for validation. Corpora may be of any size: only a
few megabytes are in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import paths
from ..config import UserError
from ..tokenizer import Tokenizer, gpt2, parse_spec, train_bpe
from . import download, jsonfiles, sources
from .questions import Conversation, QAData, load_qa, read_qa, to_record, write_qa
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
    corpus: str,
    tokenizer: str = "bpe:1024",
    *,
    seed: int = 0,
    size: str = "default",
    progress: Progress | None = None,
) -> CorpusData:
    """Make data/<corpus>/ ready for pretraining; `corpus` is a name, a path or a URL.

    Writes pretrain_input.txt (for people), pretrain_train.bin, pretrain_val.bin, the tokenizer and, last,
    meta.json. Reused if source and tokenizer are unchanged. `seed` and `size` are the almanac's.
    `progress(done bytes, total bytes or None, text)` is called from time to time. Raises UserError, and leaves an earlier
    preparation unchanged, if the corpus cannot be read or has too little text.
    """
    report = progress or (lambda done, total, text: None)
    parse_spec(tokenizer)
    name = sources.corpus_name(corpus)
    folder = paths.data_dir(name)
    path, fingerprint = _source(corpus, sources.CORPORA, size, seed)
    suffix = jsonfiles.suffix(path) if path else ""  # it decides how the file is read
    derived = {"format": FORMAT, "source_fingerprint": fingerprint, "suffix": suffix, "tokenizer_spec": tokenizer}
    if (data := _prepared(folder, derived)) is not None:
        _report_end(report, data)
        return data
    total = path.stat().st_size if path else None
    pieces = _reported(sources.pieces(corpus, size=size, seed=seed), total, report)
    with _all_or_nothing(folder):
        tok, pieces = _tokenizer(tokenizer, pieces)
        dtype = np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)
        meta = {"name": name, "corpus": sources.source_of(corpus), **derived, "dtype": dtype.name}
        meta |= {"tokenizer_fingerprint": tok.fingerprint, "vocab_size": tok.vocab_size}
        meta |= write(pieces, folder, name, tok, dtype)
        tok.save(folder)
        with paths.atomic_write(folder / "meta.json", "w") as file:
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
    folders = (path.parent for path in (paths.home() / "data").glob("*/pretrain_train.bin"))
    metas = [folder / "meta.json" for folder in folders if (folder / "meta.json").is_file()]
    return load_corpus(max(metas, key=lambda meta: meta.stat().st_mtime_ns).parent) if metas else None


def prepare_qa(qa: str, tok: Tokenizer, block_size: int, *, seed: int = 0, size: str = "default") -> QAData:
    """Make a question/answer set ready for finetuning with `tok`; `qa` is a name, a path or a URL.

    Its folder is data/<qa>, or data/<qa>_qa where the name is not registered or a corpus has it too. It holds
    qa_input.json (all conversations, for people) and what `questions.write_qa` makes, which is reused if source, tokenizer,
    block size and format are unchanged. Raises UserError, and leaves things as they were, for a set that cannot be read
    or is of no use.
    """
    name = sources.corpus_name(qa, sources.QA_SETS)
    folder = paths.data_dir(name if name in sources.QA_SETS.keys() - sources.CORPORA.keys() else f"{name}_qa")
    path, fingerprint = _source(qa, sources.QA_SETS, size, seed)
    derived = {
        "format": FORMAT, "source_fingerprint": fingerprint, "tokenizer_fingerprint": tok.fingerprint,
        "block_size": block_size,
    }  # fmt: skip
    with contextlib.suppress(UserError):
        if derived.items() <= (data := load_qa(folder)).meta.items():
            return data
        del data  # Windows replaces no file that is still mapped
    if path is None:
        from . import almanac

        convs = almanac.conversations(size, seed)
    else:
        convs = read_qa(path)
    with _all_or_nothing(folder), paths.atomic_write(folder / "qa_input.json", "w") as file:
        origin = {"format": FORMAT, "qa": sources.source_of(qa, sources.QA_SETS), "source_fingerprint": fingerprint}
        write_qa(_copied(convs, file), folder, name, tok, block_size=block_size, origin=origin)
    return load_qa(folder)


def _copied(convs: Iterable[Conversation], file: IO[str]) -> Iterator[Conversation]:
    """The same, written to `file` on the way as a JSON list with a record in each line."""
    comma = "[\n"
    for conv in convs:
        file.write(comma + json.dumps(to_record(conv), ensure_ascii=False))
        comma = ",\n"
        yield conv
    file.write("\n]\n")


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


def _source(spec: str, registry: dict[str, sources.Source], size: str, seed: int) -> tuple[Path | None, str]:
    """The file of a source, if it has one, and a fingerprint of all that decides what is in it."""
    if (path := sources.locate(spec, registry)) is not None:
        return path, download.sha256(path)[:16]
    from . import almanac

    digest = hashlib.sha256(f"{size} {seed}".encode())
    root = Path(almanac.__file__).parent
    for file in sorted(file for file in root.rglob("*") if file.suffix in (".py", ".tsv", ".txt")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return None, digest.hexdigest()[:16]


def _prepared(folder: Path, derived: dict[str, Any]) -> CorpusData | None:
    """The corpus in `folder` if its meta.json has the values of `derived`, else None."""
    with contextlib.suppress(UserError):
        data = load_corpus(folder)
        if derived.items() <= data.meta.items():
            os.utime(folder / "meta.json")  # for last_prepared
            return replace(data, reused=True)
    return None


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
                with paths.atomic_write(meta) as file:
                    file.write(said)
        if isinstance(error, PermissionError):
            raise UserError(
                f"cannot replace the files in {folder} ({error.strerror or error}); shut down the kernels of all notebooks "
                "that have used them, and whatever else trains on them, then prepare again"
            ) from error
        raise


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Tells whether a file of a prepared set, other than meta.json, has been replaced."""
    files = [file for file in folder.glob("[!.]*") if file.name != "meta.json"]
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


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
    kind, vocab_size = parse_spec(spec)
    if kind == "gpt2":
        return gpt2(), pieces
    sample, n_chars = [], 0
    for piece in pieces:
        sample.append(piece)
        n_chars += length(piece)
        if n_chars >= SAMPLE:
            break
    tok = train_bpe(itertools.chain.from_iterable(map(plain_texts, sample)), vocab_size)
    return tok, itertools.chain(sample, pieces)
