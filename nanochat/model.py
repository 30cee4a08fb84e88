"""The GPT: one class, two architectures.

`arch="gpt2"` is GPT-2 (Radford et al. 2019) to the letter, so that its published weights fit. `arch="modern"` keeps the
skeleton and changes what has measured better since: rotary positions (Su et al. 2021), RMSNorm without weights (Zhang and
Sennrich 2019), normalised queries and keys (Henry et al. 2020), squared ReLU (So et al. 2021), no biases, logits capped by
a tanh (Gemma 2, 2024) and output projections that start at zero, so that each block starts as identity. With `smear` heads
may look for positions by the token before them, so that one layer suffices to find what followed a word earlier in the text
(the smeared keys of Olsson et al. 2022, "In-context Learning and Induction Heads"). With `value_residual` a layer may hand
on, in place of a share of its own values, those of the first layer, in which each token is still plainly itself (Zhou et
al. 2024, "Value Residual Learning").

Shapes: B rows, T positions, C = n_embd, H heads of D = C / H, V = vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig, UserError
from .loss import SOFTCAP, head_loss


class Cache:
    """Keys and values of the positions already seen, preallocated: 2 x n_layer x (B, H, capacity, D).

    `start` (B,) counts the padding positions on the left of each row: they are never attended to. `dtype` is that of the
    model's weights. `last` holds the newest key of each layer, (B, H, 1, D), as it was before it was smeared.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device,
        start: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.n_layer, batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        self.start = start
        self.last: list[Tensor | None] = [None] * config.n_layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, D) behind what is there; returns views of everything stored for this layer."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rotary_table(length: int, head_size: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_size / 2) of RoFormer's angles position / base^(2i/D) (Su et al. 2021, section 3.2.2)."""
    frequencies = base ** (-torch.arange(0, head_size, 2).float() / head_size)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of x (B, H, T, D) by the angle of its position."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def rms_norm(x: Tensor) -> Tensor:
    """x scaled to unit root mean square over its last dimension, without learned weights."""
    return F.rms_norm(x, (x.size(-1),))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for q (B, H, T, D), k and v (B, H, T_keys, D); causal where `mask` is None."""
    T, keys = q.size(-2), k.size(-2)
    if q.device.type == "cpu" and T > 1 and keys <= 512:
        # PyTorch's fused kernel is made for long texts: forward and backward of 16 x 4 x 256 x 64 in bfloat16 take it
        # 18-25 ms on two cores, these three lines 9 ms (32 x 4 x 128 x 64: 30 against 7 ms; float32: no difference)
        if mask is None:
            mask = torch.ones(T, keys, dtype=torch.bool, device=q.device).tril(keys - T)
        scores = (q @ k.mT) * q.size(-1) ** -0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, dropout_p=dropout)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        bias = config.arch == "gpt2"
        self.config, self.layer = config, layer
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        if config.smear:
            # Half of the heads begin with the key before in place of each key. To learn to copy 31 random tokens took two
            # layers 110 steps without, 50 so, and still 100 with a share of 0.3 of the embedding before in each position.
            self.copying = slice((config.n_head + 1) // 2)
            share = torch.zeros(config.n_head, 1, config.n_embd // config.n_head)
            share[self.copying] = 1.0
            self.smear = nn.Parameter(share)

    def begin_to_copy(self) -> None:
        """Let the heads with smeared keys begin as what copies: they look where the same token stood before, and add a
        share of what came after it.

        For that each one's queries and keys are made by the same matrix, and c_proj undoes what made its values (after
        Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"). To copy 31 random tokens took two
        layers 28 steps from random queries and zeros, 22 with equal matrices only, 10 so.
        """
        H, C = self.config.n_head, self.config.n_embd
        q, k, v = self.c_attn.weight.view(3, H, C // H, C)
        k[self.copying] = q[self.copying]
        self.c_proj.weight.view(C, H, C // H)[:, self.copying] = 0.3 * v[self.copying].permute(2, 0, 1)

    def heads(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        first: Tensor | None = None,
        cache: Cache | None = None,
        residual: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) → queries, keys and values, each (B, H, T, D); the other arguments as in `forward`."""
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
        if self.config.smear:  # before the rotation, which does not commute with a share for each channel
            k = self._smeared(k, first, cache)
        if rotary is not None:
            # rotate, then normalise: the rotation keeps lengths, so the order only matters for rounding
            q, k = rms_norm(rotate(q, *rotary)), rms_norm(rotate(k, *rotary))
        if residual is not None:
            values, share = residual
            v = v + share.to(v.dtype) * (values - v)
        return q, k, v

    def values(self, x: Tensor) -> Tensor:
        """x (B, T, C) → values (B, H, T, D) alone."""
        B, T, C = x.shape
        return F.linear(x, self.c_attn.weight[2 * C :]).view(B, T, self.config.n_head, -1).transpose(1, 2)

    def _smeared(self, k: Tensor, first: Tensor | None, cache: Cache | None) -> Tensor:
        """Keys k (B, H, T, D), each with a learned share of it replaced by the key before it in the same text."""
        last = cache.last[self.layer] if cache is not None else None
        before = torch.cat((torch.zeros_like(k[:, :, :1]) if last is None else last, k[:, :, :-1]), dim=2)
        if first is not None:
            before = before.masked_fill(first[:, None, :, None], 0.0)
        if cache is not None:
            cache.last[self.layer] = k[:, :, -1:]
        return k + self.smear.to(k.dtype) * (before - k)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None,
        first: Tensor | None = None,
        residual: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, C) → (B, T, C). `mask` (B, 1, T, T_keys) is True where a query may look; None means plainly causal.

        `first` (B, T) is True where a text begins; None means only at the start of the row. `residual` are the values of
        the first layer (B, H, T, D), and the share of them to be taken here.
        """
        B, T, C = x.shape
        q, k, v = self.heads(x, rotary, first, cache, residual)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v, mask, self.config.dropout if self.training else 0.0)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two matrices with a bend between them, four times as wide inside."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        bias = config.arch == "gpt2"
        self.gelu = config.arch == "gpt2"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) → (B, T, C)."""
        h = self.c_fc(x)
        h = F.gelu(h, approximate="tanh") if self.gelu else F.relu(h).square()
        return self.c_proj(h)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream after a norm (pre-norm, as in GPT-2)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        gpt2 = config.arch == "gpt2"
        self.ln_1: nn.Module = nn.LayerNorm(config.n_embd) if gpt2 else RMSNorm()
        self.attn = Attention(config, layer)
        self.ln_2: nn.Module = nn.LayerNorm(config.n_embd) if gpt2 else RMSNorm()
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None,
        first: Tensor | None = None,
        residual: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, C) → (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), rotary, mask, cache, first, residual))
        return x + self.drop(self.mlp(self.ln_2(x)))


