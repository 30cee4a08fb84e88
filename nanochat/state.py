"""The state file of a training, which holds all that an exact resume needs; the one before it is kept as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint, files
from .config import UserError


def previous_state(path: Path) -> Path:
    """The path of the previous state, kept next to that in `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def unfinished_state(path: Path) -> Path:
    """The path a new state is written to before it replaces the one in `path`; a killed process may leave it behind."""
    return path.with_name(f"{path.name}.next")


def has_state(path: Path) -> bool:
    """Whether there is a state to resume from."""
    return path.is_file() or previous_state(path).is_file()


def load_state(path: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Read the state in `path`, or, if that cannot be read, the previous one; `say` then receives a message.

    Raises UserError if neither can be read.
    """
    try:
        state = checkpoint.load_file(path)
    except UserError as error:
        if not previous_state(path).is_file():
            raise
        state = checkpoint.load_file(previous_state(path))
        say(f"{error}: resuming from the previous state, after {state['step']} steps.")
    if "settings" not in state:
        raise UserError(f"{path.name} is not a training state of this version of nanochat; start over without resume")
    return state


def _cpu_state(value: Any) -> Any:
    """`value` with all tensors in its dicts and lists moved to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _cpu_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cpu_state(item) for item in value]
    return value


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state to `path` and keep the previous one: even if interrupted, one of the two can be read."""
    checkpoint.save_file(unfinished_state(path), _cpu_state(state))
    if path.is_file():
        files.move(path, previous_state(path))
    files.move(unfinished_state(path), path)
