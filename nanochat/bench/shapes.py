"""The model shapes that the benchmark trains, and what a training step consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import devices
from ..config import ModelConfig, model_config

Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A model and batch size to benchmark: name in the table, model, rows of block_size tokens per step."""

    name: str
    config: ModelConfig
    batch_size: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.config.block_size


SHAPES = (
    Shape("nano-long 16 x 256", model_config("nano-long", 1024), 16),
    Shape("nanoGPT with 50,257 ids 8 x 128", model_config("nanoGPT"), 8),
)


def random_batch(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (x, y), each (B, T), of random ids, as the time does not depend on them."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.config.vocab_size, (shape.batch_size, shape.config.block_size + 1), generator=draw)
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


def whole_step(
    model: nn.Module, loss_of: Callable[[], Tensor], optimizer: Any, device: torch.device, dtype: torch.dtype
) -> Step:
    """A step like the trainer's: forward and loss in `dtype`, backward, gradient clipping, optimizer."""

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        devices.synchronize(device)

    return step
