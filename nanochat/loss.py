"""Cross-entropy of a linear head without ever holding all logits.

With GPT-2's vocabulary the logits of 1,024 positions are 206 MB, and their gradient as much again. Here the head is
multiplied, scored and differentiated chunk by chunk: the loss and both gradients leave, the logits never exist whole.
(The idea is that of "Cut Your Losses", Wijmans et al. 2024, in plain PyTorch.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SOFTCAP = 15.0
_CHUNK_ELEMENTS = 16 << 20  # logits held at a time: 64 MB in float32


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients in one pass; rows of x (N, C) against targets (N,), -1 where a row has none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, dtype: torch.dtype, grads: bool
    ) -> Tensor:
        # cast once, by hand: inside, autocast would cast the whole head again for every chunk
        low, w = x.to(dtype), weight.to(dtype)
        total = torch.zeros((), device=x.device)
        dx = torch.empty_like(x) if grads else None
        dw = torch.zeros_like(weight) if grads else None
        valid = (targets >= 0).unsqueeze(1)
        count = valid.sum().clamp(min=1)
        rows = max(1, _CHUNK_ELEMENTS // weight.size(0))
        with torch.autocast(x.device.type, enabled=False):
            for at in range(0, x.size(0), rows):
                chunk, keep = low[at : at + rows], valid[at : at + rows]
                target = targets[at : at + rows].clamp(min=0).unsqueeze(1)
                logits = (chunk @ w.T).float()
                if softcap:
                    logits = logits.div_(softcap).tanh_().mul_(softcap)
                norm = logits.logsumexp(dim=1, keepdim=True)
                total += ((norm - logits.gather(1, target)) * keep).sum()
                if dx is None or dw is None:
                    continue
                slope = 1.0 - (logits / softcap).square_() if softcap else None  # derivative of the cap
                d = logits.sub_(norm).exp_()  # softmax
                d.scatter_add_(1, target, torch.full_like(norm, -1.0)).mul_(keep / count)
                if slope is not None:
                    d.mul_(slope)
                d = d.to(dtype)
                dx[at : at + rows] = d @ w
                dw += d.T @ chunk
        ctx.save_for_backward(dx, dw)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, dw = ctx.saved_tensors
        return dx * grad, dw * grad, None, None, None, None


def _rounded(count: int, of: int) -> int:
    """`count` rounded up to the next eighth of `of`: blocks of ever new sizes would fragment the heap (5.6 GB were seen
    after 1,000 steps of finetuning)."""
    eighth = max(1, of // 8)
    return min(of, -(-count // eighth) * eighth)


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Mean cross-entropy in nats of softcap * tanh(x @ weight.T / softcap) against targets; -1 carries no loss.

    x (B, T, C), weight (V, C), targets (B, T) → scalar float32. A batch without any target gives 0.
    """
    grads = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    x, targets = x.reshape(-1, x.size(-1)), targets.reshape(-1)
    wanted = _rounded(int((targets >= 0).sum()), targets.numel())
    if wanted < targets.numel():  # in finetuning most positions carry no loss: their logits need not be computed
        first = (targets < 0).to(torch.uint8).argsort(stable=True)[:wanted]  # those with a target come first
        x, targets = x[first], targets[first]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _HeadLoss.apply(x, weight, targets, softcap, dtype, grads)
