"""The stages of training as functions: each starts from the previous stage's model in out/<run>/ and writes its own there.

A stage returns an iterator of step reports (see trainer.py); training happens as it is iterated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checkpoint, devices, paths
from ..config import Profile, UserError, model_config
from ..data import corpus as corpus_files
from ..data import questions as qa
from ..data.corpus import CorpusData
from ..data.sources import Source, resolve
from ..evaluation.loss import mean_loss
from ..generate import generate
from ..loss import rows_scored
from ..model import GPT
from ..state import has_state, load_state
from ..tokenizer import Tokenizer
from ..trainer import StepReport, Task, TrainSettings, as_tensors, check_state, state_settings, train
from . import budget, runfiles

# Validation may take 5 % of the time, and a forward pass alone takes a third to two thirds of a training step
_EVAL_SHARE = 0.05 * 1.5


def val_batches(settings: TrainSettings) -> int:
    """The number of batches of each validation."""
    return max(1, round(_EVAL_SHARE * settings.interval))


_WEIGHT_DECAY = 0.1  # of the matrices in the blocks

# Compile trainings of at least so many steps and minutes: for shorter ones, compiling takes longer than it saves
_COMPILE_FROM = {"cuda": (200, 1.5), "cpu": (5000, 10.0)}


def settings_for(
    profile: Profile,
    stage: str,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> TrainSettings:
    """A profile's settings for a stage, with the given values in place of the profile's; None keeps the profile's.

    If more than one of steps, tokens and minutes is given, the first limit reached ends the training. Raises UserError for
    values that cannot work.
    """
    planned = profile.stages[stage]
    if steps is tokens is minutes is None:
        steps = planned.steps
    settings = TrainSettings(
        steps=budget.UNLIMITED if steps is None else steps,
        batch_size=profile.batch_size if batch_size is None else batch_size,
        tokens=tokens or 0,
        minutes=minutes or 0.0,
        seed=1337 if seed is None else seed,
        lr_scale=planned.lr_scale,
        decay_from=planned.decay_from,
        optimizer=planned.optimizer,
        weight_decay=_WEIGHT_DECAY,
    )
    kind = devices.pick_device().type if profile.device == "auto" else profile.device.partition(":")[0]
    least_steps, least_minutes = _COMPILE_FROM.get(kind, (math.inf, 0.0))
    worth_it = settings.steps >= least_steps and (settings.minutes or math.inf) >= least_minutes
    return replace(settings, compile=worth_it)


def begun(run: str, stage: str) -> tuple[TrainSettings, dict[str, Any]]:
    """The settings and metadata with which a stage was started. Raises UserError if it was never started."""
    _require_state(run, stage)
    state = load_state(paths.last_path(run, stage), lambda sentence: None)
    return state_settings(state), state["meta"]


def _require_state(run: str, stage: str) -> None:
    if not has_state(paths.last_path(run, stage)):
        kept = "".join(
            f"; `nanochat restore --run {run} {name}` brings back {name}" for name in runfiles.backups(run)[-1:]
        )
        doing = runfiles.training(stage)
        raise UserError(f"run {run!r} has no {doing} to resume; leave --resume out to start one{kept}")


def _run_stage(
    run: str,
    stage: str,
    model: GPT,
    task_of: Callable[[TrainSettings], Task],
    settings: TrainSettings,
    resume: bool,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[StepReport]:
    """Compute the number of steps, train, and log to metrics.jsonl."""
    if resume:
        _require_state(run, stage)  # before locking, which would create the folder
    with runfiles.locked(run, runfiles.training(stage)):
        runfiles.sweep(run)
        task = task_of(settings)
        if resume:
            assert task.state_path is not None
            state = load_state(task.state_path, say)
            before = state_settings(state)
            if settings.tokens or settings.minutes:  # these limits were turned into steps when the run began
                settings = replace(settings, steps=before.steps, tokens=0, minutes=0.0)
            settings = replace(settings, val_batches=before.val_batches)
            check_state(task, settings, state)
            done = state["step"]
            if done >= settings.steps:
                say(f"{stage} of {run!r} has already been trained for {done} steps; give more steps to continue.")
                return
            runfiles.set_aside(run, stage, say, keep=True)  # what was trained from weights that are about to change
        else:
            state, done = None, -1
            settings = budget.plan(model, task, settings, say, stop)
            if stop():
                return
            settings = replace(settings, val_batches=val_batches(settings))
            runfiles.set_aside(run, stage, say)
        task = replace(task_of(settings), log=runfiles.metrics_logger(run, stage, done))
        yield from train(model, task, settings, state=state, stop=stop, say=say)


def _saver(tokenizer: Tokenizer, meta: dict[str, Any]) -> Callable[[GPT, StepReport], None]:
    """The `save_best` of a task: it writes the model of the stage in `meta`, with its metrics added to the metadata."""

    def save(best: GPT, report: StepReport) -> None:
        done = {"steps": report.total, "step": report.step, **report.metrics}
        checkpoint.save(paths.checkpoint_path(meta["run"], meta["stage"]), best, tokenizer, {**meta, **done})

    return save


def _nats_and_targets(model: GPT, x: Tensor, y: Tensor, *docs: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of a batch and the number of targets it is a sum over, as a Task's loss gives them."""
    return model(x, y, *docs, reduction="sum"), (y >= 0).sum()


