"""Baselines that a model must beat: n-gram predictions for text; majority and nearest-neighbor answers for questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .scoring import words

if TYPE_CHECKING:
    from ..data.questions import QAData
    from ..tokenizer import Tokenizer

MAX_TOKENS = 5_000_000  # at most this many training tokens are counted; sorting their pairs takes about 150 MB
MAX_PAIRS = 50_000  # at most this many training questions are searched
_PIECES = 100


def ngram_bits_per_byte(train: np.ndarray, x: np.ndarray, y: np.ndarray, byte_lengths: np.ndarray) -> dict[str, float]:
    """Bits per byte of n-gram models that predict each token of y (N, T) from at most the token x (N, T) before it.

    `uniform`: all tokens of the vocabulary are equally likely. `unigram`: frequencies in `train`, with add-one (Laplace)
    smoothing. `bigram`: frequencies after the token before, interpolated with the unigram by Witten-Bell smoothing
    (Witten and Bell 1991): (c(x, y) + t(x) p(y)) / (c(x) + t(x)), where t(x) counts the distinct tokens seen after x.
    `train` (M,) holds token ids, `byte_lengths` (V,) the number of bytes of each token.
    """
    vocab = len(byte_lengths)
    pieces = _sample(train)
    counts = np.bincount(pieces.ravel(), minlength=vocab)
    unigram = (counts + 1) / (counts.sum() + vocab)

    pairs, pair_counts = np.unique(pieces[:, :-1] * vocab + pieces[:, 1:], return_counts=True)
    first = pairs // vocab
    total = np.bincount(first, weights=pair_counts, minlength=vocab)  # c(x)
    distinct = np.bincount(first, minlength=vocab)  # t(x)

    x, y = x.ravel().astype(np.int64), y.ravel().astype(np.int64)
    wanted = x * vocab + y
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, pair_counts[at], 0)
    known = distinct[x] > 0  # the unigram alone predicts after a token that nothing ever followed
    weight = np.where(known, distinct[x], 1)
    bigram = (seen + weight * unigram[y]) / (total[x] + weight)

    n_bytes = max(int(byte_lengths[y].sum()), 1)
    bits = {
        "uniform": len(y) * np.log2(vocab),
        "unigram": -np.log2(unigram[y]).sum(),
        "bigram": -np.log2(bigram).sum(),
    }
    return {name: float(value / n_bytes) for name, value in bits.items()}


def _sample(tokens: np.ndarray) -> np.ndarray:
    """(pieces, tokens per piece) int64: all tokens, or MAX_TOKENS of them in evenly spaced pieces."""
    if len(tokens) <= MAX_TOKENS:
        return np.asarray(tokens, dtype=np.int64)[None]
    width = MAX_TOKENS // _PIECES
    starts = np.linspace(0, len(tokens) - width, _PIECES).astype(np.int64)
    return np.stack([np.asarray(tokens[at : at + width], dtype=np.int64) for at in starts])


def training_pairs(data: QAData, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(last question, its answer) of each training conversation; of more than MAX_PAIRS, an evenly spaced sample."""
    stream, pairs = data.train, []
    n = min(len(stream), MAX_PAIRS)
    for i in np.arange(n) * len(stream) // n:
        ids = stream.ids[stream.starts[i] : stream.starts[i + 1]].tolist()
        asked = len(ids) - ids[::-1].index(tokenizer.user)
        answered = len(ids) - ids[::-1].index(tokenizer.assistant)
        pairs.append((tokenizer.decode(ids[asked:answered]).strip(), tokenizer.decode(ids[answered:]).strip()))
    return pairs


def majority_baseline(pairs: Sequence[tuple[str, str]]) -> str:
    """The most common answer of the training pairs (of several, the first): the majority-class baseline."""
    return Counter(answer for _, answer in pairs).most_common(1)[0][0]


def nearest_baseline(pairs: Sequence[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """For each question, the answer to the most similar training question: retrieval without a model.

    Similarity is the cosine between sets of words weighted by inverse document frequency, log((n + 1) / df) (Sparck
    Jones 1972). Ties, and questions without a known word, take the first training question.
    """
    index: dict[str, list[int]] = {}
    bags = [set(words(question)) for question, _ in pairs]
    for i, bag in enumerate(bags):
        for word in bag:
            index.setdefault(word, []).append(i)
    postings = {word: np.array(places) for word, places in index.items()}
    weights = {word: np.log((len(pairs) + 1) / len(places)) ** 2 for word, places in postings.items()}
    norms = np.sqrt([sum(sorted(weights[word] for word in bag)) for bag in bags])
    nearest = []
    for question in questions:
        scores = np.zeros(len(pairs))
        for word in sorted(set(words(question)) & postings.keys()):
            scores[postings[word]] += weights[word]
        nearest.append(int(np.argmax(scores / np.maximum(norms, 1e-9))))
    return [pairs[i][1] for i in nearest]
