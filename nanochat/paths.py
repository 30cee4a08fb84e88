"""Where things are, from any working directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from .config import UserError, safe_name, unknown

__all__ = [
    "BOX",
    "STAGES",
    "box_dir",
    "card_path",
    "checkpoint_path",
    "data_dir",
    "feedback_path",
    "home",
    "last_path",
    "metrics_path",
    "new_run",
    "newest_first",
    "run_dir",
    "safe_name",
    "stage_name",
]

STAGES = ("base_model", "fine_tuned", "aligned")
BOX = "box"  # the run whose model comes with the package


def home() -> Path:
    """The project folder: $NANOCHAT_HOME, else the checkout this package lies in, else the working directory."""
    if chosen := os.environ.get("NANOCHAT_HOME"):
        return Path(chosen).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def data_dir(name: str) -> Path:
    """data/<name>: a corpus, a QA set, or `feedback`."""
    return home() / "data" / safe_name(name, "data folder")


def run_dir(run: str) -> Path:
    """out/<run>: everything one run makes."""
    return home() / "out" / safe_name(run)


def box_dir() -> Path:
    """nanochat/chat/box: the model that comes with the package. What is said with it goes to out/box and data/feedback."""
    return Path(__file__).resolve().parent / "chat" / BOX


def new_run(run: str) -> str:
    """`run` if a model can be trained under this name; raises UserError otherwise."""
    if safe_name(run) == BOX:
        raise UserError(f"{BOX!r} names the model that comes with nanochat; choose another name for your run")
    return run


def stage_name(stage: str) -> str:
    """`stage` if it is one of STAGES; raises UserError otherwise."""
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    return stage


def checkpoint_path(run: str, stage: str) -> Path:
    """out/<run>/<run>_<stage>.pt: the best weights of a stage."""
    return run_dir(run) / f"{run}_{stage_name(stage)}.pt"


def last_path(run: str, stage: str) -> Path:
    """out/<run>/<stage>_last.pt: everything that exact resume needs."""
    return run_dir(run) / f"{stage_name(stage)}_last.pt"


def card_path(run: str, stage: str) -> Path:
    """out/<run>/<stage>_card.json: the report card of a stage's model."""
    return run_dir(run) / f"{stage_name(stage)}_card.json"


def metrics_path(run: str) -> Path:
    """out/<run>/metrics.jsonl: one line for each step report."""
    return run_dir(run) / "metrics.jsonl"


def feedback_path(run: str) -> Path:
    """data/feedback/<run>.jsonl."""
    return data_dir("feedback") / f"{safe_name(run)}.jsonl"


def newest_first(files: Iterable[Path]) -> list[Path]:
    """The files that exist, those changed last first: what "newest" and "last" mean everywhere.

    Files changed at the same moment are in the order of their paths.
    """
    changed = []
    for file in files:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            changed.append((-file.stat().st_mtime_ns, file))
    return [file for _, file in sorted(changed)]
