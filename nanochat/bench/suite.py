"""All that the bench measures, in order, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .. import devices
from ..config import UserError, unknown
from . import generating, machine, shakespeare, step_memory, texts, training
from .rows import Row, unmeasured
from .table import Results

SECONDS = 600.0  # for everything; the training on tiny_shakespeare, which comes last, gets what the others leave

Say = Callable[[str], None]

# Each group, how many seconds it takes on two cores, and what it does with the device and the seconds that are left
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
    """`group` if there is one of this name; raises UserError otherwise."""
    if group not in GROUPS:
        raise unknown("group of the bench", group, GROUPS)
    return group


def run(only: str | None = None, say: Say = print) -> Results:
    """Measure every group, or only one. A group that cannot be measured says so in a row, and the others go on."""
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
