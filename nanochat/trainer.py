"""One training loop for every stage: an iterator of step reports that notebooks, widgets and the command line consume.

A run is a pure function of its settings: batches depend only on (seed, step), and everything else that changes from step to
step (weights, optimizer state, random state, best result) is in the state file. So a killed run resumes as if it had never
been interrupted, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import devices
from .config import UserError, positive, unknown
from .model import GPT
from .optim import OPTIMIZERS, make_optimizers, schedule
from .signals import signals_wait
from .state import save_state

Batch = tuple[Tensor, ...]  # the arguments of a task's loss after the model
SAVE_EVERY_S = 60.0  # the most a killed process loses, or twice that if it is killed while saving


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises UserError for values that cannot work.

    `tokens` and `minutes`, if not 0, limit the training to fewer than `steps` steps; train/budget.py computes how many, and
    `train` itself uses only `steps`. `optimizer` is one of optim.OPTIMIZERS; `lr_scale` multiplies its learning rates.
    Validation runs before the first step, every `eval_every` steps, and after the last step.
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
    optimizer: str = "muon"
    grad_accum: int = 1  # gradient accumulation: the parts a batch is split into, to save memory
    grad_clip: float = 1.0
    eval_every: int = 0  # 0: ten times in a run
    val_batches: int = 0  # 0: about 5 % of the time; fixed for a run, so that its losses compare
    compile: bool = False

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        positive("batch_size", self.batch_size)
        positive("grad_accum", self.grad_accum)
        for name in ("tokens", "seed", "warmup", "eval_every", "val_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise UserError(f"{name} must be a whole number of at least 0, not {value!r}")
        for name in ("lr_scale", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("minutes", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if not 0 <= self.decay_from <= 1:
            raise UserError(f"decay_from must be a share of the steps, 0 to 1, not {self.decay_from!r}")

    @property
    def interval(self) -> int:
        """Steps from one validation to the next."""
        return self.eval_every or max(1, math.ceil(self.steps / 10))


@dataclass(frozen=True)
class StepReport:
    """The result of one optimizer step. Step 0 is the validation before the first update.

    `loss` is in nats per token, times are in seconds (`eta_s` includes the validations to come), memory is in MB. `mfu`,
    the model FLOPs utilization, is relative to this machine's measured rate of matrix products. `metrics` holds the results
    of validation (`val_loss` in nats per token, `val_bpb` in bits per byte, …), empty for a step without one.
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
    metrics: dict[str, float] = field(default_factory=dict)
    best: bool = False
    eval_s: float = 0.0
    sample: str | None = None

    def record(self) -> dict[str, Any]:
        """The report as a flat dict for metrics.jsonl, without missing values and NaN, which JSON does not have."""
        values = asdict(self)
        values.update(values.pop("metrics"))
        return {name: value for name, value in values.items() if value is not None and value == value}


@dataclass(frozen=True)
class Task:
    """What a stage trains on, how it is validated, and where its files go. The stages' tasks are made in train/stages.py.

    - `batch(step)` returns the tensors of a step.
    - `loss(model, *batch)` returns the summed loss in nats and the number of targets it is a sum over, so that the parts of
      a batch average correctly whatever their numbers of targets.
    - `validate(model)` returns metrics by name; the lowest value of the metric `best_by` marks the best weights.
    - `save_best(model, report)` writes the best weights, `log(report)` a report. Both run before the state is saved, so
      work that a killed process did not finish is repeated, never skipped.
    - `identity` (fingerprints) says what the state file belongs to; resuming with a different identity is an error.
    """

    stage: str
    batch: Callable[[int], Batch]
    loss: Callable[..., tuple[Tensor, Tensor | int]]
    validate: Callable[[GPT], dict[str, float]]
    save_best: Callable[[GPT, StepReport], None]
    state_path: Path | None
    identity: dict[str, Any]
    tokens_per_step: int
    best_by: str = "val_loss"
    head_share: float = 1.0  # share of the positions for which the head is computed
    meta: dict[str, Any] = field(default_factory=dict)
    sample: Callable[[GPT], str] | None = None
    log: Callable[[StepReport], None] = lambda report: None


