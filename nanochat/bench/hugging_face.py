"""The baseline for training steps: Hugging Face's GPT-2, in this process or in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import torch

from ..config import ModelConfig, UserError
from .shapes import Shape, Step, random_batch, whole_step


def installed() -> bool:
    """Whether transformers, of the extra [hf], is installed."""
    return "transformers" in sys.modules or importlib.util.find_spec("transformers") is not None


def step(shape: Shape, device: torch.device, dtype: torch.dtype) -> Step:
    """A training step of GPT2LMHeadModel without dropout, with gradient clipping and fused AdamW.

    Raises ImportError if transformers is not installed.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = shape.config
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer,
            n_head=config.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    ).to(device)  # fmt: skip
    model.train()
    x, _ = random_batch(shape, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    return whole_step(model, lambda: model(x, labels=x).loss, optimizer, device, dtype)


@contextmanager
def separate_step(shape: Shape, device: torch.device, dtype: torch.dtype) -> Iterator[Step]:
    """`step` in a process of its own, without our memory settings. A call raises UserError if that process has failed."""
    order = json.dumps([asdict(shape), str(device), str(dtype).removeprefix("torch.")])
    with subprocess.Popen(
        [sys.executable, "-m", "nanochat.bench.hugging_face", order], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, bufsize=1,
    ) as child:  # fmt: skip
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None and stdout is not None

        def run() -> None:
            with suppress(OSError):  # the process has ended, so there will be no answer either
                stdin.write("step\n")
            if stdout.readline() != "done\n":
                raise UserError("Hugging Face's training step failed; see the error above")

        try:
            yield run
        finally:
            child.kill()


def main(order: str) -> None:
    """Do a step for each line of standard input."""
    shape, device, dtype = json.loads(order)
    config = ModelConfig(**shape["config"])
    run = step(Shape(shape["name"], config, shape["batch_size"]), torch.device(device), getattr(torch, dtype))
    for _ in sys.stdin:
        run()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
