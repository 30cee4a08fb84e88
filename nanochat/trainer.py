"""One training loop for every stage: an iterator of step reports that notebooks, widgets and the command line consume.

A run is a pure function of its settings: batches depend on (seed, step) alone, and what else changes from step to step
(weights, optimizer state, random state, best result) is in the state file. So a run that was killed goes on, bit for bit on
a CPU, as if nothing had happened.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, devices
from .config import UserError, positive
from .model import GPT
from .optim import make_optimizers, schedule

Batch = tuple[Tensor, ...]  # what the loss function takes


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises UserError for values that cannot work.

    `tokens` and `minutes`, where they are not 0, allow fewer steps than `steps` (budget.py finds out how many: `train`
    itself goes by `steps` alone). `lr_scale` multiplies the learning rates of optim.py. Validation runs before the first
    step, every `eval_every` steps and after the last; the state file is written at the same moments.
    """

    steps: int
    batch_size: int
    tokens: int = 0
    minutes: float = 0.0
    seed: int = 1337
    lr_scale: float = 1.0
    warmup: int = 0
    decay_from: float = 0.4
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    eval_every: int = 0  # 0: ten times in a run
    compile: bool = False

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        positive("batch_size", self.batch_size)
        for name in ("tokens", "seed", "warmup", "eval_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise UserError(f"{name} must be a whole number of at least 0, not {value!r}")
        for name in ("lr_scale", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("minutes", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        if not 0 <= self.decay_from <= 1:
            raise UserError(f"decay_from must be a share of the steps, 0 to 1, not {self.decay_from!r}")

    @property
    def interval(self) -> int:
        """Steps from one validation to the next."""
        return self.eval_every or max(1, math.ceil(self.steps / 10))


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. Step 0 is the validation before the first update.

    Losses are nats per token; `val_bpb` bits per byte (only known at validations); times in seconds, `eta_s` with the
    validations that are still to come; memory in MB;
    `mfu` is the share of this machine's own matrix rate that training uses.
    """

    stage: str
    step: int
    total: int
    loss: float
    lr: float
    tokens: int
    tokens_per_s: float
    elapsed_s: float
    eta_s: float
    rss_mb: float
    gpu_mb: float
    mfu: float
    val_loss: float | None = None
    val_bpb: float | None = None
    best: bool = False
    eval_s: float = 0.0
    sample: str | None = None

    def record(self) -> dict[str, Any]:
        """As one line of metrics.jsonl, without what was not measured (JSON has no NaN)."""
        return {name: value for name, value in asdict(self).items() if value is not None and value == value}


@dataclass(frozen=True)
class Task:
    """What is trained: where batches, validation and files come from. One for each stage, made in stages.py.

    `batch(step)` gives the tensors of a step, `loss(model, *batch)` the mean loss in nats, `validate(model)` a dict with
    `val_loss` and perhaps `val_bpb`. `identity` says what the state file belongs to (fingerprints): resuming with another
    one is an error. `save_best(model, report)` writes the weights that count, `log(report)` keeps each report; both happen
    before the state is saved, so that what a killed process did not finish is done again, never left out.
    """

    stage: str
    batch: Callable[[int], Batch]
    loss: Callable[..., Tensor]
    validate: Callable[[GPT], dict[str, float]]
    save_best: Callable[[GPT, StepReport], None]
    state_path: Path
    identity: dict[str, Any]
    tokens_per_step: int
    sample: Callable[[GPT], str] | None = None
    log: Callable[[StepReport], None] = lambda report: None


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is looked at between steps, so that no half-made update is saved.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python takes no signals, the flag never rises.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _cpu_state(value: Any) -> Any:
    """A copy on the CPU of nested state, for saving."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _cpu_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cpu_state(item) for item in value]
    return value


def train(
    model: GPT,
    task: Task,
    settings: TrainSettings,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Iterator[StepReport]:
    """Train `model` (already on its device), yielding a report for step 0 (validation only) and after each step.

    Best weights (by validation loss) go through task.save_best, the whole state into task.state_path. `stop()` true, or
    Ctrl-C, ends the run after the step in progress with everything saved; after Ctrl-C KeyboardInterrupt is raised.
    With `resume` the run goes on from the state file; raises UserError if there is none or if it belongs to something else.
    """
    device = next(model.parameters()).device
    dtype = devices.matmul_dtype(device)
    if device.type == "cpu":
        devices.keep_large_blocks()
    optimizers = make_optimizers(model, settings.lr_scale, settings.weight_decay)
    torch.manual_seed(settings.seed)
    first, best, before_s = 0, math.inf, 0.0
    identity = _identity(task, settings)
    if resume:
        state = checkpoint.load_file(task.state_path)
        _check_identity(task.state_path, state.get("identity", {}), identity)
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], device)
        first, best, before_s = state["step"], state["best"], state["elapsed_s"]
    peak = devices.matrix_rate(device.type, dtype)
    flops = model.flops_per_token() * task.tokens_per_step
    started = time.perf_counter()
    step_seconds: list[float] = []
    look_s = 0.0  # what the last validation took, saving included

    def save_state(step: int) -> None:
        state = {
            "identity": identity, "step": step, "steps": settings.steps, "best": best, "rng": torch.get_rng_state(),
            "elapsed_s": before_s + time.perf_counter() - started,
            "model": model.state_dict(), "optimizers": _cpu_state(optimizers.state_dict()),
        }  # fmt: skip
        if device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(device)
        checkpoint.save_file(task.state_path, state)

    def evaluate_and_save(report: StepReport) -> StepReport:
        nonlocal look_s
        begin = time.perf_counter()
        report = evaluate(report)
        task.log(report)
        save_state(report.step)
        look_s = time.perf_counter() - begin
        return report

    def evaluate(report: StepReport) -> StepReport:
        nonlocal best
        begin = time.perf_counter()
        was_training = model.training
        model.eval()
        rng = torch.get_rng_state()  # looking at the model must not change what it does next
        # other shapes than the steps': compiling for each of them would cost more than it returns
        stance = torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()
        with torch.inference_mode(), stance:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                measured = task.validate(model)
            sample = task.sample(model) if task.sample else None
        torch.set_rng_state(rng)
        model.train(was_training)
        _check_finite("validation loss", measured["val_loss"], report.step)
        improved = measured["val_loss"] < best
        report = replace(report, **measured, best=improved, sample=sample, eval_s=time.perf_counter() - begin)
        if improved:
            best = measured["val_loss"]
            task.save_best(model, report)
        return report

    def differentiate(batch: Batch) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = task.loss(model, *batch)
        loss.backward()
        return loss

    def compile_and_differentiate(batch: Batch) -> Tensor:
        rng = torch.get_rng_state()
        try:
            for block in model.h:  # in place, and one compilation serves all layers
                if block._compiled_call_impl is None:  # trying out a step has compiled them already
                    block.compile()
            return differentiate(batch)
        except Exception as error:  # whatever the compiler throws, training works without it
            say(f"torch.compile does not work here ({type(error).__name__}); training goes on without it, slower")
            for block in model.h:
                block._compiled_call_impl = None
            optimizers.zero_grad()
            torch.set_rng_state(rng)
            return differentiate(batch)

    def report_of(step: int, loss: float, lr: float) -> StepReport:
        # the median of the last steps: one slow step (a compile, a checkpoint) must not spoil the estimate
        recent = sorted(step_seconds[-20:])
        typical = recent[len(recent) // 2] if recent else math.nan
        # validations after this step's own
        every, ended = settings.interval, step == settings.steps
        looks = 0 if ended else (settings.steps - 1) // every - step // every + 1
        rss, gpu = devices.memory_mb(device)
        return StepReport(
            stage=task.stage, step=step, total=settings.steps, loss=loss, lr=lr, tokens=step * task.tokens_per_step,
            tokens_per_s=task.tokens_per_step / typical, elapsed_s=before_s + time.perf_counter() - started,
            eta_s=(settings.steps - step) * typical + looks * look_s, rss_mb=rss, gpu_mb=gpu, mfu=flops / typical / peak,
        )  # fmt: skip

    with _interrupt_between_steps() as interrupted:
        model.train()
        if not resume:
            yield evaluate_and_save(report_of(0, math.nan, 0.0))
        for step in range(first, settings.steps):
            begin = time.perf_counter()
            scale = schedule(step, settings.steps, settings.warmup, settings.decay_from)
            optimizers.set_scale(scale)
            batch = tuple(tensor.to(device, non_blocking=True) for tensor in task.batch(step))
            loss = (compile_and_differentiate if settings.compile and step == first else differentiate)(batch)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizers.step()
            optimizers.zero_grad()
            value = loss.item()
            _check_finite("loss", value, step + 1)
            step_seconds.append(time.perf_counter() - begin)
            done = step + 1
            report = report_of(done, value, scale * settings.lr_scale)
            ending = done == settings.steps
            leaving = interrupted() or stop()
            looking = ending or done % settings.interval == 0
            if looking:
                report = evaluate_and_save(report)
            else:
                task.log(report)
                if leaving:
                    save_state(done)
            yield report
            if leaving and not ending:
                break
        was_interrupted = interrupted()
    if was_interrupted:
        raise KeyboardInterrupt


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {what} became {value} at step {step}: training has diverged; try a lower learning rate "
            "(the best weights so far are kept)"
        )


def _identity(task: Task, settings: TrainSettings) -> dict[str, Any]:
    """What must be the same when a run is resumed. It may be made longer then."""
    free = ("steps", "tokens", "minutes", "eval_every", "compile")
    fixed = {name: value for name, value in asdict(settings).items() if name not in free}
    return {**task.identity, "settings": fixed, "stage": task.stage}


def saved_progress(task: Task, settings: TrainSettings) -> tuple[int, int]:
    """After how many steps the task's state was saved, and how many it was to be in all.

    Raises UserError if it cannot be resumed with these settings.
    """
    state = checkpoint.load_file(task.state_path, check=False)
    _check_identity(task.state_path, state.get("identity", {}), _identity(task, settings))
    return state["step"], state["steps"]


def _check_identity(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError naming both sides if the state file is of another run than the one to go on with."""
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            one, other = saved.get(key), now.get(key)
            if isinstance(one, dict) and isinstance(other, dict):
                key = next(k for k in {**one, **other} if one.get(k) != other.get(k))
                one, other = one.get(key), other.get(key)
            raise UserError(
                f"{path.name} was made with {key} {one!r}, now it is {other!r}; resume with the same settings or start "
                "over without resume"
            )
