"""The budget of a training: a few trial steps are timed, and the number of steps is limited to what fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from .. import devices
from ..config import MODEL_PRESETS, PROFILES, ModelConfig, Profile, UserError, model_config
from ..model import GPT
from ..tokenizer import parse_spec
from ..trainer import Task, TrainSettings, train
from .progress import duration

UNLIMITED = 2**31 - 1  # steps: only tokens or minutes limit the training
TRIED = 5  # trial steps at least: the first one includes compiling and warming up, and the median ignores it
# Trial steps at most, and seconds for them: the first few steps are slower than later ones, so fast steps need more trials.
TRIED_AT_MOST, TRY_S = 25, 5.0
OVERHEAD = 1.06  # time of a training relative to its steps: validating takes about 5 % (see stages.py), saving the rest
_LONG_MINUTES = 20  # from which a shorter profile is offered
_WORTH_TRYING = 100  # steps: a shorter training without a time limit is not worth trial steps for an estimate


def wording(settings: TrainSettings) -> str:
    """The limits of a training as text: "700 steps of 16 rows, at most 3 minutes"."""
    bounds = [
        f"{settings.steps:,} steps of {settings.batch_size} rows" if settings.steps < UNLIMITED else "",
        f"{settings.tokens:,} tokens" if settings.tokens else "",
        f"{settings.minutes:g} minutes" if settings.minutes else "",
    ]
    return ", at most ".join(bound for bound in bounds if bound)


def tokens_to_steps(tokens: int, task: Task) -> int:
    """The number of steps that read `tokens` tokens, rounded up."""
    return max(1, -(-tokens // task.tokens_per_step))


def try_out(
    model: GPT, task: Task, settings: TrainSettings, say: Callable[[str], None], stop: Callable[[], bool]
) -> float:
    """Time a few trial steps: seconds per step, compiling left out.

    These are the first steps of the training itself; afterwards the initial weights are restored. The trial ends early if
    `stop()` returns True.
    """
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    trial = replace(
        task, validate=lambda model: {task.best_by: 0.0}, save_best=lambda model, report: None, sample=None,
        log=lambda report: None, state_path=None,
    )  # fmt: skip
    warm_s = 0.0
    with closing(train(model, trial, replace(settings, steps=UNLIMITED), say=say)) as reports:
        for last in reports:
            if last.step == 1:
                warm_s = last.elapsed_s
            enough = last.step == TRIED_AT_MOST or last.elapsed_s - warm_s > TRY_S
            if last.step and ((last.step >= TRIED and enough) or stop()):
                break
    model.load_state_dict(weights)
    return task.tokens_per_step / last.tokens_per_s


def _random_task(shape: ModelConfig, batch_size: int) -> Task:
    """A task with random tokens, whose steps take as long as those of pretraining."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(shape.vocab_size, (batch_size, shape.block_size + 1))
        return ids[:, :-1], ids[:, 1:]

    return Task(
        stage="base_model", batch=batch, loss=lambda m, x, y: (m(x, y, reduction="sum"), y.numel()), state_path=None,
        validate=lambda m: {"val_loss": 0.0}, save_best=lambda m, report: None, identity={},
        tokens_per_step=batch_size * shape.block_size,
    )  # fmt: skip


def forecast(profile: Profile) -> str:
    """A sentence that says how long the trainings of a profile will take on this machine, from timing a few steps.

    If one step would take many seconds, it is not timed but estimated: training reaches about a third of the machine's rate
    of matrix products. On a slow machine the sentence recommends the short profile.
    """
    device = devices.pick_device(profile.device)
    shape = model_config(profile.model, parse_spec(profile.tokenizer)[1] or MODEL_PRESETS["GPT2-Small"]["vocab_size"])
    with torch.device("meta"):
        flops = GPT(shape).flops_per_token()
    task = _random_task(shape, profile.batch_size)
    seconds = 3 * flops * task.tokens_per_step / devices.matrix_rate(device.type, devices.matmul_dtype(device))
    if seconds < 10:
        with torch.random.fork_rng(devices=[]):
            settings = TrainSettings(steps=UNLIMITED, batch_size=profile.batch_size)
            seconds = try_out(GPT(shape).to(device), task, settings, lambda text: None, lambda: False)
    steps = sum(stage.steps for stage in profile.stages.values())
    total = steps * seconds * OVERHEAD
    shorter = PROFILES["short"]
    said = f"The trainings of the profile {profile.name!r}, {steps:,} steps, will take this machine about {duration(total)}."
    if total > 60 * _LONG_MINUTES and profile.model == shorter.model and profile.name != shorter.name:
        less = sum(stage.steps for stage in shorter.stages.values())
        said += (
            f" The profile {shorter.name!r} takes about {duration(less * seconds * OVERHEAD)}, "
            "and makes an assistant that knows less."
        )
    return said


def plan(
    model: GPT,
    task: Task,
    settings: TrainSettings,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
) -> TrainSettings:
    """Settings with the number of steps that the limits on steps, tokens and minutes allow; an estimate goes to `say`.

    The number of steps is fixed before the first step. From then on the training does not depend on the clock, so it can
    be resumed or repeated (with `steps`) exactly. Raises UserError if there is no limit at all.
    """
    steps = settings.steps
    if settings.tokens:
        steps = min(steps, tokens_to_steps(settings.tokens, task))
    if steps == UNLIMITED and not settings.minutes:
        raise UserError("the training has no limit; give steps, tokens or minutes")
    if not settings.minutes and steps < _WORTH_TRYING:
        return replace(settings, steps=steps, tokens=0)
    seconds = try_out(model, task, settings, say, stop)
    # if compiling failed in the trial, which has reported it, do not try again
    settings = replace(settings, compile=settings.compile and all(block._compiled_call_impl for block in model.h))
    if settings.minutes:
        fitting = max(1, int(60 * settings.minutes / (seconds * OVERHEAD)))
        if fitting < steps < UNLIMITED:
            say(f"{settings.minutes:g} minutes are enough for {fitting:,} of {steps:,} steps on this machine.")
        steps = min(steps, fitting)
    say(
        f"{model.n_params():,} parameters, {steps:,} steps of {task.tokens_per_step:,} tokens at {seconds:.2f} s: "
        f"about {duration(steps * seconds * OVERHEAD)}."
    )
    return replace(settings, steps=steps, tokens=0, minutes=0.0)
