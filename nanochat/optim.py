"""The optimizers, Muon for the matrices of the blocks and AdamW for everything else, and the learning-rate schedule.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix by
the nearest orthogonal matrix, so that every direction is updated equally far.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import unknown
from .devices import matmul_dtype

if TYPE_CHECKING:
    from .model import GPT

# Coefficients of the quintic polynomial that brings singular values close to 1 in five iterations (Jordan et al. 2024)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The (semi-)orthogonal matrices nearest to those of g (N, rows, columns), by Newton–Schulz iteration; same shape.

    Computed in `dtype`; by default in bfloat16 if the device multiplies it faster than float32, otherwise in float32.
    """
    a, b, c = _COEFFICIENTS
    x = g.to(matmul_dtype(g.device) if dtype is None else dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:  # so that the Gram matrix below has the size of the shorter side
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype == torch.float32 and x.size(-1) >= 2 * x.size(-2):
        x = _iterate_gram(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


def _iterate_gram(gram: Tensor, steps: int) -> Tensor:
    """The matrix (N, rows, rows) by which `steps` iterations multiply x, from gram = x x^T (N, rows, rows) alone.

    The long side of x is then part of two products in all instead of two per step, about half the time for a matrix four
    times as wide as tall. The result is the same to 1e-6 in float32, but not in bfloat16, where rounding differs.
    """
    a, b, c = _COEFFICIENTS

    def factor() -> Tensor:
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        z.diagonal(dim1=-2, dim2=-1).add_(a)
        return z

    product = z = factor()
    for _ in range(steps - 1):
        gram = gram @ z @ z  # Gram matrix of the new x: polynomials of one matrix commute
        z = factor()
        product = z @ product
    return product


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose updates are orthogonalized, for 2-D parameters only. Equal shapes are batched.

    A parameter with the attribute `n_split` (the fused query-key-value matrix) is treated as that many matrices.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # no closure is called
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                parts = getattr(p, "n_split", 1)
                rows, columns = p.size(0) // parts, p.size(1)
                # sqrt(rows / columns) makes the change of the output equally large for every shape
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                for weight, part in zip(p.chunk(parts), update.chunk(parts), strict=True):
                    # wide matrices are transposed, so that they share a batch with tall ones
                    pair = (weight, part) if rows >= columns else (weight.mT, part.mT)
                    shapes[tuple(sorted(part.shape))].append((*pair, lr))
            for members in shapes.values():
                updates = orthogonalize(torch.stack([part for _, part, _ in members]), dtype=self.dtype)
                for (weight, _, lr), update in zip(members, updates, strict=True):
                    if group["weight_decay"]:
                        weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-lr)


class Optimizers:
    """Several optimizers used as one: stepped, scheduled, saved and loaded together."""

    def __init__(self, members: list[torch.optim.Optimizer]):
        self.members = members
        for group in self.groups():
            group["initial_lr"] = group["lr"]

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for member in self.members for group in member.param_groups]

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its initial value."""
        for group in self.groups():
            group["lr"] = group["initial_lr"] * scale

    def step(self) -> None:
        """Update all parameters."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of all optimizers, for an exact resume."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore a `state_dict`; tensors are moved to the device of their parameters."""
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


# Learning rates of Muon and of AdamW, and Muon's momentum, by architecture. Those of the modern one were tuned for runs of
# some hundred steps (see tests/benchmarks/README.md); GPT-2, which has no QK-norm, becomes unstable with them.
RATES = {"modern": (0.06, 0.02, 0.85), "gpt2": (0.02, 0.003, 0.95)}


ADAMW_RATE = 1e-3  # for AdamW alone; nanoGPT uses it for its smallest models
OPTIMIZERS = ("muon", "adamw")


def make_optimizers(
    model: GPT, scale: float = 1.0, weight_decay: float = 0.0, dtype: torch.dtype | None = None, optimizer: str = "muon"
) -> Optimizers:
    """The optimizers of a model. "muon": Muon for the matrices of the blocks, AdamW for embeddings (and thus the tied
    head), biases and norms. "adamw": AdamW for everything. Weight decay applies to the matrices of the blocks only.

    `scale` multiplies every learning rate (finetuning takes smaller steps than pretraining). `dtype` is that of Muon's
    matrix products, by default the one in which the device trains. Raises UserError for an unknown `optimizer`.
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    matrix_lr, rest_lr, momentum = RATES[model.config.arch]
    matrices, others = [], []
    for name, p in model.named_parameters():
        if name.startswith("h.") and p.dim() == 2:
            if name.endswith("c_attn.weight"):
                p.n_split = 3  # type: ignore[attr-defined] # a mark of its own, for Muon
            matrices.append(p)
        else:
            others.append(p)
    if optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return Optimizers([torch.optim.AdamW(groups, lr=ADAMW_RATE * scale, betas=(0.9, 0.95), fused=True)])
    adamw = torch.optim.AdamW(others, lr=rest_lr * scale, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    muon = Muon(matrices, lr=matrix_lr * scale, momentum=momentum, weight_decay=weight_decay, dtype=dtype)
    return Optimizers([muon, adamw])


def schedule(step: int, steps: int, warmup: int = 0, decay_from: float = 0.4) -> float:
    """The learning rate at `step` of `steps`, as a share of the full rate: linear warmup, constant, linear decay.

    The decay begins at the share `decay_from` of `steps` and is long, after Hägele et al. 2024 ("Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations"). The last step gets 1 / (number of decay steps), not zero.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay_start = decay_from * steps
    if step < decay_start:
        return 1.0
    return max(0.0, (steps - step) / (steps - decay_start))
