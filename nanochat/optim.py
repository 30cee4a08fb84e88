"""Muon for the matrices inside the blocks, AdamW for everything else, and the learning-rate schedule.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix by
the nearest orthogonal one, so that every direction moves equally far.
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

# The quintic whose iteration drives singular values to about 1 in five steps (Jordan et al. 2024)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest (semi-)orthogonal matrices of g (N, rows, columns), by Newton–Schulz iteration.

    Computed in `dtype`, else in bfloat16 only where the device multiplies it faster than float32: on a CPU without such
    instructions PyTorch's own Muon took 8.8 s for a step that takes 0.25 s in float32.
    """
    a, b, c = _COEFFICIENTS
    x = g.to(matmul_dtype(g.device) if dtype is None else dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:  # the products below are square in the shorter side
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
    """What `steps` of the iteration multiply x with, from gram = x x^T (N, rows, rows) alone: the long side of x enters
    two products instead of two in each step. A matrix four times as wide takes half the time (12 x 384 x 1536: 433 → 228
    ms on one core) and comes out the same to 1e-6. Not in bfloat16, where the two round differently.
    """
    a, b, c = _COEFFICIENTS

    def factor() -> Tensor:
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        z.diagonal(dim1=-2, dim2=-1).add_(a)
        return z

    product = z = factor()
    for _ in range(steps - 1):
        gram = gram @ z @ z  # of the new x: all these are polynomials of one matrix and commute
        z = factor()
        product = z @ product
    return product


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum, for 2-D parameters. Equal shapes share one batched iteration.

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
        """One update from the gradients; parameters without a gradient are left alone."""
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
                # sqrt(rows / columns) keeps the size of the output's change the same for every shape
                lr = group["lr"] * max(1.0, rows / columns) ** 0.5
                for weight, part in zip(p.chunk(parts), update.chunk(parts), strict=True):
                    # a wide matrix and a tall one are the same problem transposed: one batch for both
                    pair = (weight, part) if rows >= columns else (weight.mT, part.mT)
                    shapes[tuple(sorted(part.shape))].append((*pair, lr))
            for members in shapes.values():
                updates = orthogonalize(torch.stack([part for _, part, _ in members]), dtype=self.dtype)
                for (weight, _, lr), update in zip(members, updates, strict=True):
                    if group["weight_decay"]:
                        weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-lr)


class Optimizers:
    """Muon and AdamW as one: step, schedule, save and load together."""

    def __init__(self, members: list[torch.optim.Optimizer]):
        self.members = members
        for group in self.groups():
            group["initial_lr"] = group["lr"]

    def groups(self) -> list[dict[str, Any]]:
        """All parameter groups."""
        return [group for member in self.members for group in member.param_groups]

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its initial value."""
        for group in self.groups():
            group["lr"] = group["initial_lr"] * scale

    def step(self) -> None:
        """One update of every parameter."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything exact resume needs."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of state_dict; tensors follow their parameters to their device."""
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)


# Learning rates of Muon and of AdamW, and Muon's momentum, by architecture. The modern one's measured best for some
# hundred steps (see tests/benchmarks/README.md for what lost); GPT-2 without its norms of queries and keys cannot bear
# them.
RATES = {"modern": (0.06, 0.02, 0.85), "gpt2": (0.02, 0.003, 0.95)}


ADAMW_RATE = 1e-3  # where AdamW has everything: nanoGPT's for its smallest models
OPTIMIZERS = ("muon", "adamw")


def make_optimizers(
    model: GPT, scale: float = 1.0, weight_decay: float = 0.0, dtype: torch.dtype | None = None, optimizer: str = "muon"
) -> Optimizers:
    """`muon`: Muon for the matrices of the blocks, AdamW for embeddings (and so the head), biases and norms.
    `adamw`: AdamW for everything. Only matrices of the blocks are decayed.

    `scale` multiplies every learning rate (finetuning takes smaller steps than pretraining). `dtype` is that of Muon's
    products, by default the one in which the device trains. Raises UserError for an unknown `optimizer`.
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
    """The share of the full learning rate at `step` of `steps`: linear warmup, flat, then linear decay to zero.

    The long linear decay follows Hägele et al. 2024 ("Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations"). The last step still moves: it gets 1 / (number of decay steps), not zero.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay_start = decay_from * steps
    if step < decay_start:
        return 1.0
    return max(0.0, (steps - step) / (steps - decay_start))
