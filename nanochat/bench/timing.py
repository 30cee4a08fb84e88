"""Comparing speeds on a machine that is never quite at rest.

What is compared runs in turns within one process, round after round, so that whatever slows the machine slows all of it;
a ratio is taken within each round, and the median of the rounds is what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Measured(NamedTuple):
    """The median of several rounds, and the lowest and highest of them."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Measured:
    """The middle one, with the extremes."""
    return Measured(statistics.median(values), min(values), max(values))


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that each candidate takes in each round, after one call that does not count (compiling, first touch).

    Each round begins with another candidate, so that none always runs behind the same neighbour.
    """
    names = list(candidates)
    for name in names:
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begin = clock()
            candidates[name]()
            seconds[name].append(clock() - begin)
    return seconds


def ratio(over: Sequence[float], under: Sequence[float], scale: float = 1.0) -> Measured:
    """`scale` * over / under of each round, the median of them."""
    return median([scale * a / b for a, b in zip(over, under, strict=True)])