def _sampler(tokenizer: Tokenizer, prompt: list[int], tokens: int) -> Callable[[GPT], str]:
    def sample(model: GPT) -> str:
        stop = {tokenizer.eot, tokenizer.end}
        ids = generate(model, [prompt], max_new_tokens=tokens, temperature=0.0, stop=stop)[0]
        return tokenizer.decode(ids)

    return sample


def pretrain(
    run: str,
    corpus: CorpusData,
    *,
    model: str = "nano",
    settings: TrainSettings,
    device: str = "auto",
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
    val_windows: int | None = None,
    standin: bool = False,
    **shape: Any,
) -> Iterator[StepReport]:
    """Pretrain a new GPT of the preset `model` on the corpus; writes out/<run>/<run>_base_model.pt.

    `shape` overrides parts of the preset (n_layer=2, …). Each validation reads at most `val_windows` rows of the validation
    split, by default as many as take about 5 % of the time. `standin` marks a model that only replaces a missing trained
    one. Raises UserError, before anything is written, for arguments that do not fit together.
    """
    paths.new_run(run)
    tokenizer, where = corpus.tokenizer, devices.pick_device(device)
    config = model_config(model, tokenizer.vocab_size, **shape)
    corpus_files.batch(corpus.train, seed=0, step=0, batch_size=1, block_size=config.block_size)  # long enough?
    torch.manual_seed(settings.seed)
    gpt = GPT(config).to(where)
    corpus_files.val_windows(corpus.val, config.block_size, 1)
    meta = {
        "run": run, "stage": "base_model", "model_name": model, "corpus": corpus.name, "seed": settings.seed,
        "data_fingerprint": corpus.meta["source_fingerprint"], "parent": None,
        "standin": standin, "prepared": {name: corpus.meta.get(name, "default") for name in _TO_PREPARE_AGAIN},
    }  # fmt: skip

    def task_of(settings: TrainSettings) -> Task:
        limit = val_windows or (settings.val_batches or val_batches(settings)) * settings.batch_size
        x_val, y_val = corpus_files.val_windows(corpus.val, config.block_size, limit)

        def batches() -> Iterator[tuple[np.ndarray, ...]]:
            for at in range(0, len(x_val), settings.batch_size):
                yield x_val[at : at + settings.batch_size], y_val[at : at + settings.batch_size]

        return Task(
            stage="base_model",
            batch=lambda step: as_tensors(
                corpus_files.batch(
                    corpus.train, seed=settings.seed, step=step,
                    batch_size=settings.batch_size, block_size=config.block_size,
                )
            ),
            loss=_nats_and_targets,
            validate=lambda m: mean_loss(m, batches(), tokenizer),
            save_best=_saver(tokenizer, meta),
            state_path=paths.last_path(run, "base_model"),
            meta=meta,
            identity={"model": repr(config), "data": corpus.meta["fingerprint"], "tokenizer": tokenizer.fingerprint},
            tokens_per_step=settings.batch_size * config.block_size,
            sample=_sampler(tokenizer, [tokenizer.eot], 48),
        )  # fmt: skip

    return _run_stage(run, meta["stage"], gpt, task_of, settings, resume, stop, say)


