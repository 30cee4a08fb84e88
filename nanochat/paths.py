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
BOX = "box"  # the run name of the bundled model, which comes with the package


def home() -> Path:
    """The project folder: $NANOCHAT_HOME, or else the checkout that contains this package, or the working directory."""
    if chosen := os.environ.get("NANOCHAT_HOME"):
        return Path(chosen).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def data_dir(name: str) -> Path:
    """data/<name>: a corpus, a QA set, or `feedback`."""
    return home() / "data" / safe_name(name, "data folder")


def run_dir(run: str) -> Path:
    """out/<run>: all output files of a run."""
    return home() / "out" / safe_name(run)


def box_dir() -> Path:
    """nanochat/chat/box: the bundled model. Its chats are saved in out/box, feedback on it in data/feedback."""
    return Path(__file__).resolve().parent / "chat" / BOX


def new_run(run: str) -> str:
    """`run` if it is a valid name for a new model; raises UserError otherwise."""
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
    """out/<run>/<stage>_last.pt: the complete state of the training, to resume from exactly."""
    return run_dir(run) / f"{stage_name(stage)}_last.pt"


def card_path(run: str, stage: str) -> Path:
    """out/<run>/<stage>_card.json: the report card of a stage's model."""
    return run_dir(run) / f"{stage_name(stage)}_card.json"


def metrics_path(run: str) -> Path:
    """out/<run>/metrics.jsonl: the step reports of the training, one per line."""
    return run_dir(run) / "metrics.jsonl"


def feedback_path(run: str) -> Path:
    """data/feedback/<run>.jsonl: the feedback on the answers of a run's models."""
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
