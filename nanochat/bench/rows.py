"""The rows of the benchmark's table: what was measured, how, and whether it meets its target."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .timing import Measured


@dataclass(frozen=True)
class Row:
    """A result and its target. `how` describes the measurement; `low` and `high` are the extremes of the rounds.

    `target` is None if the result is only reported; with `at_most` it is an upper limit, else a lower one. If something
    could not be measured, `result` is None, and `problem` says why and what to do.
    """

    group: str
    name: str
    result: float | None
    unit: str
    how: str
    target: float | None = None
    at_most: bool = False
    low: float | None = None
    high: float | None = None
    problem: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the result meets the target; None if there is no target or no result."""
        if self.target is None or self.result is None:
            return None
        return self.result <= self.target if self.at_most else self.result >= self.target

    @property
    def share(self) -> float | None:
        """The fraction of the target that is reached: met at 1 or more, missed by a fifth at 0.8."""
        if self.target is None or not self.result:
            return None
        return self.target / self.result if self.at_most else self.result / self.target

    @property
    def verdict(self) -> str:
        """ "met", "missed: …", the problem, or "" if there is no target."""
        if self.problem:
            return self.problem
        if self.target is None or self.result is None:
            return ""
        if self.met:
            return "met"
        off = abs(self.result / self.target - 1)
        return f"missed: {off:.0%} too {'much' if self.at_most else 'little'}"

    def record(self) -> dict[str, Any]:
        """The row as a dict, for JSON."""
        return {**asdict(self), "met": self.met, "verdict": self.verdict}


def from_record(record: dict[str, Any]) -> Row:
    """The inverse of `Row.record`."""
    return Row(**{name: value for name, value in record.items() if name not in ("met", "verdict")})


def measured(group: str, name: str, found: Measured, unit: str, how: str, **more: Any) -> Row:
    """A row whose result is the median of several rounds."""
    return Row(group, name, found.value, unit, how, low=found.low, high=found.high, **more)


def unmeasured(group: str, name: str, problem: object, **more: Any) -> Row:
    """A row for something that cannot be measured here because of `problem`."""
    return Row(group, name, None, "", "", problem=f"not measured: {' '.join(str(problem).split())}", **more)
