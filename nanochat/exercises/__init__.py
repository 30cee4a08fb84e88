"""Checks for the exercises of the notebooks: they tell whether an answer is right and give hints if it is wrong.

`check("02.softmax", softmax)` looks into lesson_02.py for the exercise of that name. A lesson registers one like this:

    @exercise("02.softmax", praise="Subtracting the maximum changes no ratio.", hints=("First hint.", "Second hint."))
    def _(softmax):
        return compare("softmax([0, 0])", softmax(torch.zeros(2)), [0.5, 0.5])

The function gets the learner's answer and returns None if it is right, or a sentence that says what is wrong. It may raise
any exception that a wrong answer causes: the learner sees its message as one line, not a traceback.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..config import unknown

__all__ = ["Verdict", "check", "compare", "exercise", "names", "verdict"]

Judge = Callable[[Any], "str | None"]


@dataclass
class _Exercise:
    judge: Judge
    praise: str
    hints: Sequence[str]
    wrong: int = 0  # wrong answers in a row so far


class Verdict(NamedTuple):
    """Whether an answer is right, and the text that tells the learner."""

    right: bool
    text: str


_EXERCISES: dict[str, _Exercise] = {}


def exercise(name: str, *, praise: str, hints: Sequence[str]) -> Callable[[Judge], Judge]:
    """Register the decorated function as the judge of exercise `name`, such as "02.softmax" of lesson_02.py.

    `praise` is the response to a right answer. Each wrong answer gets the next of the `hints`, at the end always the last.
    """

    def register(judge: Judge) -> Judge:
        _EXERCISES[name] = _Exercise(judge, praise, tuple(hints))
        return judge

    return register


def names() -> list[str]:
    """The names of all exercises."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_EXERCISES)


def verdict(name: str, answer: Any) -> Verdict:
    """Judge an answer and count wrong ones, so that each gets the next hint.

    Raises UserError if there is no such exercise.
    """
    if name not in names():
        raise unknown("exercise", name, _EXERCISES)
    found = _EXERCISES[name]
    try:
        wrong = "there is no answer yet." if answer is None or answer is ... else found.judge(answer)
    except Exception as error:  # the learner's code may raise anything
        wrong = f"it stops with {type(error).__name__}: {error}"
    if wrong is None:
        found.wrong = 0
        return Verdict(True, f"Right: {found.praise}")
    found.wrong += 1
    number = min(found.wrong, len(found.hints))
    return Verdict(False, f"Not yet: {wrong}\nHint {number} of {len(found.hints)}: {found.hints[number - 1]}")


def check(name: str, answer: Any) -> None:
    """Print that `answer` is right, or what is wrong with it and the next hint."""
    print(verdict(name, answer).text)


def compare(what: str, got: Any, wanted: Any, tolerance: float = 1e-4) -> str | None:
    """None if `got` equals `wanted`, or a sentence that shows both; `what` names the value in it.

    Numbers may differ by a relative and absolute `tolerance`. Takes numbers, strings, bytes, lists, dictionaries, arrays and
    tensors.
    """
    if got is None or got is ...:
        return f"{what} gives nothing yet."
    got, wanted = _plain(got), _plain(wanted)
    if isinstance(got, np.ndarray) and isinstance(wanted, np.ndarray) and got.shape != wanted.shape:
        return f"{what} should have the shape {wanted.shape}, yours has {got.shape}."
    if _same(got, wanted, tolerance):
        return None
    if isinstance(wanted, np.ndarray) and wanted.ndim > 1:
        return f"{what} should be\n{_shown(wanted)}\nand yours is\n{_shown(got)}"
    return f"{what} should be {_shown(wanted)}, yours is {_shown(got)}."


def _plain(value: Any) -> Any:
    """A tensor or list of numbers as an array, to be compared; anything else unchanged."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple) and value and all(isinstance(v, bool | int | float | np.generic) for v in value):
        value = np.array(value)
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _same(got: Any, wanted: Any, tolerance: float) -> bool:
    numeric = bool | int | float | np.ndarray
    if isinstance(got, numeric) and isinstance(wanted, numeric):
        # allclose alone would broadcast a single number
        return np.shape(got) == np.shape(wanted) and bool(
            np.allclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
        )
    if isinstance(wanted, Mapping):
        return isinstance(got, Mapping) and dict(got) == dict(wanted)
    if isinstance(wanted, list | tuple):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(wanted)
            and all(_same(_plain(g), _plain(w), tolerance) for g, w in zip(got, wanted, strict=True))
        )
    return type(got) is type(wanted) and bool(got == wanted)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return np.array2string(value, precision=4, suppress_small=True, threshold=40, separator=", ")
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
