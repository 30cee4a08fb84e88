"""Helpers for the tests of the model and of training: small models and a small task to learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.config import ModelConfig
from nanochat.model import GPT
from nanochat.trainer import StepReport, Task

ARCHS = ("gpt2", "modern", "nano")
VOCAB, BLOCK = 61, 32


def small_config(arch: str = "modern", **changes: Any) -> ModelConfig:
    """`arch` is one of ARCHS; "nano" is the modern architecture with all its optional parts."""
    shape = {"vocab_size": VOCAB, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 32, "arch": arch}
    if arch == "nano":
        shape |= {"arch": "modern", "smear": True, "value_residual": True}
    return ModelConfig(**{**shape, **changes})


def small_model(arch: str = "modern", *, seed: int = 0, **changes: Any) -> GPT:
    """A model with all weights random, since in a newly initialized modern one the blocks do nothing.

    Norms stay near one and biases near zero; otherwise the biases would determine the next token.
    """
    model = GPT(small_config(arch, **changes))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() == 2 else 0.1
            p.copy_(torch.randn(p.shape, generator=draw) * scale + (p.dim() == 1 and name.endswith("weight")))
    return model.eval()


def ids(*shape: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def counting(step: int, rows: int = 4, length: int = 16, seed: int = 7) -> tuple[Tensor, Tensor]:
    """x and y (rows, length): numbers that count up by a stride; every step has a different batch."""
    draw = torch.Generator().manual_seed(seed * 100_003 + step)
    first, stride = torch.randint(VOCAB, (rows, 1), generator=draw), torch.randint(1, 4, (rows, 1), generator=draw)
    sequence = (first + stride * torch.arange(length + 1)) % VOCAB
    return sequence[:, :-1], sequence[:, 1:]


def counting_task(folder: Path, **changes: Any) -> Task:
    """The task of learning to count. The best weights are saved to best.pt, the state to state.pt."""

    def save_best(model: GPT, report: StepReport) -> None:
        torch.save({"step": report.step, "weights": model.state_dict()}, folder / "best.pt")

    def validate(model: GPT) -> dict[str, float]:
        return {"val_loss": model(*counting(-1, rows=8)).item()}

    task = Task(
        stage="base_model",
        batch=counting,
        loss=lambda model, x, y: (model(x, y, reduction="sum"), (y >= 0).sum()),
        validate=validate,
        save_best=save_best,
        state_path=folder / "state.pt",
        identity={"data": "counting"},
        tokens_per_step=64,
    )
    return replace(task, **changes)


def steps_of(reports: Iterable[StepReport]) -> list[tuple[int, float | None, float | None, bool]]:
    """What must agree between two equal runs: step, training loss, validation loss, whether it is the best."""
    return [(r.step, None if r.step == 0 else r.loss, r.metrics.get("val_loss"), r.best) for r in reports]
