"""Checks for the exercises of notebook 03, pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from . import compare, exercise

_FAULTS = {"A": "rate too high", "B": "one batch", "C": "healthy", "D": "not shifted"}


@exercise(
    "03.diagnose",
    praise="you needed the curve, the held-out loss and the samples: none of them alone tells all four apart.",
    hints=(
        "Begin with the extremes. Whose loss rises above that of knowing nothing? Whose falls far below everybody else's?",
        "Two fall too far. Look at what they write: one recites a page, the other says the same thing again and again.",
        "If the target is the input itself, the task is trivial, and the model learns to repeat. With the same batch in "
        "every step, the held-out loss rises while the training loss falls.",
    ),
)
def _diagnose(answer: Mapping[str, str]) -> str | None:
    if not isinstance(answer, Mapping) or set(answer) != set(_FAULTS):
        return "the answer should be a dictionary with the four keys A, B, C and D."
    choices = sorted(_FAULTS.values())
    for name in sorted(answer):
        if answer[name] not in choices:
            return f"{answer[name]!r} is none of the diagnoses for {name}: choose among {', '.join(choices)}."
    right = sum(answer[name] == fault for name, fault in _FAULTS.items())
    return None if right == len(_FAULTS) else f"{right} of {len(_FAULTS)} are right."


def _cosine_schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@exercise(
    "03.cosine",
    praise="warmup, peak and floor are all where they should be; nanoGPT trains with this schedule.",
    hints=(
        "Two cases: below warmup it is a fraction that grows with the step. Do that one first, and let the rest be 1.",
        "After warmup, done = (step - warmup) / (steps - warmup) goes from 0 to 1. "
        "The cosine of math.pi * done goes from 1 to -1.",
        "(1 + cos) / 2 goes from 1 to 0. Stretch it to go from 1 to floor: floor + (1 - floor) * that.",
    ),
)
def _cosine(answer: Callable[[int, int, int, float], float]) -> str | None:
    with_warmup = [(step, 100, 10, 0.1) for step in (0, 9, 10, 55, 100)]
    for step, steps, warmup, floor in [*with_warmup, (0, 50, 0, 0.0), (33, 50, 0, 0.0), (20, 80, 20, 0.5)]:
        what = f"cosine_schedule(step={step}, steps={steps}, warmup={warmup}, floor={floor})"
        if wrong := compare(what, answer(step, steps, warmup, floor), _cosine_schedule(step, steps, warmup, floor)):
            return wrong
    return None


@exercise(
    "03.hours",
    praise="with this formula you can estimate from a paper's model and data how long its training took.",
    hints=(
        "Start with the operations of the whole training: six for each parameter and each token.",
        "The machine does rate * used useful operations in a second. Operations divided by that are seconds.",
        "An hour has 3600 seconds: 6 * n_params * tokens / (rate * used) / 3600.",
    ),
)
def _hours(answer: Callable[[float, float, float, float], float]) -> str | None:
    for n_params, tokens, rate, used in ((1e6, 1e6, 1e9, 1.0), (124e6, 2.5e9, 312e12, 0.4), (3e6, 3e6, 1e11, 0.33)):
        wanted = 6 * n_params * tokens / (rate * used) / 3600
        what = f"hours({n_params:g}, {tokens:g}, {rate:g}, {used})"
        if wrong := compare(what, answer(n_params, tokens, rate, used), wanted, tolerance=1e-6 * wanted):
            return wrong
    return None


def _clipped(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    length = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    return [gradient * min(1.0, limit / max(length, 1e-12)) for gradient in gradients]


@exercise(
    "03.clip",
    praise="the step gets shorter and keeps its direction; PyTorch calls this clip_grad_norm_.",
    hints=(
        "First the length of all gradients as if they were one long vector: the root of the sum of all their squares.",
        "If the length is at most limit, return the gradients as they are. A length of zero must not divide anything.",
        "Else multiply every gradient by the same factor, limit / length. Clipping each one by itself would turn "
        "the direction of the step.",
    ),
)
def _clip(answer: Callable[[list[Tensor], float], list[Tensor]]) -> str | None:
    cases = (
        ([[3.0, 4.0]], 1.0),
        ([[3.0], [4.0]], 1.0),
        ([[0.3, 0.4], [0.0]], 1.0),
        ([[6.0, 0.0], [0.0, 8.0]], 5.0),
        ([[0.0, 0.0]], 1.0),
    )
    for values, limit in cases:
        gradients = [torch.tensor(value) for value in values]
        got, wanted = answer([gradient.clone() for gradient in gradients], limit), _clipped(gradients, limit)
        if got is None:
            return f"clip({values}, {limit}) gives nothing yet."
        if not isinstance(got, list | tuple) or len(got) != len(wanted):
            return f"clip({values}, {limit}) should give a list of {len(wanted)} tensors, yours gives {got!r}."
        for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
            if wrong := compare(f"tensor {i} of clip({values}, {limit})", one, other):
                return wrong
    return None
