"""One more token for each row, fast: what `GPT.trunk` and `GPT.head` compute for a single position behind a cache.

For one position the model's arithmetic takes less time than Python's way to it, so everything that is the same for each
token is done beforehand, and the modules' forward functions are written out in one. model.py says what is computed, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import GPT, Cache


def _linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    return lambda x: F.linear(x, weight, bias)


def _norm(layer: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.LayerNorm):
        return partial(F.layer_norm, normalized_shape=(size,), weight=layer.weight, bias=layer.bias, eps=layer.eps)
    return partial(F.rms_norm, normalized_shape=(size,))


def decoder(model: GPT, cache: Cache) -> Callable[[Tensor], Tensor]:
    """The function that reads the next token of each row, ids (B,) → logits (B, V), and adds it to the cache.

    The cache must have been filled by `model.trunk` and have room; weights must not be replaced in the meantime. Dropout is
    left out. Call both under torch.inference_mode.
    """
    config, (_, B, H, capacity, D) = model.config, cache.keys.shape
    C, modern = config.n_embd, config.arch == "modern"
    layers = [
        (
            _norm(block.ln_1, C), _linear(block.attn.c_attn), _linear(block.attn.c_proj),
            _norm(block.ln_2, C), _linear(block.mlp.c_fc), _linear(block.mlp.c_proj),
            block.attn.smear.to(cache.keys.dtype) if config.smear else None,
        )
        for block in model.h
    ]  # fmt: skip
    shares = model.value_shares.to(cache.keys.dtype).unbind() if config.value_residual else None
    if modern:
        # x cos + (second half, first half) sin is the same rotation in fewer operations
        cos = torch.cat((model.cos, model.cos), dim=1).to(cache.keys.dtype)
        sin = torch.cat((-model.sin, model.sin), dim=1).to(cache.keys.dtype)
    unseen = None
    if cache.start is not None:
        columns = torch.arange(capacity, device=cache.keys.device)
        unseen = torch.zeros(B, 1, 1, capacity, device=cache.keys.device, dtype=cache.keys.dtype)
        unseen.masked_fill_((columns < cache.start[:, None])[:, None, None], float("-inf"))

    def step(ids: Tensor) -> Tensor:
        at = cache.length
        x = model.wte(ids[:, None])[:, 0]
        if modern:
            x = F.rms_norm(x, (C,))
            turn, across = cos[at], sin[at]
        else:
            x = x + (model.wpe.weight[at] if cache.start is None else model.wpe(at - cache.start))
        mask = None if unseen is None else unseen[..., : at + 1]
        keys, values = cache.keys[..., : at + 1, :].unbind(), cache.values[..., : at + 1, :].unbind()
        first = None
        for layer, (norm_1, c_attn, c_proj, norm_2, c_fc, mlp_proj, smear) in enumerate(layers):
            qkv = c_attn(norm_1(x)).view(B, 3, H, 1, D)
            q, k, v = qkv.unbind(1)
            if smear is not None:
                before, cache.last[layer] = cache.last[layer], k.clone()
                k.lerp_(before, smear)
            if modern:
                qk = qkv[:, :2]
                q, k = F.rms_norm(torch.addcmul(qk * turn, qk.roll(D // 2, -1), across), (D,)).unbind(1)
            if shares is not None:
                first, v = (v, v) if first is None else (first, torch.lerp(v, first, shares[layer]))
            keys[layer][:, :, at:] = k
            values[layer][:, :, at:] = v
            y = F.scaled_dot_product_attention(q, keys[layer], values[layer], attn_mask=mask)
            x = x + c_proj(y.view(B, C))
            h = c_fc(norm_2(x))
            x = x + mlp_proj(F.relu(h).square() if modern else F.gelu(h, approximate="tanh"))
        cache.length = at + 1
        return model.head(model.ln_f(x))

    return step
