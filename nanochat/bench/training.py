"""Speed of the training step, relative to Hugging Face's GPT-2 and to the machine's speed of matrix multiplication."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from .. import devices
from ..model import GPT
from ..optim import make_optimizers
from . import hugging_face
from .rows import Row, measured, unmeasured
from .shapes import SHAPES, Shape, Step, random_batch, whole_step
from .timing import interleave, ratio

GROUP = "training"


def our_step(shape: Shape, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> Step:
    """A full training step in `dtype`: forward, loss, backward, gradient clipping, Muon and AdamW."""
    torch.manual_seed(0)
    model = GPT(shape.config).to(device)
    x, y = random_batch(shape, device)
    optimizers = make_optimizers(model, dtype=dtype)
    if compiled:
        for block in model.h:
            block.compile()
    return whole_step(model, lambda: model(x, y), optimizers, device, dtype)


def matmul(device: torch.device, dtype: torch.dtype, size: int) -> Step:
    """A product of square matrices: 2 * size^3 floating point operations."""
    a = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        a @ a
        devices.synchronize(device)

    return product


def precisions(device: torch.device) -> list[torch.dtype]:
    """The precision that the device trains in and, on a CPU, float32."""
    return list(dict.fromkeys([torch.float32] * (device.type == "cpu") + [devices.matmul_dtype(device)]))


def rows(
    device: torch.device, shapes: Sequence[Shape] = SHAPES, rounds: int = 5, size: int = 2048, compiled: bool = True
) -> list[Row]:
    """For each shape and precision, the speed relative to Hugging Face and to the machine's matrix multiplication."""
    if device.type == "cpu":
        devices.keep_large_blocks()  # as the trainer does
    return [
        row
        for shape in shapes
        for dtype in precisions(device)
        for row in _compare(shape, device, dtype, rounds, size, compiled)
    ]


def _compare(
    shape: Shape, device: torch.device, dtype: torch.dtype, rounds: int, size: int, compiled: bool
) -> list[Row]:
    precision = str(dtype).removeprefix("torch.")
    what = f"{shape.name}, {precision}"
    candidates: dict[str, Step] = {"matmul": matmul(device, dtype, size), "eager": our_step(shape, device, dtype)}
    rows: list[Row] = []
    ways = ["eager"]
    if compiled:
        try:
            step = our_step(shape, device, dtype, compiled=True)
            step()
        except Exception as error:  # the compiler may raise anything
            problem = f"torch.compile does not work here ({type(error).__name__}); install a C++ compiler"
            rows.append(unmeasured(GROUP, f"share of the matrix rate: {what}, compiled", problem, target=70.0))
        else:
            candidates["compiled"] = step
            ways.append("compiled")
    with ExitStack() as stack:
        problem = "" if hugging_face.installed() else 'transformers is not installed; pip install "nanochat[hf]"'
        if not problem:
            candidates["with our memory"] = hugging_face.step(shape, device, dtype)
            candidates["as it comes"] = stack.enter_context(hugging_face.separate_step(shape, device, dtype))
        seconds = interleave(candidates, rounds)
    rate = GPT(shape.config).flops_per_token() * shape.tokens / (2 * size**3)
    for way in ways:
        how = f"{way}, forward to optimizer with clipping, {rounds} rounds in turns"
        name = f"against Hugging Face: {what}, {way}"
        against = f"{how} with eager GPT2LMHeadModel and fused AdamW in the same precision, in a process of its own"
        if problem:
            rows.append(unmeasured(GROUP, name, problem, target=1.5))
        else:
            found = ratio(seconds["as it comes"], seconds[way])
            rows.append(measured(GROUP, name, found, "x", against, target=1.5))
            found = ratio(seconds["with our memory"], seconds[way])
            against = f"{how}; Hugging Face in our process, where freed memory is kept (devices.keep_large_blocks)"
            rows.append(measured(GROUP, f"{name}, both with our memory setting", found, "x", against))
        found = ratio(seconds["matmul"], seconds[way], 100 * rate)
        goal = 70.0 if way == "compiled" else None  # longer trainings are compiled
        against = f"{how} with products of {size} x {size} in the same precision"
        name = f"share of the matrix rate: {what}, {way}"
        rows.append(measured(GROUP, name, found, "%", against, target=goal))
    return rows
