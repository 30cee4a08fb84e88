"""Peak memory of a command: its process and all child processes, including the interpreter and libraries."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from .. import files
from ..config import UserError

_PAUSE = 0.02  # seconds between samples


def _now_mb(process: psutil.Process) -> float:
    """Resident memory of the process and its children in MB; on Linux at least the peak so far of the process itself."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # the process has just ended
            total += member.memory_info().rss / 1e6
    with contextlib.suppress(OSError):
        if most := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()):
            total = max(total, int(most[1]) * 1024 / 1e6)
    return total


def peak_mb(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Run Python with `arguments`: (peak memory in MB, seconds). Raises UserError if it fails."""
    begin, peak = time.perf_counter(), 0.0
    with files.scratch() as said:
        child = subprocess.Popen(
            [sys.executable, *arguments], stdout=said, stderr=said, env={**os.environ, **(environment or {})}
        )
        try:
            while child.poll() is None:
                with contextlib.suppress(psutil.Error):
                    peak = max(peak, _now_mb(psutil.Process(child.pid)))
                time.sleep(_PAUSE)
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"a part of the bench failed ({last})")
    return peak, time.perf_counter() - begin


def torch_alone_mb() -> float:
    """Peak memory in MB of a process that only imports torch."""
    return peak_mb(["-c", "import torch"])[0]
