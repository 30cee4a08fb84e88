"""Fair speed comparisons on a machine that also does other things.

The candidates run in turns, round after round, so that whatever slows the machine down affects all of them. A ratio is
computed within each round; the result is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Measured(NamedTuple):
    """The median of several rounds, the lowest and the highest."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Measured:
    """The median of the values with their extremes."""
    return Measured(statistics.median(values), min(values), max(values))


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """The seconds that each candidate takes in each round, after one call each to warm up and compile.

    The candidate that begins changes from round to round, so that order effects average out.
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
    """The median over the rounds of `scale` * over / under."""
    return median([scale * a / b for a, b in zip(over, under, strict=True)])
