"""The devices of this machine: names, number formats, memory, and the rate of matrix products."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import psutil
import torch

from .config import UserError, unknown


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU if there is one, else the CPU; raises UserError for a device this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on `meta` too, whose tensors have no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(f"device {name!r} cannot be used here; try device 'auto' or 'cpu'") from error
    return device


def _seconds(device: torch.device, dtype: torch.dtype, size: int, rounds: int = 5) -> float:
    """The fastest of a few matrix products size x size, in seconds."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


# Instruction sets, by PyTorch's names, with which a processor multiplies bfloat16 faster than float32. Without one of them
# bfloat16 is far slower.
_BFLOAT16_INSTRUCTIONS = {"x86_64": ("amx_bf16", "avx512_bf16"), "aarch64": ("bf16", "sve_bf16")}

_FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMAT_VARIABLE = "NANOCHAT_DTYPE"


def _cpu_has_bfloat16() -> bool:
    # an earlier PyTorch without this function computes in float32
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = _BFLOAT16_INSTRUCTIONS.get(str(found.get("architecture")), ())
    return sys.platform == "linux" and any(found.get(name) for name in names)


@cache
def _matmul_dtype(kind: str) -> torch.dtype:
    if wanted := os.environ.get(FORMAT_VARIABLE):
        if wanted not in _FORMATS:
            raise unknown(f"number format in {FORMAT_VARIABLE}", wanted, _FORMATS)
        return _FORMATS[wanted]
    if kind == "cuda":
        # GPUs before Ampere (T4, V100) only emulate bfloat16, which is slower there than float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def matmul_dtype(device: torch.device) -> torch.dtype:
    """The number format in which this device multiplies matrices while training.

    bfloat16 if the device has instructions for it, else float32; the environment variable NANOCHAT_DTYPE overrides this. It
    depends on the instruction set, not on a measurement, so that two runs on one machine never differ. Raises UserError for
    an unknown format.
    """
    return _matmul_dtype(device.type)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which matrices are multiplied in `matmul_dtype(device)`, whatever the weights are stored in."""
    dtype = matmul_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@cache
def matrix_rate(kind: str, dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations per second of a large square matrix product, measured once per process."""
    size = 1024 if kind == "cpu" else 4096
    return 2 * size**3 / _seconds(torch.device(kind), dtype, size)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_mb(device: torch.device) -> tuple[float, float]:
    """Memory of this process, and peak memory on the GPU (0 without one), both in MB."""
    rss = psutil.Process().memory_info().rss / 1e6
    return rss, torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the machine or its GPU was too small.

    PyTorch has an exception type for this on GPUs only; elsewhere the message must be read.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = re.search("(allocate|enough|out of) memory", str(error), re.IGNORECASE)
    return isinstance(error, RuntimeError | OSError) and said is not None


def prepare_device(device: torch.device) -> None:
    """Apply the process-wide settings that make training on `device` faster."""
    if device.type == "cpu":
        keep_large_blocks()
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for products that are not in bfloat16


def keep_large_blocks() -> bool:
    """Make glibc keep freed large blocks instead of returning them to the kernel after each step.

    Returns whether the C library accepted the settings, which only glibc knows.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4
        return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))
    except (OSError, AttributeError):
        return False
