"""The training time of "the original", the project that nanochat is based on; its recipe is rebuilt and timed here.

The recipe: GPT-2's architecture with 6 layers of width 384 and GPT-2's vocabulary, all logits at once, AdamW at 2e-4 in
float32, batches of 8 x 128, and every 25 steps an evaluation of 200 batches that computes the graph for unused gradients.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import UserError
from ..model import GPT
from .shapes import SHAPES, Shape, random_batch
from .timing import interleave, median

EVERY, BATCHES = 25, 200  # steps between evaluations, batches in each


class Original(NamedTuple):
    """Seconds per training step, and per batch of an evaluation."""

    step: float
    batch: float

    @property
    def to_300(self) -> float:
        """Seconds for 300 steps, evaluations included."""
        return 300 * self.step + 300 // EVERY * BATCHES * self.batch


def measure(shape: Shape, rounds: int = 3) -> Original:
    """Time training steps and evaluation batches in alternation."""
    torch.manual_seed(0)
    model = GPT(shape.config)
    x, y = random_batch(shape, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)

    def evaluate() -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def step() -> None:
        evaluate().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = interleave({"step": step, "batch": evaluate}, rounds)
    return Original(median(seconds["step"]).value, median(seconds["batch"]).value)


def original_seconds() -> Original:
    """`measure` in a process of its own, without our memory settings. Raises UserError if that fails."""
    done = subprocess.run([sys.executable, "-m", "nanochat.bench.original"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the original's recipe does not run here ({(done.stderr.strip().splitlines() or ['?'])[-1]})")
    return Original(*json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(measure(SHAPES[-1])))
