"""The GPT: one class, two architectures.

`arch="gpt2"` is exactly GPT-2 (Radford et al. 2019), so that its published weights can be loaded. `arch="modern"` keeps the
structure and adopts later improvements: rotary position embeddings (Su et al. 2021), RMSNorm without weights (Zhang and
Sennrich 2019), QK-norm (Henry et al. 2020), squared ReLU (So et al. 2021), no biases, tanh logit soft-capping (Gemma 2,
2024) and zero-initialized output projections, so that each block starts as the identity. With `smear`, keys are mixed with
the key of the token before, so that a single layer can find what followed a word earlier in the text (the smeared keys of
Olsson et al. 2022, "In-context Learning and Induction Heads"). With `value_residual`, each layer mixes the values of the
first layer, which still represent the tokens themselves, into its own (Zhou et al. 2024, "Value Residual Learning").

Shapes: B rows (batch), T positions, C = n_embd, H heads of size D = C / H, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig, UserError
from .loss import SOFTCAP, head_loss


class Cache:
    """The key-value cache: keys and values of earlier positions, preallocated as 2 x n_layer x (B, H, capacity, D).

    `start` (B,) counts the padding positions on the left of each row, which are never attended to. `dtype` is that of the
    model's weights. `last` holds the newest key of each layer, (B, H, 1, D), before smearing.
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
        """Append k, v (B, H, T, D) to a layer; returns views of all its keys and values, (B, H, T_keys, D)."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rotary_table(length: int, head_size: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_size / 2), of the angles position / base^(2i/D) (Su et al. 2021, section 3.2.2)."""
    frequencies = base ** (-torch.arange(0, head_size, 2).float() / head_size)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) of x (B, H, T, D) by the angle of its position; same shape."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm without weights: x (..., C) scaled to unit root mean square over its last dimension."""
    return F.rms_norm(x, (x.size(-1),))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(D)) v → (B, H, T, D) (Vaswani et al. 2017, section 3.2.1).

    q is (B, H, T, D), k and v (B, H, T_keys, D). `mask` is True where a query may attend; None means causal.
    """
    T, keys = q.size(-2), k.size(-2)
    if q.device.type == "cpu" and T > 1 and keys <= 512:
        # Faster on a CPU than PyTorch's fused kernel, which is made for long sequences. Adding the mask needs no pass of its
        # own through the gradient, as filling it in would; q is smaller than the scores, so the scale goes there
        if mask is None:
            mask = torch.ones(T, keys, dtype=torch.bool, device=q.device).tril(keys - T)
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
        weights = ((q * q.size(-1) ** -0.5) @ k.mT + bias).softmax(dim=-1)
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
            # Half of the heads start fully smeared, with each key replaced by the one before: they learn to copy sooner.
            self.copying = slice((config.n_head + 1) // 2)
            share = torch.zeros(config.n_head, 1, config.n_embd // config.n_head)
            share[self.copying] = 1.0
            self.smear = nn.Parameter(share)

    def init_as_induction_heads(self) -> None:
        """Initialize the heads with smeared keys as induction heads: they attend to what followed earlier occurrences of
        the current token, and add a share of it.

        For this, query and key projections are equal, and c_proj is a multiple of the transposed value projection (after
        Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers").
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
        """x (B, T, C) → queries, keys and values, each (B, H, T, D). The other arguments are those of `forward`."""
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
        if self.config.smear:  # before the rotation, which does not commute with per-channel shares
            k = self._smeared(k, first, cache)
        if rotary is not None:
            # the rotation preserves lengths, so the order of the two matters for rounding only
            q, k = rms_norm(rotate(q, *rotary)), rms_norm(rotate(k, *rotary))
        if residual is not None:
            values, share = residual
            v = v + share.to(v.dtype) * (values - v)
        return q, k, v

    def values(self, x: Tensor) -> Tensor:
        """x (B, T, C) → only the values, (B, H, T, D)."""
        B, T, C = x.shape
        return F.linear(x, self.c_attn.weight[2 * C :]).view(B, T, self.config.n_head, -1).transpose(1, 2)

    def _smeared(self, k: Tensor, first: Tensor | None, cache: Cache | None) -> Tensor:
        """k (B, H, T, D) with a learned share of each key replaced by the previous key of the same document."""
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
        """x (B, T, C) → (B, T, C).

        `rotary` is (cos, sin), each (T, D / 2), or None for no rotation. `mask` (B, 1, T, T_keys) is True where a query may
        attend; None means causal. `first` (B, T) is True where a document begins; None means only at the start of the row.
        `residual` is (values of the first layer (B, H, T, D), the share of them to mix in).
        """
        B, T, C = x.shape
        q, k, v = self.heads(x, rotary, first, cache, residual)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v, mask, self.config.dropout if self.training else 0.0)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """The feed-forward network: two linear layers with a nonlinearity between, hidden size 4 C."""

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
    """A transformer block: attention, then MLP, each on the normalized residual stream and added to it (pre-norm)."""

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
    """`rms_norm` as a module without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) → (..., C)."""
        return rms_norm(x)