class RMSNorm(nn.Module):
    """`rms_norm` as a module: the modern architecture's norm has nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) → (..., C)."""
        return rms_norm(x)


class GPT(nn.Module):
    """A decoder-only transformer: token ids (B, T) in, logits (B, T, V) or a loss out.

    Parameter names are those of the published GPT-2 (`wte`, `wpe`, `h.0.attn.c_attn`, …).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        modern = config.arch == "modern"
        self.softcap = SOFTCAP if modern else None
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if not modern:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f: nn.Module = RMSNorm() if modern else nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if modern:
            cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if config.value_residual:
            self.value_shares = nn.Parameter(torch.zeros(config.n_layer))  # the first stands for nothing
        # tied in both: copying a word from the text needs no map from each token's embedding to its row of the head
        self.lm_head.weight = self.wte.weight
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        config = self.config
        if config.arch == "gpt2":
            # Radford et al. 2019, section 2.3: N(0, 0.02), residual projections scaled by 1 / sqrt(2 * n_layer)
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    p.normal_(0.0, 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02)
                elif name.endswith("bias"):
                    p.zero_()
            return
        self.wte.weight.normal_(0.0, 0.02)
        bound = math.sqrt(3.0 / config.n_embd)  # a uniform of this half-width has standard deviation 1 / sqrt(C)
        for block in self.h:
            block.attn.c_attn.weight.uniform_(-bound, bound)
            block.mlp.c_fc.weight.uniform_(-bound, bound)
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
            if config.smear:
                block.attn.begin_to_copy()

    def _positions(self, T: int, docs: Tensor | None, cache: Cache | None, device: torch.device) -> Tensor:
        """Positions (T,) or (B, T): counted from the start of the row's text, or of each document in it."""
        at = torch.arange(T, device=device)
        if docs is not None:
            first = torch.ones_like(docs, dtype=torch.bool)
            first[:, 1:] = docs[:, 1:] != docs[:, :-1]
            return at - torch.where(first, at, 0).cummax(dim=1).values
        if cache is None:
            return at
        at = at + cache.length
        return at if cache.start is None else (at[None] - cache.start[:, None]).clamp(min=0)

    def _first(self, T: int, docs: Tensor | None, cache: Cache | None, device: torch.device) -> Tensor | None:
        """(B, T), True where a text begins, so that nothing stands before; None where only the row's own start does."""
        if docs is not None:
            return F.pad(docs[:, 1:] != docs[:, :-1], (1, 0), value=True)
        if cache is not None and cache.start is not None and cache.length == 0:
            return torch.arange(T, device=device) <= cache.start[:, None]
        return None

    def _mask(self, T: int, docs: Tensor | None, cache: Cache | None, device: torch.device) -> Tensor | None:
        """(B, 1, T, T_keys), True where a query may look; None where plain causality says it all."""
        if docs is not None:
            same = docs[:, None, :, None] == docs[:, None, None, :]
            return same & torch.ones(T, T, dtype=torch.bool, device=device).tril()
        if cache is None or (cache.start is None and (cache.length == 0 or T == 1)):
            return None
        queries = torch.arange(cache.length, cache.length + T, device=device)
        keys = torch.arange(cache.length + T, device=device)
        causal = (keys[None] <= queries[:, None])[None, None]
        if cache.start is None:
            return causal
        # a padding position sees itself: a softmax over nothing is NaN
        own = (keys[None] == queries[:, None])[None, None]
        return (causal & (keys[None] >= cache.start[:, None])[:, None, None]) | own

    def trunk(self, idx: Tensor, docs: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """idx (B, T) → what the head reads, (B, T, C). Raises UserError when idx is longer than the context allows."""
        T = idx.size(1)
        seen = cache.length if cache is not None else 0
        if seen + T > self.config.block_size:
            raise UserError(
                f"{seen + T} tokens do not fit the model's context of {self.config.block_size}; crop the text from the left"
            )
        rotary = None
        x = self.wte(idx)
        if self.config.arch == "gpt2":
            x = self.drop(x + self.wpe(self._positions(T, docs, cache, idx.device)))
        else:
            x = self.drop(rms_norm(x))
            # rotary positions are relative: neither documents nor left padding need their own count
            rotary = self.cos[seen : seen + T], self.sin[seen : seen + T]
        mask = self._mask(T, docs, cache, idx.device)
        first = self._first(T, docs, cache, idx.device) if self.config.smear else None
        # Beforehand, although the first layer will make the same: so all blocks are called alike and torch.compile
        # compiles one, not two. The price is one product of 37 in a model of three layers
        values = self.h[0].attn.values(self.h[0].ln_1(x)) if self.config.value_residual else None
        for layer, block in enumerate(self.h):
            residual = None if values is None else (values, self.value_shares[layer])
            x = block(x, rotary, mask, cache, first, residual)
        if cache is not None:
            cache.length += T
        return self.ln_f(x)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, docs: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """idx (B, T) → logits (B, T, V) in float32; with targets (B, T) → the mean loss in nats, a scalar.

        Targets of -1 carry no loss. `docs` (B, T) numbers the document of each position: no position looks into another
        document. With `cache`, idx continues what the cache holds.
        """
        x = self.trunk(idx, docs, cache)
        if targets is not None:
            return head_loss(x, self.lm_head.weight, targets, self.softcap)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """What the trunk returns, (B, T, C) → logits (B, T, V) in float32."""
        logits = self.lm_head(x).float()
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def n_params(self) -> int:
        """How many numbers are learned; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, head_share: float = 1.0) -> int:
        """Floating point operations of forward and backward for one token, after Chowdhery et al. 2022 (PaLM), appendix B:
        6 for each weight of a matrix that is multiplied, and 12 * n_layer * C * T for attention. The head is multiplied
        for a share of the positions only where the others have no target (see head_loss)."""
        config = self.config
        matrices = sum(p.numel() for p in self.h.parameters() if p.dim() == 2)
        matrices += round(head_share * self.lm_head.weight.numel())
        return 6 * matrices + 12 * config.n_layer * config.n_embd * config.block_size


def count_params(config: ModelConfig) -> int:
    """The parameter count of a shape, without allocating it."""
    with torch.device("meta"):
        return GPT(replace(config)).n_params()
