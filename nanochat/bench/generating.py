"""Speed of generation: with and without a key-value cache, early and late in the context, one text and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ..config import model_config
from ..generate import generate, stream
from ..model import GPT
from .rows import Row, measured
from .timing import interleave, ratio

GROUP = "generation"
CONTEXTS = (128, 256, 512, 1024)


@torch.inference_mode()
def uncached(model: GPT, prompt: list[int], new: int) -> list[int]:
    """Greedy generation without a cache, which processes the whole text again for each token."""
    ids = list(prompt)
    device = next(model.parameters()).device
    for _ in range(new):
        last = model.trunk(torch.tensor([ids], device=device))[:, -1:]
        ids.append(int(model.head(last).argmax()))
    return ids[len(prompt) :]


def _prompt(length: int) -> list[int]:
    return [(7 * i) % 1000 for i in range(length)]


def _pull(tokens: Iterator[int], count: int) -> Callable[[], object]:
    def pull() -> None:
        for _ in range(count):
            next(tokens)

    return pull


def rows(device: torch.device, contexts: Sequence[int] = CONTEXTS, new: int = 32, rounds: int = 3) -> list[Row]:
    """Benchmark `nano-long` with room for the longest context, then `nano`; weights do not affect the speed."""
    torch.manual_seed(0)
    far = contexts[-1]
    model = GPT(model_config("nano-long", 1024, block_size=2 * far)).to(device).eval()
    found: list[Row] = []
    for context in contexts:
        prompt = _prompt(context - new)
        seconds = interleave(
            {
                "cached": partial(generate, model, [prompt], max_new_tokens=new),
                "uncached": partial(uncached, model, prompt, new),
            },
            rounds,
        )
        found.append(
            measured(
                GROUP, f"cache against no cache, up to {context} tokens", ratio(seconds["uncached"], seconds["cached"]),
                "x", f"{new} new tokens, reading the prompt included, {rounds} rounds in turns; nano-long in float32",
                target=5.0 if context == far else None,
            )
        )  # fmt: skip
    return [*found, _flat(model, contexts, new, rounds), *_rates(device, 3 * new, rounds)]


def _flat(model: GPT, contexts: Sequence[int], new: int, rounds: int) -> Row:
    """Time per token late in the context relative to early in it, reading the prompt left out."""
    near, far = contexts[0], contexts[-1]
    total = new * (rounds + 2)
    streams = {context: stream(model, _prompt(context), max_new_tokens=total) for context in (near, far)}
    for tokens in streams.values():
        next(tokens)  # reads the prompt
    seconds = interleave({str(context): _pull(tokens, new) for context, tokens in streams.items()}, rounds)
    return measured(
        GROUP, f"time per token after {far} tokens against after {near}", ratio(seconds[str(far)], seconds[str(near)]),
        "x", f"{new} tokens of two running streams, {rounds} rounds in turns, reading the prompts left out",
        target=1.5, at_most=True,
    )  # fmt: skip


@contextmanager
def _one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rates(device: torch.device, new: int, rounds: int, many: int = 64) -> list[Row]:
    """Tokens per second of the preset `nano`, one text on one core and many texts on all, greedy and sampled."""
    torch.manual_seed(0)
    model = GPT(model_config("nano", 1024)).to(device).eval()
    prompt = _prompt(16)

    def write(texts: int, temperature: float) -> Callable[[], object]:
        return lambda: generate(model, [prompt] * texts, max_new_tokens=new, temperature=temperature)

    temperatures = {"greedy": 0.0, "sampled": 0.8}
    with _one_core():
        alone = interleave({name: write(1, heat) for name, heat in temperatures.items()}, rounds)
    together = interleave({name: write(many, heat) for name, heat in temperatures.items()}, rounds)
    how = f"{new} new tokens after {len(prompt)}, reading them included, {rounds} rounds; nano in float32"
    return [
        measured(
            GROUP, f"{what}, {name}", ratio([texts * new] * rounds, seconds[name]), "tokens/s", how, target=target
        )
        for what, texts, seconds, target in (
            ("one text, one core", 1, alone, 2_000.0), (f"{many} texts at once", many, together, 20_000.0),
        )
        for name in temperatures
    ]  # fmt: skip
