"""Checks for the exercises of notebook 05, the playground."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import compare, exercise


@exercise(
    "05.pick",
    praise="a list of probabilities and one number between zero and one: that is all there is to sampling.",
    hints=(
        "Go along the ruler: add up the probabilities, and stop at the first index whose right end lies beyond the pin.",
        "A pin exactly on a border belongs to the part on its right: compare with `pin < end`. Then a part of length "
        "zero is never hit.",
        "Rounding can leave the last end a hair below one, and a pin behind it: return the last index that is "
        "possible at all.",
    ),
)
def _pick(answer: Callable[[Sequence[float], float], int]) -> str | None:
    # The sum is the largest float below one in every Python version; since 3.12 `sum` adds ten times 0.1 to exactly one.
    short = [0.5, 0.25, 0.25 - 2**-53]
    cases = (
        ([0.5, 0.25, 0.25], 0.1, 0),
        ([0.5, 0.25, 0.25], 0.5, 1),
        ([0.5, 0.25, 0.25], 0.8, 2),
        ([0.0, 1.0], 0.0, 1),
        (short, sum(short), 2),
        ([*short, 0.0], sum(short), 2),
    )
    for probs, pin, wanted in cases:
        if wrong := compare(f"pick({probs}, {pin})", answer(list(probs), pin), wanted):
            return wrong
    return None


@exercise(
    "05.work",
    praise="without a cache the work grows with the square of the length, with a cache only with the length.",
    hints=(
        "Write it down for a prompt of ten and three new tokens, step by step: which positions go through the model?",
        "Without a cache the steps have prompt, prompt + 1, … positions, one step for each new token. With one the first "
        "step has the prompt, and each later step a single position.",
        "The first new token comes from reading the prompt, so with a cache it is prompt + new - 1.",
    ),
)
def _work(answer: Callable[[int, int], tuple[int, int]]) -> str | None:
    for prompt, new in ((10, 1), (10, 3), (1, 2), (128, 896)):
        wanted = new * prompt + new * (new - 1) // 2, prompt + new - 1
        if wrong := compare(f"work_of({prompt}, {new})", answer(prompt, new), wanted, tolerance=0):
            return wrong
    return None


@exercise(
    "05.remembered",
    praise="the newest first, and no hole in the middle: a conversation with gaps misleads more than a short one.",
    hints=(
        "Begin with the newest exchange, the last of the list, and go back while there is room.",
        "Stop at the first one that does not fit, even if an older, shorter one would.",
        "One that fills the room to the last token fits.",
    ),
)
def _remembered(answer: Callable[[Sequence[int], int], int]) -> str | None:
    cases: tuple[tuple[list[int], int, int], ...] = (
        ([30, 40, 50], 100, 2), ([30, 40, 50], 120, 3), ([30, 40, 50], 90, 2), ([30, 40, 50], 49, 0),
        ([10, 200, 10], 100, 1), ([], 100, 0),
    )  # fmt: skip
    for lengths, room, wanted in cases:
        if wrong := compare(f"remembered({lengths}, {room})", answer(list(lengths), room), wanted, tolerance=0):
            return wrong
    return None


@exercise(
    "05.latest",
    praise="joined by the answer's id, each click counts where it was meant to.",
    hints=(
        "Go through the clicks in order and keep, for each id, the last value you saw.",
        "An id whose last value is zero has no opinion: leave it out at the end, not on the way.",
        "dict(clicks) keeps the last value of each id. Then take out the zeros.",
    ),
)
def _latest(answer: Callable[[Sequence[tuple[str, int]]], dict[str, int]]) -> str | None:
    cases: tuple[tuple[list[tuple[str, int]], dict[str, int]], ...] = (
        ([("a", 1), ("b", -1)], {"a": 1, "b": -1}),
        ([("a", 1), ("b", -1), ("a", -1)], {"a": -1, "b": -1}),
        ([("a", 1), ("a", 0)], {}),
        ([("a", 1), ("a", 0), ("a", -1), ("b", 0), ("c", 1)], {"a": -1, "c": 1}),
        ([], {}),
    )
    for clicks, wanted in cases:
        if wrong := compare(f"latest({clicks})", answer(list(clicks)), wanted):
            return wrong
    return None
