"""Peak memory of a training step of nanoGPT's shape with GPT-2's vocabulary."""

from __future__ import annotations

import torch

from .. import devices
from .memory import peak_mb, torch_alone_mb
from .rows import Row
from .shapes import SHAPES
from .training import our_step

GROUP = "memory"
STEPS = 4


def main() -> None:
    """Do a few steps; `rows` runs this in a process of its own."""
    device = torch.device("cpu")
    devices.keep_large_blocks()
    step = our_step(SHAPES[-1], device, devices.matmul_dtype(device))
    for _ in range(STEPS):
        step()


def rows() -> list[Row]:
    """The peak memory of a process that trains, with and without that of torch itself."""
    peak, _ = peak_mb(["-m", "nanochat.bench.step_memory"])
    alone = torch_alone_mb()
    how = f"highest memory of a process that makes {STEPS} eager steps; with interpreter and libraries"
    name = f"a step of {SHAPES[-1].name}"
    return [
        Row(GROUP, name, peak, "MB", how, target=1200.0, at_most=True),
        Row(GROUP, f"{name}, without torch itself", peak - alone, "MB", "less what `import torch` alone holds"),
    ]


if __name__ == "__main__":
    main()
