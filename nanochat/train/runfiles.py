"""The files of a run in out/<run>/: the lock, the metrics, and the backups made when a stage is started over."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import checkpoint, files, paths
from ..config import UserError
from ..state import previous_state, unfinished_state
from ..trainer import StepReport

Say = Callable[[str], None]


@contextmanager
def locked(run: str, doing: str) -> Iterator[None]:
    """Hold the lock of `run` during the block; the operating system releases it if the process dies.

    `doing` describes the work in the error messages of other processes. Raises UserError, naming the other process, if the
    run is already locked.
    """
    holder = _holder(run)
    files.make_folder(holder.parent)
    # not thread-local: a training that is dropped half-way may be closed, and so unlock, in any thread
    lock = FileLock(holder.with_suffix(""), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(_in_use(run, holder)) from None
    try:
        now = {"pid": os.getpid(), "doing": doing, "since": time.strftime("%H:%M")}
        with files.atomic_write(holder, "w") as file:
            json.dump(now, file)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(run: str) -> Path:
    """Where the process that holds the lock, which is beside it, says who it is."""
    return paths.run_dir(run) / ".lock.json"


def _in_use(run: str, holder: Path) -> str:
    other: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        other = json.loads(holder.read_text(encoding="utf-8"))
    who = f"process {other.get('pid', 'unknown')} ({other.get('doing', 'at work')} since {other.get('since', 'just now')})"
    if other.get("pid") == os.getpid():
        return f"run {run!r} is in use by this very process; close() the unfinished training, then try again"
    return f"run {run!r} is in use by {who}; wait until it ends or stop it, or choose another run name"


def sweep(run: str, stage: str) -> None:
    """Remove the half-written files of a process that was killed. Only for whoever holds the lock."""
    for target in (*stage_files(run, stage), paths.metrics_path(run), _holder(run)):
        for torn in target.parent.glob(f".{target.name}.*.tmp"):
            torn.unlink()
    unfinished_state(paths.last_path(run, stage)).unlink(missing_ok=True)


def stage_files(run: str, stage: str) -> list[Path]:
    """The paths of a stage's best weights, of its current and previous training state, and of its report card."""
    state = paths.last_path(run, stage)
    return [paths.checkpoint_path(run, stage), state, previous_state(state), paths.card_path(run, stage)]


# --- metrics.jsonl


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl, except an incomplete line, which a killed process may leave."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            yield json.loads(line)


def _write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with files.atomic_write(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All step reports of a run, as dictionaries, in the order of training; incomplete lines are left out."""
    return list(_records(paths.metrics_path(run)))


def metrics_logger(run: str, stage: str, keep_until: int) -> Callable[[StepReport], None]:
    """Remove a stage's records after step `keep_until`, to be repeated; returns the function that appends records."""
    path = paths.metrics_path(run)
    _write_records(path, [r for r in _records(path) if r["stage"] != stage or r["step"] <= keep_until])

    def append(report: StepReport) -> None:
        files.append_line(path, json.dumps(report.record()))

    return append


# --- backups


def set_aside(run: str, stage: str, say: Say) -> None:
    """Back up a stage that is to be started over, and the stages trained from it, in a new folder out/<run>/earlier-N/.

    Best weights, training state, report card and metrics are moved there, and `say` reports how to restore them. Stand-ins,
    and stages that were never trained, are deleted instead.
    """
    later = paths.STAGES[paths.STAGES.index(stage) :]
    left = [file for each in later for file in stage_files(run, each) if file.is_file()]
    records = read_metrics(run)
    if any(_trained(file) for file in left if file.suffix == ".pt"):
        aside = _new_folder(run)
        _write_records(aside / "metrics.jsonl", [r for r in records if r["stage"] in later])
        for file in left:
            files.move(file, aside / file.name)
        held = ", ".join(each for each in later if (aside / paths.checkpoint_path(run, each).name).is_file())
        say(
            f"The earlier {held or stage} of run {run!r} is kept in {aside.name}; "
            f"`nanochat restore --run {run} {aside.name}` brings it back."
        )
    else:
        for file in left:
            file.unlink()
    if any(r["stage"] in later for r in records):
        _write_records(paths.metrics_path(run), [r for r in records if r["stage"] not in later])


def _new_folder(run: str) -> Path:
    for number in count(1):
        folder = paths.run_dir(run) / f"earlier-{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _trained(file: Path) -> bool:
    """Whether a model or state file holds trained weights, not a stand-in's or the initial ones; unreadable files count."""
    try:
        content = checkpoint.load_file(file, check=False)
    except UserError:
        return True
    meta = content["meta"]
    return not checkpoint.is_standin(meta) and content.get("step", meta.get("step", 1)) > 0


def restore(run: str, name: str, say: Say) -> None:
    """Restore the backup in out/<run>/<name>/, after backing up the current files of the same stages.

    Raises UserError if there is no such folder.
    """
    folder = paths.run_dir(run)
    kept = folder / paths.safe_name(name, "folder")
    there = sorted(path.name for path in folder.glob("earlier-*"))
    if name not in there:
        raise UserError(f"run {run!r} has nothing set aside as {name!r}; there is: {', '.join(there) or 'nothing'}")
    with locked(run, "restoring"):
        back = [s for s in paths.STAGES if any((kept / f.name).is_file() for f in stage_files(run, s))]
        set_aside(run, back[0] if back else paths.STAGES[0], say)
        for stage in back:
            for file in stage_files(run, stage):
                if (kept / file.name).is_file():
                    files.move(kept / file.name, file)
        _write_records(paths.metrics_path(run), [*read_metrics(run), *_records(kept / "metrics.jsonl")])
        shutil.rmtree(kept)
    say(f"run {run!r} has its earlier {', '.join(back)} again")
