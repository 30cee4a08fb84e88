"""The groups of the benchmark, in the order in which they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .. import devices
from ..config import UserError, unknown
from . import generating, machine, shakespeare, step_memory, texts, training
from .rows import Row, unmeasured
from .table import Results

SECONDS = 600.0  # for all groups; the training on tiny_shakespeare comes last and gets the time that is left

Say = Callable[[str], None]

# For each group: its estimated seconds on two cores, and the function that measures it with the device and the seconds left
GROUPS: dict[str, tuple[float, Callable[[torch.device, float, Say], list[Row]]]] = {
    "training": (100, lambda device, left, say: training.rows(device)),
    "generation": (30, lambda device, left, say: generating.rows(device)),
    "tokenization": (15, lambda device, left, say: texts.tokenization()),
    "preparation": (60, lambda device, left, say: texts.preparation()),
    "memory": (15, lambda device, left, say: step_memory.rows()),
    "evaluation": (40, lambda device, left, say: shakespeare.evaluation()),
    "shakespeare": (380, lambda device, left, say: shakespeare.rows(left, say)),
}


def check(group: str) -> str:
    """`group` if it is the name of a group; raises UserError otherwise."""
    if group not in GROUPS:
        raise unknown("benchmark group", group, GROUPS)
    return group


def run(only: str | None = None, say: Say = print) -> Results:
    """Measure all groups, or the one named `only`. A group that fails gets a row with the reason; the others still run.

    Raises UserError if there is no group of that name.
    """
    begin = time.perf_counter()
    device = devices.pick_device()
    rows: list[Row] = []
    chosen = [check(only)] if only else list(GROUPS)
    for number, name in enumerate(chosen, 1):
        estimate, measure = GROUPS[name]
        say(f"[{number}/{len(chosen)}] {name}, about {estimate:.0f} s …")
        try:
            rows += measure(device, SECONDS - (time.perf_counter() - begin), say)
        except UserError as error:
            rows.append(unmeasured(name, name, error))
    return Results(machine.describe(device), rows, time.perf_counter() - begin)