class GPT(nn.Module):
    """A decoder-only transformer: token ids (B, T) → logits (B, T, V), or the loss.

    Parameters have the names of the published GPT-2 (`wte`, `wpe`, `h.0.attn.c_attn`, …).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        modern = config.arch == "modern"
        self.softcap = SOFTCAP if modern else None
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if not modern:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.h = cast("Sequence[Block]", blocks)  # torch does not say what a ModuleList is of
        self.ln_f: nn.Module = RMSNorm() if modern else nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if modern:
            cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if config.value_residual:
            self.value_shares = nn.Parameter(torch.zeros(config.n_layer))  # the first one has no effect
        # tied in both architectures: copying a token then needs no learned map from its embedding to its logit
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
                block.attn.init_as_induction_heads()

    def _positions(self, T: int, docs: Tensor | None, cache: Cache | None, device: torch.device) -> Tensor:
        """Positions (T,) or (B, T), counted from the start of the row (after padding), or of each document in it."""
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
        """(B, T), True where a document begins, so that no token precedes; None if only the row starts do."""
        if docs is not None:
            return F.pad(docs[:, 1:] != docs[:, :-1], (1, 0), value=True)
        if cache is not None and cache.start is not None and cache.length == 0:
            return torch.arange(T, device=device) <= cache.start[:, None]
        return None

    def _mask(self, T: int, docs: Tensor | None, cache: Cache | None, device: torch.device) -> Tensor | None:
        """(B, 1, T, T_keys), True where a query may attend; None where the causal mask alone is enough."""
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
        # padding positions attend to themselves, since a softmax over nothing is NaN
        own = (keys[None] == queries[:, None])[None, None]
        return (causal & (keys[None] >= cache.start[:, None])[:, None, None]) | own

    def trunk(self, idx: Tensor, docs: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Token ids idx (B, T) → final hidden states (B, T, C). Raises UserError if the context has no room for idx."""
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
            # rotary positions are relative, so documents and left padding need no positions of their own
            rotary = self.cos[seen : seen + T], self.sin[seen : seen + T]
        mask = self._mask(T, docs, cache, idx.device)
        first = self._first(T, docs, cache, idx.device) if self.config.smear else None
        # Computed here and again in the first layer, so that all blocks are called alike and torch.compile compiles one
        # instead of two.
        values = self.h[0].attn.values(self.h[0].ln_1(x)) if self.config.value_residual else None
        for layer, block in enumerate(self.h):
            residual = None if values is None else (values, self.value_shares[layer])
            x = block(x, rotary, mask, cache, first, residual)
        if cache is not None:
            cache.length += T
        return self.ln_f(x)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        docs: Tensor | None = None,
        cache: Cache | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Token ids idx (B, T) → logits (B, T, V) in float32; with targets (B, T) → the loss in nats, a scalar.

        Targets of -1 are ignored; over the others the loss is the "mean" or the "sum", as `reduction` says. `docs` (B, T)
        numbers the document of each position: no position attends to another document. With `cache`, idx continues the
        cached positions. Raises UserError if the context has no room for idx.
        """
        x = self.trunk(idx, docs, cache)
        if targets is not None:
            return head_loss(x, self.lm_head.weight, targets, self.softcap, reduction)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """Final hidden states (B, T, C) → logits (B, T, V) in float32."""
        logits = self.lm_head(x).float()
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def n_params(self) -> int:
        """The number of parameters; the tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, head_share: float = 1.0) -> int:
        """FLOPs per token of forward and backward pass (Chowdhery et al. 2022, appendix B): 6 per matrix weight, plus
        12 * n_layer * C * T for attention. `head_share` is the share of positions with a target: only for these is the
        head computed (see head_loss).
        """
        config = self.config
        matrices = sum(p.numel() for block in self.h for p in block.parameters() if p.dim() == 2)
        matrices += round(head_share * self.lm_head.weight.numel())
        return 6 * matrices + 12 * config.n_layer * config.n_embd * config.block_size


def count_params(config: ModelConfig) -> int:
    """The number of parameters of a configuration, without allocating them."""
    with torch.device("meta"):
        return GPT(replace(config)).n_params()