_TO_PREPARE_AGAIN = ("corpus", "tokenizer_spec", "size", "fingerprint")


def _questions(
    run: str, qa_name: str | Source, size: str, tokenizer: Tokenizer, block_size: int, resume: bool
) -> tuple[str, qa.QAData]:
    """The origin of a question/answer set, and the set prepared for finetuning.

    A training that is resumed needs no more than what was prepared: the file it was made from may be gone.
    """
    try:
        source = resolve(qa_name, "qa", size=size)
        return source.origin, corpus_files.prepare_qa(source, tokenizer, block_size)
    except UserError:
        if not resume or not has_state(paths.last_path(run, "fine_tuned")):
            raise
        meta = begun(run, "fine_tuned")[1]
        if "prepared" not in meta:  # begun by an earlier version
            raise
        return meta["qa"], qa.load_qa(paths.data_dir(meta["prepared"]["folder"]))


def finetune(
    run: str,
    qa_name: str | Source,
    *,
    settings: TrainSettings,
    size: str = "default",
    device: str = "auto",
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Iterator[StepReport]:
    """Finetune the base model of `run` on questions and answers; writes out/<run>/<run>_fine_tuned.pt.

    Only answers and their end tokens carry loss. Raises UserError if the run has no base model.
    """
    base_path = paths.checkpoint_path(run, "base_model")
    if not base_path.is_file():
        hint = checkpoint.misnamed() or f"`nanochat pretrain --run {run}` makes one"
        raise UserError(f"run {run!r} has no base model to finetune; {hint}")
    base = checkpoint.load(base_path, devices.pick_device(device))
    gpt, tokenizer, block_size = base.model, base.tokenizer, base.model.config.block_size
    origin, data = _questions(run, qa_name, size, tokenizer, block_size, resume)
    meta = {
        "run": run, "stage": "fine_tuned", "model_name": base.meta["model_name"], "corpus": base.meta["corpus"],
        "qa": origin, "seed": settings.seed, "data_fingerprint": data.meta["source_fingerprint"],
        "parent": base.meta["fingerprint"], "size": size,
        "prepared": {"folder": data.folder.name}, "standin": base.meta.get("standin", False),
    }  # fmt: skip

    def task_of(settings: TrainSettings) -> Task:
        limit = settings.val_batches or val_batches(settings)
        positions, counted = settings.batch_size * block_size, data.meta["train"]
        targets = math.ceil(positions * counted["supervised"] / counted["tokens"])
        return Task(
            stage="fine_tuned",
            batch=lambda step: as_tensors(
                qa.qa_batch(data, seed=settings.seed, step=step, batch_size=settings.batch_size, block_size=block_size)
            ),
            loss=_nats_and_targets,
            validate=lambda m: mean_loss(
                m, qa.qa_val_batches(data, settings.batch_size, block_size, limit), tokenizer
            ),
            save_best=_saver(tokenizer, meta),
            state_path=paths.last_path(run, "fine_tuned"),
            meta=meta,
            identity={
                "base model": base.meta["fingerprint"], "data": data.meta["fingerprint"],
                "tokenizer": tokenizer.fingerprint,
            },
            tokens_per_step=positions,
            head_share=rows_scored(targets, positions) / positions,
            sample=_sampler(tokenizer, qa.render_prompt(qa.ask("What is the capital of France?"), tokenizer), 24),
        )  # fmt: skip

    return _run_stage(run, meta["stage"], gpt, task_of, settings, resume, stop, say)
