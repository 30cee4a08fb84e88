"""How long the project that nanochat goes back to takes to train: its recipe, rebuilt from our parts and timed here.

GPT-2's architecture with 6 layers of 384 and GPT-2's vocabulary, all logits at once, AdamW at 2e-4 in float32, batches of
8 x 128, and after every 25 steps an evaluation of 200 batches that keeps gradients nobody uses.
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

EVERY, BATCHES = 25, 200


class Original(NamedTuple):
    """Seconds of a step and of a batch of its evaluation."""

    step: float
    batch: float

    @property
    def to_300(self) -> float:
        """Seconds of 300 steps with the evaluations between them."""
        return 300 * self.step + 300 // EVERY * BATCHES * self.batch


def measure(shape: Shape, rounds: int = 3) -> Original:
    """Steps and batches in turns."""
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
    """Measured in a process of its own, where the memory is handled as it comes. Raises UserError if that fails."""
    done = subprocess.run([sys.executable, "-m", "nanochat.bench.original"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the original's recipe does not run here ({(done.stderr.strip().splitlines() or ['?'])[-1]})")
    return Original(*json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(measure(SHAPES[-1])))
