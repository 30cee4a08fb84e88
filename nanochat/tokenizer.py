"""The tokenizer: text to token ids and back, as a thin wrapper around tiktoken.

The vocabulary is GPT-2's or learned from a corpus, in both cases by byte-pair encoding (BPE; Sennrich et al. 2016,
arXiv:1508.07909; on bytes: Radford et al. 2019, section 2.2). Hugging Face's trainer learns the merges and tiktoken
applies them, so both vocabularies share one encoder and one file format.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
import tiktoken

from .config import UserError
from .files import atomic_write

if TYPE_CHECKING:
    import tokenizers

SPECIALS = ("<|endoftext|>", "<|context|>", "<|user|>", "<|assistant|>", "<|end|>")
MIN_VOCAB = 256 + len(SPECIALS)

# The pre-tokenization pattern: GPT-2's, but with digits in groups of at most two, so that a small vocabulary has a token
# for every group and splits all years alike. It avoids possessive quantifiers and `$`, which the trainer's regex engine
# (Oniguruma) interprets differently. Whitespace is matched at most 10,000 characters at a time: with an unbounded
# repetition, a million in a row overflow the stack of tiktoken's engine.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s{1,10000}(?!\S)|\s"

GPT2_FILES = tuple(
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")
)


class Tokenizer:
    """A byte-level BPE tokenizer. Ids 0…vocab_size-1 are byte sequences in merge order, then the special tokens.

    Encoding text never gives a special token: a typed "<|user|>" becomes several ordinary tokens. The code that
    assembles ids (`questions.render`, `corpus`) inserts the special tokens. Raises UserError for an incomplete
    vocabulary.
    """

    def __init__(self, name: str, ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int]) -> None:
        self.name = name
        self.pattern = pattern
        self.ranks = dict(ranks)
        self.specials = dict(specials)
        self.vocab_size = len(self.ranks) + len(self.specials)
        ids = sorted([*self.ranks.values(), *self.specials.values()])
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if ids != list(range(self.vocab_size)) or missing or set(self.specials) != set(SPECIALS):
            raise UserError(f"tokenizer {name!r} lacks ids, bytes or special tokens; prepare the corpus again")
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=self.ranks, special_tokens=self.specials
        )
        self._bytes = {token: piece for piece, token in self.ranks.items()}
        self._special_names = {token: special for special, token in self.specials.items()}
        self.eot, self.context, self.user, self.assistant, self.end = (self.specials[s] for s in SPECIALS)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over ranks, pattern and specials: all that affects the encoding."""
        return _fingerprint(self.to_state())

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, never special ones."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        # In groups, unlike tiktoken's own batches, which create a future per text: slower than encoding a short one.
        n_threads = os.cpu_count() or 1
        size = max(1, len(texts) // (4 * n_threads))
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(n_threads) as pool:
            encoded = pool.map(lambda group: [self.encode(text) for text in group], groups)
            return [ids for group in encoded for ids in group]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens. Incomplete characters and unknown ids become U+FFFD."""
        unknown = "\ufffd".encode()
        plain = (int(i) for i in ids if int(i) not in self._special_names)
        return b"".join(self._bytes.get(i, unknown) for i in plain).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token id, or the name of a special token. Raises UserError for an unknown id."""
        if (piece := self._bytes.get(int(token))) is not None:
            return piece
        if (special := self._special_names.get(int(token))) is not None:
            return special.encode()
        raise UserError(f"token id {token} does not exist; {self.name} has ids 0 to {self.vocab_size - 1}")

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: the number of bytes of text of each token, 0 for special tokens."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, piece in self._bytes.items():
            lengths[token] = len(piece)
        return lengths

    def to_state(self) -> dict[str, Any]:
        """The tokenizer as plain strings and ints, for checkpoints; the inverse of `from_state`."""
        return {
            "name": self.name,
            "pattern": self.pattern,
            "specials": dict(self.specials),
            "ranks": _dump_ranks(self.ranks),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a `to_state`. Raises UserError if something is missing or invalid."""
        try:
            ranks = _parse_ranks(state["ranks"])
            return cls(str(state["name"]), ranks, str(state["pattern"]), dict(state["specials"]))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the stored tokenizer is damaged ({error!r}); prepare the corpus again") from error

    def save(self, folder: Path) -> None:
        """Write `tokenizer.tiktoken` (base64 and rank of each token, tiktoken's format) and `tokenizer.json`."""
        state = self.to_state()
        with atomic_write(Path(folder) / "tokenizer.tiktoken", "w") as file:
            file.write(state.pop("ranks"))
        state |= {"vocab_size": self.vocab_size, "fingerprint": self.fingerprint}
        with atomic_write(Path(folder) / "tokenizer.json", "w") as file:
            json.dump(state, file, indent=1)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer saved in `folder`. Raises UserError if a file is missing, damaged or of another tokenizer."""
        folder = Path(folder)
        try:
            state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            state["ranks"] = (folder / "tokenizer.tiktoken").read_text(encoding="utf-8")
            stored, found = state["fingerprint"], _fingerprint(state)
        except OSError as error:
            raise UserError(f"no tokenizer in {folder} ({error.strerror}); prepare the corpus again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the tokenizer in {folder} is damaged ({error!r}); prepare the corpus again") from error
        if found != stored:
            raise UserError(
                f"the tokenizer in {folder} has fingerprint {found}, but tokenizer.json names {stored}; "
                "prepare the corpus again"
            )
        return cls.from_state(state)


def _fingerprint(state: Mapping[str, Any]) -> str:
    parts = (state["ranks"], state["pattern"], json.dumps(state["specials"], sort_keys=True))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _dump_ranks(ranks: Mapping[bytes, int]) -> str:
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ordered)


def _parse_ranks(lines: str) -> dict[bytes, int]:
    pairs = (line.split() for line in lines.splitlines())
    return {base64.b64decode(piece, validate=True): int(rank) for piece, rank in pairs}


def parse_spec(spec: str) -> tuple[str, int | None]:
    """("gpt2", None) or ("bpe", N) for "bpe:N"; raises UserError for anything else."""
    if spec == "gpt2":
        return "gpt2", None
    if match := re.fullmatch(r"bpe:([0-9]{1,7})", str(spec)):
        size = int(match[1])
        if size < MIN_VOCAB:
            raise UserError(
                f"tokenizer {spec!r} is too small; the bytes and special tokens alone need 'bpe:{MIN_VOCAB}'"
            )
        return "bpe", size
    raise UserError(f"unknown tokenizer {spec!r}; choose 'gpt2' or 'bpe:N' with N ids in all, such as 'bpe:1024'")


@functools.cache
def gpt2() -> Tokenizer:
    """GPT-2's vocabulary: the published ids 0…50256, then the other four special tokens (50,261 ids in all).

    tiktoken reads its two files from its cache or downloads them. Raises UserError if neither works.
    """
    try:
        published = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        wanted = " and ".join(f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in GPT2_FILES)
        raise UserError(
            f"GPT-2's vocabulary cannot be read ({type(error).__name__}); without a network, save {wanted} "
            "in one folder and set TIKTOKEN_CACHE_DIR to it, or take 'bpe:1024', learned from your corpus"
        ) from error
    ranks = published._mergeable_ranks
    specials = {special: len(ranks) + i for i, special in enumerate(SPECIALS)}
    # Bounded as in PATTERN: the ids are the published ones unless more than 10,000 whitespace characters follow each other.
    return Tokenizer("gpt2", ranks, published._pat_str.replace(r"\s+(?!\S)", r"\s{1,10000}(?!\S)"), specials)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary of `vocab_size` ids, including the 256 bytes and the special tokens.

    The same texts give the same tokenizer. It is smaller (see its `vocab_size`) if the texts have too few pairs that
    occur at least twice. Raises UserError for a `vocab_size` below 261.
    """
    parse_spec(f"bpe:{vocab_size}")
    trained = _train_hf(texts, vocab_size - len(SPECIALS))
    to_byte = {char: byte for byte, char in enumerate(_byte_alphabet())}
    ranks = {bytes([byte]): byte for byte in range(256)}
    # tiktoken merges the pair whose concatenation has the lowest rank, Hugging Face the pair with the lowest merge
    # number. Both agree because every token is made by one pair only: a piece of text is merged in the same order
    # wherever it occurs. test_tokenizer.py compares the two on unusual texts.
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        ranks.setdefault(bytes(to_byte[char] for char in left + right), len(ranks))
    specials = {special: len(ranks) + i for i, special in enumerate(SPECIALS)}
    return Tokenizer(f"bpe:{vocab_size}", ranks, PATTERN, specials)


def _train_hf(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Hugging Face's byte-level BPE trained on `texts`, without special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=list(_byte_alphabet()), show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    return model


def _byte_alphabet() -> str:
    """256 printable characters that stand for the bytes in Hugging Face's vocabularies (GPT-2's `bytes_to_unicode`)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in visible else next(spare)) for byte in range(256))


def _merge_once(pieces: list[bytes], ranks: Mapping[bytes, int], below: int) -> list[bytes] | None:
    """`pieces` with the leftmost pair of lowest rank merged; None if no pair has a rank below `below`."""
    pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
    rank, i = min(pairs, default=(below, 0))
    return None if rank >= below else [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


def merges(tok: Tokenizer) -> list[tuple[bytes, bytes]]:
    """The merges in order: the pair of tokens that each token beyond the single bytes was made from."""
    pairs = []
    for piece, rank in sorted(tok.ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in piece]
        while merged := _merge_once(parts, tok.ranks, rank):
            parts = merged
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def steps(tok: Tokenizer, word: str) -> list[list[bytes]]:
    """The pieces of `word` after each merge, from its single bytes to the tokens that `encode` gives.

    Longer text is split by the tokenizer's pattern first, and each piece is merged completely before the next.
    """
    words = [[bytes([byte]) for byte in piece.encode()] for piece in regex.findall(tok.pattern, word)]
    states = [[piece for parts in words for piece in parts]]
    for i in range(len(words)):
        while merged := _merge_once(words[i], tok.ranks, tok.vocab_size):
            words[i] = merged
            states.append([piece for parts in words for piece in parts])
    return states
