"""The state file of a training: all that exact resume needs, in two generations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint, files
from .config import UserError


def previous_state(path: Path) -> Path:
    """Where the state before the one in `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def unfinished_state(path: Path) -> Path:
    """Where a state waits until it takes the place of the one in `path`; killed then, a process leaves it there."""
    return path.with_name(f"{path.name}.next")


def has_state(path: Path) -> bool:
    """Whether there is a state to go on from."""
    return path.is_file() or previous_state(path).is_file()


def load_state(path: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The newest state that can be read: that in `path`, or the one before it, and then `say` is told.

    Raises UserError if there is none.
    """
    try:
        state = checkpoint.load_file(path)
    except UserError as error:
        if not previous_state(path).is_file():
            raise
        state = checkpoint.load_file(previous_state(path))
        say(f"{error}: going on from the state before it, after {state['step']} steps.")
    if "settings" not in state:
        raise UserError(f"{path.name} is no training state of this version of nanochat; start over without resume")
    return state


def _cpu_state(value: Any) -> Any:
    """Nested state with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _cpu_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cpu_state(item) for item in value]
    return value


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state to `path` and keep the one that was there: however this ends, one of the two can be read."""
    checkpoint.save_file(unfinished_state(path), _cpu_state(state))
    if path.is_file():
        files.move(path, previous_state(path))
    files.move(unfinished_state(path), path)