def as_tensors(arrays: Iterable[np.ndarray]) -> Batch:
    """Arrays of token ids as tensors."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


class _Training:
    """A training in progress: the model, its optimizers, the best result so far, and timing."""

    def __init__(self, model: GPT, task: Task, settings: TrainSettings, say: Callable[[str], None]):
        self.model, self.task, self.settings, self.say = model, task, settings, say
        self.device = next(model.parameters()).device
        self.dtype = devices.matmul_dtype(self.device)
        devices.prepare_device(self.device)
        self.optimizers = make_optimizers(model, settings.lr_scale, settings.weight_decay, optimizer=settings.optimizer)
        torch.manual_seed(settings.seed)
        self.best, self.before_s = math.inf, 0.0  # seconds before a resume
        self.compiles = settings.compile
        self.peak = devices.matrix_rate(self.device.type, self.dtype)
        self.flops = model.flops_per_token(task.head_share) * task.tokens_per_step
        self.started = self.saved_at = time.perf_counter()
        self.saved_step = -1
        self.step_seconds: list[float] = []
        self.scale = 0.0  # the schedule's factor of the learning rates
        self.validation_s = 0.0  # duration of the last validation, saving included

    # the state file

    def restore(self, state: dict[str, Any]) -> int:
        """Resume from a saved state; returns the number of steps done. Raises UserError if it belongs to another run."""
        check_state(self.task, self.settings, state)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.best, self.before_s = state["best"], state["elapsed_s"]
        self.saved_step = state["step"]
        return state["step"]

    def save(self, step: int) -> None:
        """Write the state after `step` steps, unless it has been written, and keep the previous one as well."""
        path = self.task.state_path
        if path is None or step == self.saved_step:
            return
        state = {
            "identity": {**self.task.identity, "stage": self.task.stage}, "settings": asdict(self.settings),
            "meta": self.task.meta, "step": step, "best": self.best, "rng": torch.get_rng_state(),
            "elapsed_s": self.elapsed_s(), "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }  # fmt: skip
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        save_state(path, state)
        self.saved_step, self.saved_at = step, time.perf_counter()

    def save_is_due(self) -> bool:
        """Whether the last save was SAVE_EVERY_S or more ago."""
        return time.perf_counter() - self.saved_at >= SAVE_EVERY_S

    def elapsed_s(self) -> float:
        return self.before_s + time.perf_counter() - self.started

    # what is done in a step

    def step(self, step: int) -> float:
        """One update; returns the loss of its batch. Raises UserError if the loss is infinite or NaN."""
        begin = time.perf_counter()
        settings = self.settings
        self.scale = schedule(step, settings.steps, settings.warmup, settings.decay_from)
        self.optimizers.set_scale(self.scale)
        batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in self.task.batch(step))
        loss = (self._compile_and_differentiate if self.compiles else self._differentiate)(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizers.step()
        self.optimizers.zero_grad()
        value = loss.item()
        _check_finite("loss", value, step + 1)
        self.step_seconds.append(time.perf_counter() - begin)
        return value

    def _differentiate(self, batch: Batch) -> Tensor:
        """Compute the gradients of a batch's mean loss, leave them in the parameters, and return the loss."""
        total, targets = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for part in zip(*(tensor.chunk(self.settings.grad_accum) for tensor in batch), strict=True):
            with devices.autocast(self.device):
                nats, count = self.task.loss(self.model, *part)
            nats.backward()
            total += nats.detach()
            targets += count
        targets.clamp_(min=1)
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.div_(targets)
        return total / targets

    def _compile_and_differentiate(self, batch: Batch) -> Tensor:
        """The first step compiles the blocks in place; they share their code, so it is compiled once for all layers."""
        self.compiles = False
        rng = torch.get_rng_state()
        try:
            for block in self.model.h:
                if block._compiled_call_impl is None:  # unless the trial steps have compiled it already
                    block.compile()
            return self._differentiate(batch)
        except Exception as error:  # whatever goes wrong in the compiler, training works without it
            if devices.out_of_memory(error):
                raise
            self.say(
                f"torch.compile does not work here ({type(error).__name__}); training continues uncompiled, more slowly"
            )
            for block in self.model.h:
                block._compiled_call_impl = None
            self.optimizers.zero_grad()
            torch.set_rng_state(rng)
            return self._differentiate(batch)

    # what is measured

    def validate(self, report: StepReport) -> StepReport:
        """Add the metrics of a validation to the report, and save the weights if they are the best so far."""
        begin = time.perf_counter()
        model, task = self.model, self.task
        was_training = model.training
        model.eval()
        rng = torch.get_rng_state()  # validation must not change the training after it
        # validation batches have other shapes than training batches; compiling for each would not pay off
        stance = torch.compiler.set_stance("force_eager") if self.settings.compile else nullcontext()
        with torch.inference_mode(), stance:
            with devices.autocast(self.device):
                measured = task.validate(model)
            sample = task.sample(model) if task.sample else None
        torch.set_rng_state(rng)
        model.train(was_training)
        for name, value in measured.items():
            _check_finite(f"validation's {name}", value, report.step)
        improved = measured[task.best_by] < self.best
        report = replace(report, metrics=measured, best=improved, sample=sample, eval_s=time.perf_counter() - begin)
        if improved:
            self.best = measured[task.best_by]
            task.save_best(model, report)
        return report

    def report(self, step: int, loss: float) -> StepReport:
        """The report after `step` steps, without a validation."""
        settings, task = self.settings, self.task
        # the median of the last steps, so that one slow step does not distort the estimate
        recent = sorted(self.step_seconds[-20:])
        typical = recent[len(recent) // 2] if recent else math.nan
        to_come = (
            0 if step == settings.steps else (settings.steps - 1) // settings.interval - step // settings.interval + 1
        )
        rss, gpu = devices.memory_mb(self.device)
        return StepReport(
            stage=task.stage, step=step, total=settings.steps, loss=loss, lr=self.scale * settings.lr_scale,
            tokens=step * task.tokens_per_step, tokens_per_s=task.tokens_per_step / typical, elapsed_s=self.elapsed_s(),
            eta_s=(settings.steps - step) * typical + to_come * self.validation_s,
            rss_mb=rss, gpu_mb=gpu, mfu=self.flops / typical / self.peak,
        )  # fmt: skip

    def validate_log_and_save(self, report: StepReport) -> StepReport:
        """Validate, log and save, in the order that lets a resumed run repeat what a killed process did not finish."""
        begin = time.perf_counter()
        report = self.validate(report)
        self.task.log(report)
        self.save(report.step)
        self.validation_s = time.perf_counter() - begin
        return report


def train(
    model: GPT,
    task: Task,
    settings: TrainSettings,
    *,
    state: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Generator[StepReport, None, None]:
    """Train `model` (already on its device), yielding a report for step 0 (validation only) and after each step.

    task.save_best writes the best weights. The whole state is written to task.state_path at each validation, every minute,
    and whenever the training ends early: when `stop()` returns True, on Ctrl-C or SIGTERM (after the step in progress), or
    when the iterator is closed. With `state` (see load_state) the run resumes from there; raises UserError if the state
    belongs to another run.
    """
    training = _Training(model, task, settings, say)
    first = training.restore(state) if state else 0
    resumed = state is not None
    del state  # frees its tensors
    model.train()
    if not resumed:
        with signals_wait(lambda: training.save(0)):
            report = training.validate_log_and_save(training.report(0, math.nan))
        yield report
    for done in range(first + 1, settings.steps + 1):
        with signals_wait(lambda: training.save(done)):  # noqa: B023 (called in this turn of the loop)
            report = training.report(done, training.step(done - 1))
            if done == settings.steps or done % settings.interval == 0:
                report = training.validate_log_and_save(report)
            else:
                task.log(report)
            stopping = stop()
            if stopping or training.save_is_due():
                training.save(done)
        try:
            yield report
        except GeneratorExit:
            training.save(done)
            raise
        if stopping:
            return


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {what} became {value} at step {step}: the training has diverged; start over with another seed or a "
            "larger batch (the best weights so far are kept)"
        )


FREE = (
    "steps",
    "tokens",
    "minutes",
    "eval_every",
    "val_batches",
    "compile",
)  # settings that a resume may change


def state_settings(state: dict[str, Any]) -> TrainSettings:
    """The settings with which a saved training began."""
    return TrainSettings(**state["settings"])


def check_state(task: Task, settings: TrainSettings, state: dict[str, Any]) -> None:
    """Raise UserError, naming both values, if the state belongs to another run or to other settings."""
    saved = {**state["identity"], **asdict(state_settings(state))}  # settings that are new since have their default
    now = {**task.identity, "stage": task.stage, **asdict(settings)}
    for key in sorted((saved.keys() | now.keys()) - set(FREE)):
        if saved.get(key) != now.get(key):
            raise UserError(
                f"the saved training began with {key} {saved.get(key)!r}, now it is {now.get(key)!r}; resume with "
                "the same settings or start over without resume"
            )
