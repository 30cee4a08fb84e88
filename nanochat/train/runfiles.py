"""The files of a run in out/<run>/: the lock, the metrics, and the backups made when a stage is started over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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


def sweep(run: str) -> None:
    """Remove the half-written files of a process that was killed, and undo its half-made backup.

    The caller must hold the lock.
    """
    _undo_unfinished_backup(run)
    written = [paths.metrics_path(run), _holder(run)]
    for stage in paths.STAGES:
        written += stage_files(run, stage)
        unfinished_state(paths.last_path(run, stage)).unlink(missing_ok=True)
    for target in written:
        for torn in target.parent.glob(f".{target.name}.*.tmp"):
            torn.unlink()


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

_TRAININGS = {"base_model": "pretraining", "fine_tuned": "finetuning", "aligned": "alignment"}


def training(stage: str) -> str:
    """What the training of a stage is called: "pretraining", …"""
    return _TRAININGS[stage]


def _unfinished_backup(run: str) -> Path:
    return paths.run_dir(run) / ".earlier"


def backups(run: str) -> list[str]:
    """The names of a run's backups, oldest first."""
    return sorted((path.name for path in paths.run_dir(run).glob("earlier-*")), key=lambda name: (len(name), name))


def set_aside(run: str, stage: str, say: Say, *, keep: bool = False) -> None:
    """Back up a stage that is to be started over, and the stages trained from it, in a new folder out/<run>/earlier-N/.

    Best weights, training state, report card and metrics are moved there, all or none of them, and `say` reports how to
    restore them. Stand-ins, and stages that were never trained, are deleted instead. With `keep`, the stage itself is to
    be trained further: it is copied, and only the stages after it are moved.
    """
    later = paths.STAGES[paths.STAGES.index(stage) :]
    gone = later[1:] if keep else later
    there = {each: [file for file in stage_files(run, each) if file.is_file()] for each in later}
    moved = [file for each in gone for file in there[each]]
    records = read_metrics(run)
    if any(_trained(file) for file in moved if file.suffix == ".pt"):
        unfinished = _unfinished_backup(run)
        files.make_folder(unfinished)
        _write_records(unfinished / "metrics.jsonl", [r for r in records if r["stage"] in later])
        for file in there[stage] if keep else ():
            with files.atomic_write(unfinished / file.name) as copy:
                copy.write(file.read_bytes())
        for file in moved:
            files.move(file, unfinished / file.name)
        numbers = (int(name[8:]) for name in backups(run) if name[8:].isdigit())
        name = f"earlier-{1 + max(numbers, default=0)}"
        files.move(unfinished, paths.run_dir(run) / name)
        held = " and ".join(training(each) for each in later if there[each])
        say(
            f"The previous {held} of run {run!r} moved to {name}; "
            f"`nanochat restore --run {run} {name}` brings back what was there."
        )
    else:
        for file in moved:
            file.unlink()
    if any(r["stage"] in gone for r in records):
        _write_records(paths.metrics_path(run), [r for r in records if r["stage"] not in gone])


def _undo_unfinished_backup(run: str) -> None:
    """Move back what a process that was killed in `set_aside` had moved."""
    unfinished = _unfinished_backup(run)
    for file in sorted(unfinished.iterdir()) if unfinished.is_dir() else ():
        target = paths.run_dir(run) / file.name
        if target.exists() or file.name.startswith("."):  # a copy, or the part of one
            file.unlink()
        else:
            files.move(file, target)
    if unfinished.is_dir():
        unfinished.rmdir()


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

    The files of a run that was renamed since get its present name. Raises UserError if there is no such folder, or no
    training in it.
    """
    kept = paths.run_dir(run) / paths.safe_name(name, "folder")
    if name not in backups(run):
        raise UserError(f"run {run!r} has no backup {name!r}; it has: {', '.join(backups(run)) or 'none'}")
    with locked(run, "restoring"):
        sweep(run)
        found = {
            stage: [(source, file) for file in stage_files(run, stage) if (source := _in_backup(kept, run, file))]
            for stage in paths.STAGES
        }
        back = [stage for stage in paths.STAGES if found[stage]]
        if not back:
            raise UserError(f"out/{run}/{name} holds no files of a training; nothing was changed")
        set_aside(run, back[0], say)
        for source, file in (pair for stage in back for pair in found[stage]):
            files.move(source, file)
        metrics = kept / "metrics.jsonl"
        _write_records(paths.metrics_path(run), [*read_metrics(run), *_records(metrics)])
        metrics.unlink(missing_ok=True)
        with suppress(OSError):  # anything else in it is somebody's own, and stays
            kept.rmdir()
    say(f"run {run!r} has its earlier {' and '.join(map(training, back))} again")


def _in_backup(kept: Path, run: str, file: Path) -> Path | None:
    """The file of a backup that belongs at `file`; a model is called after the run, whose name may have been another."""
    candidates = [kept / file.name]
    if file.name.startswith(f"{run}_"):
        candidates += sorted(kept.glob(f"*{file.name.removeprefix(run)}"))
    return next((each for each in candidates if each.is_file()), None)
