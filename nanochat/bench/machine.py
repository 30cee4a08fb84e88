"""A description of the machine that the benchmark runs on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import __version__, devices


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory in GB, software versions, and speed of matrix multiplication in GFLOP/s."""
    rates = {
        str(dtype).removeprefix("torch."): round(devices.matrix_rate(device.type, dtype) / 1e9)
        for dtype in dict.fromkeys((torch.float32, devices.matmul_dtype(device)))
    }
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "gflops": rates,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nanochat": __version__,
    }


def sentence(machine: dict[str, Any]) -> str:
    """The description as one line of text."""
    rates = ", ".join(f"{rate:,} GFLOP/s in {name}" for name, rate in machine["gflops"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB; "
        f"{machine['device']}: {rates}; {machine['system']}, Python {machine['python']}, PyTorch {machine['torch']}"
    )


def _processor() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
