"""Cross-entropy of a linear head without ever holding all logits.

With GPT-2's vocabulary the logits of 1,024 positions are 206 MB, and their gradient as much again. Here the head is
multiplied, scored and differentiated chunk by chunk, so that all logits never exist at the same time.
(The idea is that of "Cut Your Losses", Wijmans et al. 2024, in plain PyTorch.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SOFTCAP = 15.0
_CHUNK_ELEMENTS = 16 << 20  # logits in memory at a time: 64 MB in float32
_CHUNK_ROWS = 1024  # at most, so that the logits of a small vocabulary stay in the processor's cache


class _HeadLoss(torch.autograd.Function):
    """Summed loss and its gradients in one pass; rows of x (N, C) against targets (N,), -1 where a row has none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, dtype: torch.dtype, grads: bool
    ) -> Tensor:
        # cast once, by hand: autocast would cast the whole head again for every chunk
        low, w = x.to(dtype), weight.to(dtype)
        total = torch.zeros((), device=x.device)
        dx = torch.empty_like(x) if grads else None
        dw = torch.zeros_like(weight) if grads else None
        counts = (targets >= 0).to(torch.float32).unsqueeze(1)
        rows = _rows(x.size(0), weight.size(0))
        with torch.autocast(x.device.type, enabled=False):
            for at in range(0, x.size(0), rows):
                chunk, share = low[at : at + rows], counts[at : at + rows]
                loss, d = _score(chunk @ w.T, targets[at : at + rows].clamp(min=0).unsqueeze(1), share, softcap, grads)
                total += loss
                if d is None or dx is None or dw is None:
                    continue
                d = d.to(dtype)
                dx[at : at + rows] = d @ w
                if dtype == dw.dtype:
                    dw.addmm_(d.T, chunk)  # avoids a second matrix as large as the head
                else:
                    dw += d.T @ chunk
                del d  # frees its memory for the next chunk
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no graph
            raise RuntimeError(
                "head_loss can be differentiated once only: its gradients are computed in the forward pass"
            )
        dx, dw = ctx.saved_tensors
        # in place, as nothing else uses them: with GPT-2's vocabulary a copy of dw alone would be 77 MB
        return dx.mul_(grad), dw.mul_(grad), None, None, None, None


def _score(
    raw: Tensor, target: Tensor, share: Tensor, softcap: float | None, grads: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of logits `raw` (N, V), rows weighted by `share` (N, 1), and its gradient with respect to them (N, V).

    Both use the same exp, and large intermediate results reuse the memory of the logits.
    """
    logits = raw.float()
    del raw
    capped = None
    if softcap:  # capped logits are small, so exp cannot overflow and the maximum need not be subtracted
        capped = logits.mul_(1 / softcap).tanh_()
        logits = capped * softcap
    else:
        logits = logits.sub_(logits.amax(dim=1, keepdim=True))
    chosen = logits.gather(1, target)
    d = logits.exp_()
    norm = d.sum(dim=1, keepdim=True)
    loss = ((norm.log() - chosen) * share).sum()
    if not grads:
        return loss, None
    d.mul_(share / norm).scatter_add_(1, target, -share)  # (softmax - one-hot) * share
    return loss, d if capped is None else d.addcmul_(d, capped.square_(), value=-1)  # times the cap's slope, 1 - tanh^2


def _rows(count: int, vocab_size: int) -> int:
    """Rows per chunk: all chunks are equally large, so that each can reuse the memory of the previous one."""
    chunks = max(-(-count * vocab_size // _CHUNK_ELEMENTS), -(-count // _CHUNK_ROWS))
    return max(1, -(-count // max(1, chunks)))


def rows_scored(count: int, of: int) -> int:
    """For how many of `of` positions logits are computed when `count` have a target: rounded up to an eighth of them.

    Blocks of a new size in each step would fragment the heap.
    """
    eighth = max(1, of // 8)
    return min(of, -(-count // eighth) * eighth)


def head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy in nats of softcap * tanh(x @ weight.T / softcap) against targets; -1 carries no loss.

    x (B, T, C), weight (V, C), targets (B, T) → scalar float32: the "mean" over the targets, or their "sum", which can be
    added up over parts of a batch with different numbers of targets. Without any target the loss is 0.
    """
    grads = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    x, targets = x.reshape(-1, x.size(-1)), targets.reshape(-1)
    count = int((targets >= 0).sum())
    wanted = rows_scored(count, targets.numel())
    if wanted < targets.numel():  # most positions of finetuning carry no loss and need no logits
        first = (targets < 0).to(torch.uint8).argsort(stable=True)[:wanted]  # positions with a target first
        x, targets = x[first], targets[first]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    nats = _HeadLoss.apply(x, weight, targets, softcap, dtype, grads)
    return nats if reduction == "sum" else nats / max(count, 1)
