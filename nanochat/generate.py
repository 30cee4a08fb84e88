"""Generation: one token at a time with a key-value cache, in batches or as a stream.

Past the context length the window slides: when a row has filled the context, its newest half is read again and generation
continues from there, so that the cost per token stays constant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import UserError
from .decode import decoder
from .model import GPT, Cache


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float = 1.0
) -> None:
    """Raise UserError for invalid sampling settings."""
    if not temperature >= 0:
        raise UserError(f"temperature must be 0 (greedy) or above, not {temperature!r}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, not {top_k!r}")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{name} must be above 0 and at most 1, not {value!r}")
    if not penalty > 0:
        raise UserError(f"repetition_penalty must be above 0 (1 is none), not {penalty!r}")


def next_token_probs(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """logits (B, V) → the probabilities (B, V) that sampling draws from.

    Temperature divides the logits (0 puts everything on the largest); then top-k (Fan et al. 2018), top-p (Holtzman et
    al. 2020) and min-p (Nguyen et al. 2024) each set the less likely ones to zero. Raises UserError for invalid values.
    """
    check_sampling(temperature, top_k, top_p, min_p)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    # sums over a vocabulary need float64, which Apple's GPU does not have
    exact = logits.float() if logits.device.type == "mps" else logits.double()
    # subtract the maximum first: divided by a temperature near zero it would become infinite, and the softmax NaN
    probs = torch.softmax((exact - exact.amax(dim=1, keepdim=True)) / temperature, dim=1)
    if top_k is not None and top_k < probs.size(1):
        probs = probs.masked_fill(probs < probs.topk(top_k).values[:, -1:], 0.0)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(dim=1, descending=True)
        before = ranked.cumsum(dim=1) - ranked
        # the most likely token always stays, as nothing comes before it
        beyond = before >= top_p * ranked.sum(dim=1, keepdim=True)
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
    if min_p is not None:
        probs = probs.masked_fill(probs < min_p * probs.max(dim=1, keepdim=True).values, 0.0)
    return (probs / probs.sum(dim=1, keepdim=True)).to(logits.dtype)


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """One index from each row of probabilities (B, V) → (B,).

    Inverse transform sampling, which takes a fraction of torch.multinomial's time: the first index at which the sum of the
    probabilities reaches a uniform number above 0 and at most 1, so never one of probability 0.
    """
    exact = probs if probs.device.type == "mps" else probs.double()  # Apple's GPU has no float64
    reached = exact.cumsum(dim=1)
    share = 1 - torch.rand(len(probs), 1, generator=generator, device=probs.device, dtype=exact.dtype)
    return torch.searchsorted(reached, share * reached[:, -1:]).squeeze(1)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens of seen (B, V, bool) less likely: positive logits divided, negative ones multiplied by `penalty`
    (Keskar et al. 2019, CTRL, section 4.1)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@torch.inference_mode()
def _steps(
    model: GPT, prompts: list[list[int]], max_new_tokens: int, sampling: dict[str, Any], penalty: float, seed: int
) -> Iterator[list[int]]:
    """Yield the next token id of each prompt, max_new_tokens times; the caller decides when to stop."""
    check_sampling(**sampling, penalty=penalty)
    if not prompts or not all(prompts):
        raise UserError("an empty prompt has nothing to continue; start from the end-of-text token")
    weight = next(model.parameters())
    device, dtype, block_size = weight.device, weight.dtype, model.config.block_size
    generator = torch.Generator(device=device).manual_seed(seed)
    rows = [prompt[-block_size:] for prompt in prompts]
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
    cache: Cache | None = None
    picked = torch.empty(0)
    for made in range(max_new_tokens):
        if cache is None or cache.length == block_size:
            # only full rows slide, so that each row gets the same tokens as without the others
            rows = [row if len(row) <= block_size else row[-max(1, block_size // 2) :] for row in rows]
            width = max(map(len, rows))
            padded = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
            padding = [width - len(row) for row in rows]
            start = torch.tensor(padding, device=device) if any(padding) else None
            capacity = min(block_size, width + max_new_tokens - made)
            cache = Cache(model.config, len(rows), capacity, device, start, dtype)
            for i, row in enumerate(rows):
                seen[i, row] = True
            # only the last position's logits are needed
            logits = model.head(model.trunk(padded, cache=cache)[:, -1])
            read = decoder(model, cache)
        else:
            logits = read(picked)
        if penalty != 1.0:
            logits = penalize(logits, seen, penalty)
        if sampling["temperature"] == 0:
            picked = logits.argmax(dim=1)
        else:
            picked = draw(next_token_probs(logits, **sampling), generator)
        if penalty != 1.0:
            seen.scatter_(1, picked[:, None], True)
        tokens = picked.tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        yield tokens


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """Continue each prompt (lists of token ids, of any lengths) by up to max_new_tokens tokens, all rows in one batch.

    Returns the new tokens only, each row up to its first stop token (which is left out). Prompts longer than the context
    are cropped from the left: their newest block_size tokens are read. Raises UserError for empty prompts or invalid
    sampling settings.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(answers)))
    if not answers:
        return answers
    for picked in _steps(model, [list(p) for p in prompts], max_new_tokens, sampling, repetition_penalty, seed):
        for i, token in enumerate(picked):
            if i in open_rows:
                open_rows.discard(i) if token in stop else answers[i].append(token)
        if not open_rows:
            break
    return answers


def stream(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Yield the tokens that `generate` would return for one prompt. Close the iterator to stop early."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for (token,) in _steps(model, [list(prompt)], max_new_tokens, sampling, repetition_penalty, seed):
        if token in stop:
            return
        yield token
