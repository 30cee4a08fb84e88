"""Run the whole course: execute the notebooks in order with papermill into out/<run>/, then write a report."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from .. import config, devices, paths, statusline
from ..config import UserError, unknown
from ..data import sources
from ..tokenizer import parse_spec
from ..train import runfiles
from ..train.progress import duration
from . import report
from .committed import commit

CELL_TIMEOUT_S = 4 * 3600  # ends a hang; the longest cell of the long profile takes an hour


class CourseError(RuntimeError):
    """A notebook failed; the message names the cell, the reason and the output file."""


@dataclass(frozen=True)
class Executed:
    """A notebook that ran, with its duration in seconds and the peak memory of its processes in MB."""

    notebook: str
    seconds: float
    peak_mb: float


# --- what to run --------------------------------------------------------------------------------------------------------


def notebooks(only: str | None = None) -> list[Path]:
    """The course's notebooks in order, or those whose name starts with `only`; raises UserError if there is none."""
    found = sorted((paths.home() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise UserError(f"there are no notebooks in {paths.home() / 'notebooks'}; run this in a checkout of nanochat")
    chosen = [path for path in found if only is None or path.name.startswith(only)]
    if not chosen:
        raise unknown("notebook", only, [path.stem for path in found])
    return chosen


def _declared(notebook: Path) -> dict[str, str]:
    """The notebook's parameters: name → the type annotated there, as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = papermill.inspect_notebook(str(notebook))
    return {name: entry["inferred_type_name"] for name, entry in found.items()}


_TYPES: dict[str, type] = {"int": int, "float": float, "str": str}


def _typed(name: str, text: str, type_name: str) -> Any:
    """`text` from the command line as the type that the notebook declares, so that a run named 007 stays 007."""
    if type_name == "bool":
        if text.lower() not in ("true", "false"):
            raise UserError(f"parameter {name} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return _TYPES.get(type_name, str)(text)
    except ValueError:
        raise UserError(f"parameter {name} must be of type {type_name}, not {text!r}") from None


def plan(chosen: list[Path], parameters: Mapping[str, str]) -> list[tuple[Path, dict[str, Any]]]:
    """Each notebook with the parameters that it declares, converted to their types.

    Raises UserError for a parameter that no notebook declares (papermill would only warn) or a value of the wrong type.
    `profile` and `run` need not be declared, since they also determine the folder of the report.
    """
    declared = {path: _declared(path) for path in chosen}
    known = sorted({name for names in declared.values() for name in names})
    for name in parameters:
        if name not in (*known, "profile", "run"):
            raise unknown("parameter", name, known)
    return [
        (path, {name: _typed(name, parameters[name], typed) for name, typed in names.items() if name in parameters})
        for path, names in declared.items()
    ]


def _check(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters with files as absolute paths, since notebooks run in another folder.

    Raises UserError for values that a notebook would refuse, before any notebook has run.
    """
    checks: dict[str, Callable[[str], Any]] = {"tokenizer": parse_spec, "device": devices.pick_device}
    for name in checks.keys() & {name for name, value in given.items() if value}:
        checks[name](given[name])
    for name in ("steps", "minutes", "seed"):
        if given.get(name, "").strip().startswith("-"):
            raise UserError(f"parameter {name} must be at least 0, not {given[name]!r}")
    kinds: tuple[sources.Kind, ...] = ("corpus", "qa")
    return {**given, **{kind: sources.resolve(given[kind], kind).origin for kind in kinds if given.get(kind)}}


# --- running it ---------------------------------------------------------------------------------------------------------


@contextmanager
def _measured(show: Callable[[float, float], None]) -> Iterator[list[float]]:
    """Measure the memory of all child processes; the only entry of the list yielded is the peak of their sum, in MB.

    `show(seconds, megabytes)` is called about twice a second.
    """
    peak, done, started = [0.0], threading.Event(), time.perf_counter()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            total = 0.0
            with suppress(psutil.Error):
                for child in me.children(recursive=True):
                    with suppress(psutil.Error):  # it ended meanwhile
                        total += child.memory_info().rss / 1e6
            peak[0] = max(peak[0], total)
            show(time.perf_counter() - started, total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@contextmanager
def _project_home_exported() -> Iterator[None]:
    """Pass the project folder on to child processes through NANOCHAT_HOME, since they run in another folder."""
    before = os.environ.get("NANOCHAT_HOME")
    os.environ["NANOCHAT_HOME"] = str(paths.home())
    try:
        yield
    finally:
        os.environ.pop("NANOCHAT_HOME")
        if before is not None:
            os.environ["NANOCHAT_HOME"] = before


def _failed_cell(output: Path) -> str:
    """Number and first line of the code cell started last: papermill records a start time for each."""
    began, number = "", 0
    for cell in nbformat.read(output, as_version=4).cells:
        number += cell.cell_type == "code"
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time"):
            began = f"cell [{number}] ({cell.source.strip().splitlines()[0] if cell.source.strip() else ''})"
    return began or "before the first cell"


def execute(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    show: Callable[[float, float], None] = lambda seconds, mb: None,
) -> Executed:
    """Run one notebook; its executed form is written to `output` cell by cell. Raises CourseError if a cell fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    started = time.perf_counter()
    with _project_home_exported(), _measured(show) as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=parameters, kernel_name="python3", progress_bar=False,
                cwd=str(notebook.parent), execution_timeout=CELL_TIMEOUT_S,
                extra_arguments=["--log-level=50"],  # newer kernels warn at each start that TCP is not encrypted
            )  # fmt: skip
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            reason = "its process died, perhaps for lack of memory (use a smaller model or batch)"
        except CellTimeoutError:
            reason = f"it took longer than {duration(CELL_TIMEOUT_S)}"
        else:
            return Executed(notebook.stem, time.perf_counter() - started, peak[0])
    raise CourseError(f"{notebook.name}, {_failed_cell(output)}: {reason}; everything up to there is in {output}")


class _StatusLine:
    """The status line on stderr: the notebook running, its time and memory, and the progress of its training."""

    def __init__(self, text: str, run: str) -> None:
        self.text, self.run = text, run
        print(f"{text} …", end="", file=sys.stderr, flush=True)

    def __call__(self, seconds: float, mb: float) -> None:
        if int(2 * seconds) % 4:  # every two seconds
            return
        path = paths.metrics_path(self.run)
        training = path.is_file() and time.time() - path.stat().st_mtime < 5
        step = "".join(
            f", {r['stage']} {r['step']}/{r['total']}" for r in runfiles.read_metrics(self.run)[-1:] if training
        )
        statusline.show(f"{self.text} … {duration(seconds)}, {mb:,.0f} MB{step}")

    def done(self, text: str) -> None:
        statusline.write(f"{self.text} … {text}" if sys.stderr.isatty() else f" {text}")


def run(
    *,
    profile: str = "default",
    run: str | None = None,
    parameters: Mapping[str, str] | None = None,
    only: str | None = None,
    reference: bool = False,
) -> Path:
    """Run the course and write out/<run>/report.md; returns the report's path.

    Raises UserError for wrong parameters before anything runs, and CourseError if a notebook fails; the notebooks after
    it are then not run, but the report is still written. With `reference`, the executed notebooks are normalized and
    replace those in notebooks/; this requires the default profile and no parameters.
    """
    given = _check({"profile": profile, **({"run": run} if run else {}), **(parameters or {})})
    if reference and given != {"profile": "default"}:
        raise UserError("a reference run takes the notebooks as they are; leave out --profile, --run and -p")
    chosen = config.choose(given["profile"], run=given.get("run", ""), model=given.get("model", ""))
    steps = plan(notebooks(only), given)
    folder = paths.run_dir(chosen.run)
    done: list[Executed] = []
    failure = None
    try:
        for number, (notebook, values) in enumerate(steps, 1):
            line = _StatusLine(f"[{number}/{len(steps)}] {notebook.stem}", chosen.run)
            try:
                done.append(execute(notebook, folder / "notebooks" / notebook.name, values, line))
            except (CourseError, KeyboardInterrupt) as error:
                failure = str(error) or f"{notebook.name} was interrupted"
                line.done("failed" if str(error) else "interrupted")
                raise
            line.done(f"{duration(done[-1].seconds)}, {done[-1].peak_mb:,.0f} MB")
    finally:
        path = report.write(chosen, [asdict(entry) for entry in done], failure)
        print(f"report: {path}", file=sys.stderr)
    if reference:
        for notebook, _ in steps:
            commit(folder / "notebooks" / notebook.name, notebook)
    return path
