"""Checks for the exercises of notebook 02, building the GPT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import ModelConfig
from ..model import count_params
from . import compare, exercise


@exercise(
    "02.softmax",
    praise="subtracting the largest score does not change the ratios, and nothing can overflow any more.",
    hints=(
        "Start with the definition: exp of each score, divided by the sum of them all.",
        "exp(1000) is too large for a float: it becomes inf, and inf / inf is nan. "
        "What happens to the result if you subtract the same number from all scores?",
        "scores - scores.max() makes the largest score 0, so that the largest exp is 1.",
    ),
)
def _softmax(answer: Callable[[Tensor], Tensor]) -> str | None:
    for scores in ([0.0, 0.0], [1.0, 2.0, 3.0], [1000.0, 1001.0], [-1000.0, 0.0]):
        row = torch.tensor(scores)
        if wrong := compare(f"softmax(tensor({scores}))", answer(row.clone()), row.softmax(dim=0)):
            return wrong
    return None


@exercise(
    "02.window_mask",
    praise="with a window the cost of attention grows with the length of the text, not with its square.",
    hints=(
        "Row i is what position i may look at. Print torch.ones(5, 5).tril() and see which True are too many.",
        "Position i may look at j when j <= i and i - j < window. torch.arange(T)[:, None] and torch.arange(T)[None] "
        "are i and j.",
        "A lower triangle without a lower triangle further down: ones.tril() & ~ones.tril(-window).",
    ),
)
def _window_mask(answer: Callable[[int, int], Tensor]) -> str | None:
    for T, window in ((4, 2), (5, 1), (3, 3), (4, 9)):
        i, j = torch.arange(T)[:, None], torch.arange(T)[None]
        wanted = ((j <= i) & (i - j < window)).int()
        got = answer(T, window)
        got = got.int() if isinstance(got, Tensor) else got
        if wrong := compare(f"window_mask({T}, {window})", got, wanted):
            return wrong
    return None


@exercise(
    "02.count",
    praise="you can now read a model's size off its shape, and see that width counts twice and depth once.",
    hints=(
        "Go through the model from input to output: wte is V x C, wpe is T x C. The head is wte again, so it is free.",
        "A block has two norms of 2C each; attention C x 3C + 3C and C x C + C; the MLP C x 4C + 4C and 4C x C + C.",
        "V*C + T*C + L*(12*C*C + 13*C) + 2*C, where the last 2*C is the norm before the head.",
    ),
)
def _count(answer: Callable[[int, int, int, int], int]) -> str | None:
    for V, T, L, C in ((10, 4, 1, 8), (512, 64, 3, 32), (50257, 1024, 12, 768)):
        wanted = count_params(ModelConfig(V, T, n_layer=L, n_head=2, n_embd=C, arch="gpt2"))
        if wrong := compare(f"gpt2_params(V={V}, T={T}, L={L}, C={C})", answer(V, T, L, C), wanted, tolerance=0):
            return wrong
    return None


@exercise(
    "02.bits_per_byte",
    praise="totals first, then one division: long tokens must weigh more, since they stand for more text.",
    hints=(
        "Bits are nats divided by log(2). How many bits does the whole text take, and how many bytes does it have?",
        "Divide the sum of the losses by the sum of the bytes. The mean of the tokens' own quotients is another "
        "number: it counts a token of one byte as much as one of ten.",
        "sum(nats) / math.log(2) / sum(n_bytes)",
    ),
)
def _bits_per_byte(answer: Callable[[Sequence[float], Sequence[int]], float]) -> str | None:
    for nats, n_bytes in (([math.log(2)], [1]), ([1.0, 3.0], [1, 7]), ([0.5, 2.0, 2.5], [4, 1, 3])):
        wanted = sum(nats) / math.log(2) / sum(n_bytes)
        shown = [round(value, 3) for value in nats]
        if wrong := compare(f"bits_per_byte({shown}, {n_bytes})", answer(list(nats), list(n_bytes)), wanted):
            return wrong
    return None
