"""A process that trains in child processes and kills them; test_resume.py starts it. It prints the results as JSON.

Children are forked, so that torch is imported once; this process computes nothing before it forks. A child kills itself
with SIGKILL at the n-th call of any Python or C function: in the middle of a step, a validation or a write. Like in a power
cut, nothing can be cleaned up or flushed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it, which would be most of a child's life
from home import SETTINGS, SHAPE

from nanochat import checkpoint, devices, paths
from nanochat.data import corpus as corpus_files
from nanochat.data import questions
from nanochat.data.sources import Source
from nanochat.train import runfiles, stages

TIMES = {"tokens_per_s", "elapsed_s", "eta_s", "rss_mb", "gpu_mb", "mfu", "eval_s"}
Before = Callable[[], None]


def train(project: Path, stage: str) -> None:
    """Train `stage` of run r in `project`, resuming if there is a state."""
    os.environ["NANOCHAT_HOME"] = str(project)
    os.chdir(project)  # the questions then have the same path, which the model names, in every project
    devices.matrix_rate = lambda kind, dtype: 1e9
    options: dict[str, Any] = {"settings": SETTINGS, "device": "cpu", "say": str}
    options["resume"] = paths.last_path("r", stage).is_file()
    if stage == "base_model":
        corpus = corpus_files.load_corpus(project / "data" / "stories")
        reports = stages.pretrain("r", corpus, **options, **SHAPE, dropout=0.1)
    else:
        # the same origin in every folder, so that the models can be compared byte by byte
        asked = Source("qa", "animals", "animals.json", project / "animals.json")
        reports = stages.finetune("r", asked, **options)
    for _ in reports:
        pass


def child(project: Path, stage: str, before: Before = lambda: None) -> int:
    """Train in a child process; returns its exit status, negative for a signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        before()
        train(project, stage)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.setprofile(None)
        sys.stderr.flush()
        os._exit(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(number: int) -> Before:
    def before() -> None:
        calls = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")
            if calls == number:
                die()

        sys.setprofile(count)

    return before


def die_at_rename(number: int, done: bool) -> Before:
    """Die right before or right after the n-th rename of a finished file."""

    def before() -> None:
        replace, renames = os.replace, 0

        def counting(*args: Any) -> None:
            nonlocal renames
            renames += 1
            if renames == number and not done:
                die()
            replace(*args)
            if renames == number:
                die()

        os.replace = counting

    return before


def interrupt_in_step(step: int) -> Before:
    """Press Ctrl-C while the batch of this step is made."""

    def before() -> None:
        def interrupted(original: Callable) -> Callable:
            def batch(*args: Any, **options: Any) -> Any:
                if options["step"] == step:
                    os.kill(os.getpid(), signal.SIGINT)
                return original(*args, **options)

            return batch

        corpus_files.batch, questions.qa_batch = interrupted(corpus_files.batch), interrupted(questions.qa_batch)

    return before


def calls_of(project: Path, stage: str) -> int:
    """The number of function calls in a whole training, which is left in `project`."""
    reader, writer = os.pipe()

    def before() -> None:
        calls = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        leave = os._exit

        def tell(status: int) -> None:
            os.write(writer, str(calls).encode())
            leave(status)

        os._exit = tell
        sys.setprofile(count)

    assert child(project, stage, before) == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def digest(value: Any) -> str:
    """A digest of a nested state that is equal only if every bit is."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(str(value.dtype).encode() + value.contiguous().view(-1).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return str([(key, digest(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return str([digest(item) for item in value])
    return repr(value)


def summary(project: Path, stage: str) -> dict[str, Any]:
    """Everything that must be equal, however often the run was killed."""
    os.environ["NANOCHAT_HOME"] = str(project)
    state = checkpoint.load_file(paths.last_path("r", stage))
    metrics = [record for record in runfiles.read_metrics("r") if record["stage"] == stage]
    return {
        "files": sorted(path.name for path in paths.run_dir("r").iterdir()),
        "best": hashlib.sha256(paths.checkpoint_path("r", stage).read_bytes()).hexdigest(),
        "best step": checkpoint.read_meta(paths.checkpoint_path("r", stage))["step"],
        "metrics": [{name: value for name, value in record.items() if name not in TIMES} for record in metrics],
        "state": {
            name: hashlib.sha256(digest(value).encode()).hexdigest()
            for name, value in state.items()
            if name not in TIMES
        },
        "step": state["step"],
    }


def saved_step(project: Path, stage: str) -> int | None:
    os.environ["NANOCHAT_HOME"] = str(project)
    path = paths.last_path("r", stage)
    return checkpoint.load_file(path)["step"] if path.is_file() else None


def deaths_of(kind: str, number: int, total: int) -> list[Before]:
    """The successive deaths of copy `number` of a project whose training makes `total` calls."""
    if kind == "random":
        rng = random.Random(number)
        return [die_at_call(rng.randrange(1, int(0.7 * total))) for _ in range(6)]
    if kind == "rename":
        return [die_at_rename(number // 2 + 1, done=number % 2 == 1)]
    return [interrupt_in_step(2 * number + 1)]


def main(projects: Path, stage: str) -> dict[str, Any]:
    """`projects` contains copies of one prepared project: `whole`, trained undisturbed, and <death>-<number>."""
    total = calls_of(projects / "whole", stage)
    results = {"whole": summary(projects / "whole", stage)}
    for project in sorted(set(projects.iterdir()) - {projects / "whole"}):
        kind, number = project.name.split("-")
        result = results.setdefault(kind, {"statuses": [], "steps": [], "ends": []})
        for death in deaths_of(kind, int(number), total):
            result["statuses"].append(child(project, stage, death))
            result["steps"].append(saved_step(project, stage))
        status = child(project, stage)
        result["ends"].append(summary(project, stage) if status == 0 else status)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
