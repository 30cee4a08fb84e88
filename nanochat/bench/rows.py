"""One line of the bench's table: what was measured, how, and whether it is what we want."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .timing import Measured


@dataclass(frozen=True)
class Row:
    """A result beside its target. `how` says in one sentence what was done; `low` and `high` are the extremes of the rounds.

    `target` is None for what is only reported; `at_most` says on which side of it the result should be. What could not be
    measured has no result and says in `problem` why, and what to do.
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
        """Whether the result is as good as the target; None where there is no target or no result."""
        if self.target is None or self.result is None:
            return None
        return self.result <= self.target if self.at_most else self.result >= self.target

    @property
    def share(self) -> float | None:
        """How near the target is: 1 or more is met, 0.8 missed by a fifth."""
        if self.target is None or not self.result:
            return None
        return self.target / self.result if self.at_most else self.result / self.target

    @property
    def verdict(self) -> str:
        """`met`, `missed by …`, what went wrong, or nothing where there is no target."""
        if self.problem:
            return self.problem
        if self.target is None or self.result is None:
            return ""
        if self.met:
            return "met"
        off = abs(self.result / self.target - 1)
        return f"missed: {off:.0%} too {'much' if self.at_most else 'little'}"

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**asdict(self), "met": self.met, "verdict": self.verdict}


def from_record(record: dict[str, Any]) -> Row:
    """The inverse of `Row.record`."""
    return Row(**{name: value for name, value in record.items() if name not in ("met", "verdict")})


def measured(group: str, name: str, found: Measured, unit: str, how: str, **more: Any) -> Row:
    """A row from the median of several rounds."""
    return Row(group, name, found.value, unit, how, low=found.low, high=found.high, **more)


def unmeasured(group: str, name: str, problem: object, **more: Any) -> Row:
    """A row for what cannot be measured here, and why."""
    return Row(group, name, None, "", "", problem=f"not measured: {' '.join(str(problem).split())}", **more)
