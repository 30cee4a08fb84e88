"""The whole course as one run: every notebook through papermill, in order, into out/<run>/, with a report at the end."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
import psutil
from papermill.exceptions import PapermillExecutionError

from . import config, paths, report
from .config import UserError, unknown
from .progress import duration
from .reference import commit

CELL_TIMEOUT_S = 4 * 3600  # an unexplained hang must end some time; the longest cell of the long profile takes an hour


class CourseError(RuntimeError):
    """A notebook failed; the message says which cell, why, and where to look."""


@dataclass(frozen=True)
class Executed:
    """One notebook that ran: how long it took and the most memory its processes held at a time."""

    notebook: str
    seconds: float
    peak_mb: float


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
    """The notebook's parameters: name → type as written beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = papermill.inspect_notebook(str(notebook))
    return {name: entry["inferred_type_name"] for name, entry in found.items()}


_KINDS: dict[str, type] = {"int": int, "float": float, "str": str}


def _typed(name: str, text: str, kind: str) -> Any:
    """`text` from the command line as what the notebook declares, so that a run named 007 stays 007."""
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise UserError(f"parameter {name} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return _KINDS.get(kind, str)(text)
    except ValueError:
        raise UserError(f"parameter {name} must be of type {kind}, not {text!r}") from None


def plan(chosen: list[Path], parameters: Mapping[str, str]) -> list[tuple[Path, dict[str, Any]]]:
    """Each notebook with those of the parameters that it declares, as its types.

    Raises UserError for a parameter that none of them has (papermill alone would only warn) or a value of a wrong type.
    """
    declared = {path: _declared(path) for path in chosen}
    known = sorted({name for names in declared.values() for name in names})
    for name in parameters:
        if name not in known:
            raise unknown("parameter", name, known)
    return [
        (path, {name: _typed(name, parameters[name], kind) for name, kind in names.items() if name in parameters})
        for path, names in declared.items()
    ]


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Watch the processes started by this one; the list's only entry is their largest sum so far, in MB."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:  # it ended while we looked
                    continue
            peak[0] = max(peak[0], total / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> Executed:
    """Run one notebook into `output`, which is written cell by cell. Raises CourseError where a cell fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    started = time.perf_counter()
    with _peak_memory() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=parameters, kernel_name="python3", progress_bar=False,
                cwd=str(notebook.parent), execution_timeout=CELL_TIMEOUT_S,
            )  # fmt: skip
        except PapermillExecutionError as error:
            raise CourseError(
                f"{notebook.name}, cell {error.cell_index}: {error.ename}: {error.evalue}; "
                f"everything up to there is in {output}"
            ) from None
    return Executed(notebook.stem, time.perf_counter() - started, peak[0])


def run(
    *,
    profile: str = "default",
    run: str | None = None,
    parameters: Mapping[str, str] | None = None,
    only: str | None = None,
    reference: bool = False,
) -> Path:
    """Run the course and write out/<run>/report.md; returns the report's path.

    Raises UserError for wrong parameters before anything runs, CourseError when a notebook fails (the notebooks after it
    are not run; the report of what did run is written all the same). With `reference` the executed notebooks, normalised,
    replace those in notebooks/.
    """
    given = {"profile": profile, **({"run": run} if run else {}), **(parameters or {})}
    chosen = config.choose(given["profile"], run=given.get("run", ""), model=given.get("model", ""))
    steps = plan(notebooks(only), given)
    folder = paths.run_dir(chosen.run)
    done: list[Executed] = []
    try:
        for number, (notebook, values) in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {notebook.stem} …", end="", file=sys.stderr, flush=True)
            done.append(execute(notebook, folder / "notebooks" / notebook.name, values))
            print(f" {duration(done[-1].seconds)}, {done[-1].peak_mb:,.0f} MB", file=sys.stderr)
        if reference:
            for notebook, _ in steps:
                commit(folder / "notebooks" / notebook.name, notebook)
    except BaseException:
        print(file=sys.stderr)
        raise
    finally:
        if done:
            path = report.write(chosen, [asdict(entry) for entry in done])
            print(f"report: {path}", file=sys.stderr)
    return path
