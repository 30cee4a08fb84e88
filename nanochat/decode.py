"""Fast decoding of one token per row: what `GPT.trunk` and `GPT.head` compute for a single position after a cache.

For one position the overhead of Python and PyTorch outweighs the arithmetic. So everything that is the same for each token
is computed once, and the forward functions of the modules are written out as one. model.py explains the computations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import GPT, Cache, rms_norm

_EPSILON = torch.tensor(torch.finfo(torch.float32).eps)  # that of F.rms_norm


def _rms_norm(x: Tensor) -> Tensor:
    """Like `rms_norm` of model.py, in four operations where PyTorch uses seven on the CPU."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return rms_norm(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(_EPSILON, length, length, value=1 / x.size(-1)).rsqrt_()


def _norm(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if not isinstance(layer, nn.LayerNorm):
        return _rms_norm
    shape, weight, bias = layer.normalized_shape, layer.weight.detach(), layer.bias.detach()
    return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=layer.eps)


def _linear(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """x → layer(x) for matrices x, in one operation."""
    weight = layer.weight.detach().T
    if layer.bias is None:
        return lambda x: torch.mm(x, weight)
    bias = layer.bias.detach()
    return lambda x: torch.addmm(bias, x, weight)


def _added(layer: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """x, y → x + layer(y) for matrices, in one operation where there is no bias."""
    weight = layer.weight.detach().T
    if layer.bias is None:
        return lambda x, y: torch.addmm(x, y, weight)
    bias = layer.bias.detach()
    return lambda x, y: torch.addmm(x, y, weight).add_(bias)


def decoder(model: GPT, cache: Cache) -> Callable[[Tensor], Tensor]:
    """Return a function that reads the next token of each row, ids (B,) → logits (B, V), and adds it to the cache.

    The model must have filled the cache, which must have room. Call both functions under torch.inference_mode, and make a
    new decoder when the weights change. There is no dropout.
    """
    config, (_, B, H, capacity, D) = model.config, cache.keys.shape
    C, modern, device, dtype = config.n_embd, config.arch == "modern", cache.keys.device, cache.keys.dtype
    layers = [
        (
            _norm(block.ln_1), _linear(block.attn.c_attn), _added(block.attn.c_proj),
            _norm(block.ln_2), _linear(block.mlp.c_fc), _added(block.mlp.c_proj),
        )
        for block in model.h
    ]  # fmt: skip
    smears = [block.attn.smear.to(dtype) for block in model.h] if config.smear else None
    shares = model.value_shares.to(dtype).unbind() if config.value_residual else None
    if modern:
        # x * cos + (second half of x, first half) * sin is the rotation in three operations
        cos = torch.cat((model.cos, model.cos), dim=1).to(dtype)
        sin = torch.cat((-model.sin, model.sin), dim=1).to(dtype)
    padding = None
    if cache.start is not None:
        hidden = torch.arange(capacity, device=device) < cache.start[:, None, None, None]
        padding = torch.zeros(hidden.shape, device=device, dtype=dtype).masked_fill_(hidden, float("-inf"))

    def read(ids: Tensor) -> Tensor:
        at = cache.length
        x = model.wte(ids[:, None])[:, 0]
        if modern:
            x = _rms_norm(x)
            turn, across = cos[at], sin[at]
        else:
            x = x + (model.wpe.weight[at] if cache.start is None else model.wpe(at - cache.start))
        mask = None if padding is None else padding[..., : at + 1]
        keys, values = (each[..., : at + 1, :].unbind() for each in (cache.keys, cache.values))
        first = None
        for layer, (norm_1, c_attn, add_attention, norm_2, c_fc, add_mlp) in enumerate(layers):
            qkv = c_attn(norm_1(x)).view(B, 3, H, 1, D)
            q, k, v = qkv.unbind(1)
            if smears is not None:
                before, cache.last[layer] = cache.last[layer], k.clone()
                assert before is not None  # the model has filled the cache
                k.lerp_(before, smears[layer])
            if modern:
                qk = qkv[:, :2]
                q, k = _rms_norm(torch.addcmul(qk * turn, qk.roll(D // 2, -1), across)).unbind(1)
            if shares is not None:
                first, v = (v, v) if first is None else (first, torch.lerp(v, first, shares[layer]))
            keys[layer][:, :, at:] = k
            values[layer][:, :, at:] = v
            y = F.scaled_dot_product_attention(q, keys[layer], values[layer], attn_mask=mask)
            x = add_attention(x, y.view(B, C))
            h = c_fc(norm_2(x))
            x = add_mlp(x, F.relu(h).square_() if modern else F.gelu(h, approximate="tanh"))
        cache.length = at + 1
        return model.head(model.ln_f(x))

    return read
