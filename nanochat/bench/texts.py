"""Speed of tokenization, and peak memory of preparing corpora of different sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tiktoken

from .. import files
from ..config import UserError
from ..data import almanac
from ..data.textfiles import PIECE
from ..tokenizer import Tokenizer, gpt2, train_bpe
from .memory import peak_mb, torch_alone_mb
from .rows import Row, measured, unmeasured
from .timing import interleave, ratio

TOKENIZATION, PREPARATION = "tokenization", "preparation"
SIZES_MB = (10, 50, 200)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def _word(number: int) -> str:
    """An invented word for each number; larger numbers have longer words."""
    letters = ""
    while number:
        number, at = divmod(number, len(_SYLLABLES))
        letters += _SYLLABLES[at]
    return letters


def written_text(n_bytes: int) -> Iterator[str]:
    """Paragraphs of invented words, at least `n_bytes` in all; the same in every run.

    Word frequencies follow Zipf's law, so that new words keep appearing in texts of any length, and learning a vocabulary
    takes as much memory as for real text. A short text repeated would take much less.
    """
    draw = np.random.Generator(np.random.Philox(0))
    frequent = [_word(number) for number in range(1, 100_000)]
    while n_bytes > 0:
        numbers = draw.zipf(1.2, 10_000).clip(1, 2**40) - 1
        words = (frequent[number] if number < len(frequent) else _word(number + 1) for number in numbers.tolist())
        paragraph = " ".join(words) + ".\n\n"
        n_bytes -= len(paragraph)
        yield paragraph


def _stories(n_bytes: int) -> str:
    """The almanac's plain text, repeated up to `n_bytes` characters."""
    documents = [text for text in almanac.pretrain_documents("smoke") if isinstance(text, str)]
    text = "\n\n".join(documents)
    return (text * (n_bytes // len(text) + 1))[:n_bytes]


def tokenization(n_bytes: int = 8_000_000, rounds: int = 3) -> list[Row]:
    """Encoding speed in MB/s of our tokenizers (in pieces, on all cores) and of tiktoken (whole text, one core)."""
    text = _stories(n_bytes)
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    megabytes = len(text.encode()) / 1e6
    learned = train_bpe([text[:1_000_000]], 1024)
    plain = tiktoken.Encoding(
        "plain", pat_str=learned.pattern, mergeable_ranks=learned.ranks, special_tokens=learned.specials
    )
    rows = _against(learned, plain, text, pieces, megabytes, rounds)
    try:
        return [*rows, *_against(gpt2(), tiktoken.get_encoding("gpt2"), text, pieces, megabytes, rounds)]
    except UserError as error:
        return [*rows, unmeasured(TOKENIZATION, "encoding with gpt2", error)]


def _against(
    ours: Tokenizer, plain: tiktoken.Encoding, text: str, pieces: Sequence[str], megabytes: float, rounds: int
) -> list[Row]:
    seconds = interleave(
        {"ours": lambda: ours.encode_batch(pieces), "plain": lambda: plain.encode(text, disallowed_special=())}, rounds
    )
    how = (
        f"{megabytes:.0f} MB of text in pieces on all cores, {rounds} rounds in turns with tiktoken.encode of the whole"
    )
    return [
        measured(TOKENIZATION, f"encoding with {ours.name}", ratio([megabytes] * rounds, seconds["ours"]), "MB/s", how),
        measured(
            TOKENIZATION, f"against tiktoken.encode, {ours.name}", ratio(seconds["plain"], seconds["ours"]), "x", how
        ),
    ]


def preparation(sizes_mb: Sequence[float] = SIZES_MB) -> list[Row]:
    """Peak memory of `nanochat prepare` on files of several sizes."""
    rows = []
    for size in sizes_mb:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            with files.atomic_write(path, "w") as file:
                file.writelines(written_text(round(size * 1e6)))
            arguments = ["-m", "nanochat", "prepare", "--corpus", str(path), "--tokenizer", "bpe:1024"]
            peak, seconds = peak_mb(arguments, {"NANOCHAT_HOME": folder})
        how = (
            f"highest memory of `nanochat prepare` with a vocabulary learned from it, {size / seconds:.1f} MB/s in all"
        )
        rows.append(Row(PREPARATION, f"preparing {size} MB of text", peak, "MB", how, target=500.0, at_most=True))
    alone = "what a process holds that only imported torch: preparing needs none, training does"
    return [*rows, Row(PREPARATION, "torch alone, for comparison", torch_alone_mb(), "MB", alone)]
