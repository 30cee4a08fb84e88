"""Time to learn tiny_shakespeare, compared with the original's recipe (original.py) and nanoGPT's results.

Each training runs in a process of its own. The timed ones start without any compiled code, so that the time includes
compiling, as it does for a user.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config import PROFILES, UserError
from ..data import corpus, sources
from ..train import stages
from ..trainer import StepReport, TrainSettings
from .original import original_seconds
from .rows import Row

GROUP = "shakespeare"
CORPUS = "tiny_shakespeare"

# Bits per byte on the whole validation split: of the original's recipe after 300 steps, and from nanoGPT's readme (1.88 and
# 1.4697 nats per character; here a character is a byte)
ORIGINAL_300, NANOGPT_CPU, NANOGPT_A100 = 2.55, 2.71, 2.120


@dataclass(frozen=True)
class Recipe:
    """The settings of a training here. The whole validation split is evaluated every `eval_every` steps.

    There is no dropout, because four passes over the text are too few to memorize it.
    """

    tokenizer: str = "bpe:1024"
    model: str = "nano-long"
    dropout: float = 0.0
    batch_size: int = 16
    steps: int = 450
    eval_every: int = 100
    lr_scale: float = 0.5
    decay_from: float = 0.3
    seed: int = 1337
    compile: bool = True

    def settings(self) -> TrainSettings:
        """The recipe in the trainer's form."""
        return TrainSettings(
            steps=self.steps, batch_size=self.batch_size, seed=self.seed, lr_scale=self.lr_scale,
            decay_from=self.decay_from, eval_every=self.eval_every, compile=self.compile,
        )  # fmt: skip


RECIPE = Recipe()
# For the two easier results: a few small steps at a high learning rate, too few for compiling to pay off
SPRINT = Recipe(batch_size=8, steps=55, eval_every=55, lr_scale=1.0, compile=False)


@dataclass(frozen=True)
class Validation:
    """A validation: seconds since the process started, seconds of these spent on validating, and its bits per byte."""

    step: int
    seconds: float
    eval_s: float
    val_bpb: float


# --- in the process that trains -----------------------------------------------------------------------------------------


def _train(recipe: Recipe, seconds: float) -> Iterator[StepReport]:
    begin = time.perf_counter()
    data = corpus.prepare_corpus(CORPUS, recipe.tokenizer)
    print(json.dumps({"split": _split(data)}), flush=True)
    return stages.pretrain(
        "bench", data, model=recipe.model, settings=recipe.settings(), dropout=recipe.dropout, val_windows=sys.maxsize,
        stop=lambda: time.perf_counter() - begin > seconds, say=_say,
    )  # fmt: skip


def _train_by_default() -> Iterator[StepReport]:
    """The pretraining of the default profile."""
    profile = PROFILES["default"]
    data = corpus.prepare_corpus(CORPUS, profile.tokenizer)
    return stages.pretrain(
        "bench", data, model=profile.model, settings=stages.settings_for(profile, "base_model"), say=_say
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _split(data: corpus.CorpusData) -> str:
    """Where our validation split begins, and where nanoGPT's does, which is the last tenth of the characters."""
    ours, whole = data.meta["train"]["bytes"], data.meta["train"]["bytes"] + data.meta["val"]["bytes"]
    return f"validation is what follows byte {ours:,} of {whole:,} (nanoGPT: {int(0.9 * whole):,})"


def main(what: str, seconds: str, changes: str) -> None:
    """Train, printing a line of JSON for each validation, until nanoGPT's better result is reached or the time is up.

    `what` is "recipe" or "default"; `changes` to the recipe are given as JSON.
    """
    recipe = replace(RECIPE, **json.loads(changes))
    reports = _train(recipe, float(seconds)) if what == "recipe" else _train_by_default()
    for report in reports:
        if not report.metrics:
            continue
        print(json.dumps(report.record()), flush=True)
        if report.step and (what != "recipe" or report.metrics["val_bpb"] <= NANOGPT_A100):
            return


# --- in the process that watches ----------------------------------------------------------------------------------------


def _lines(what: str, seconds: float, changes: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The lines that `main` prints, as (seconds since its start, record).

    It runs in a temporary project folder and, where the time for compiling counts, with an empty compiler cache. Raises
    UserError if the corpus cannot be downloaded (saying where to put it), or if the training fails.
    """
    path = sources.resolve(CORPUS).path
    assert path is not None
    with tempfile.TemporaryDirectory() as folder:
        downloads = Path(folder) / "data" / "downloads"
        downloads.mkdir(parents=True)
        shutil.copy(path, downloads / path.name)
        environment = {**os.environ, "NANOCHAT_HOME": folder}
        if what == "recipe":  # "default" measures single steps, for which cached code may be used
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
        begin = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "nanochat.bench.shakespeare", what, str(seconds), json.dumps(changes)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield time.perf_counter() - begin, json.loads(line)
            if child.wait():
                raise UserError("the training of the benchmark failed; see the error above")
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def evaluation() -> list[Row]:
    """Time for validation relative to that of the training steps, in the default pretraining."""
    how = "the first validation after the start of the default profile's pretraining, against the steps between two"
    record = [record for _, record in _lines("default", 0, {})][-1]
    training = record["step"] * _step_seconds(record)
    share = 100 * record["eval_s"] / training
    return [Row("evaluation", "validating against training", share, "%", how, target=5.0, at_most=True)]


def _step_seconds(record: dict[str, Any]) -> float:
    """Seconds per step, the median of the last steps."""
    return record["tokens"] / record["step"] / record["tokens_per_s"]


def reached(validations: Sequence[Validation], bpb: float) -> Validation | None:
    """The first validation of at most `bpb` bits per byte; None if there is none."""
    return next((validation for validation in validations if validation.val_bpb <= bpb), None)


def learning(seconds: float, say: Callable[[str], None], **changes: Any) -> tuple[list[Validation], str]:
    """Train by the recipe for at most `seconds`: (validations, description of the split)."""
    validations: list[Validation] = []
    split, eval_s = "", 0.0
    for after, record in _lines("recipe", seconds, changes):
        split = record.get("split", split)
        if "val_bpb" in record:
            eval_s += record["eval_s"]
            validations.append(Validation(record["step"], after, eval_s, record["val_bpb"]))
            say(f"  step {record['step']}: {record['val_bpb']:.3f} bits per byte after {after:.0f} s")
    return validations, split


def rows(seconds: float, say: Callable[[str], None] = lambda text: None, **changes: Any) -> list[Row]:
    """Our time to each result in minutes, and how much faster that is than the original."""
    begin = time.perf_counter()
    original = original_seconds()
    sprint, split = learning(seconds / 4, say, **(asdict(SPRINT) | changes))
    validations, _ = learning(seconds - (time.perf_counter() - begin), say, **changes)
    how, sprinting = (_how(replace(recipe, **changes), split) for recipe in (RECIPE, SPRINT))
    there = reached(sprint, ORIGINAL_300)
    name = "faster than the original to its quality after 300 steps"
    if there is None:
        ratio = replace(_not_reached(name, sprint, seconds, sprinting), target=50.0)
    else:
        said = (
            "the original: 300 steps and 12 evaluations of 200 batches with gradients, computed from the measured "
            f"{original.step:.2f} s a step and {original.batch:.2f} s a batch (GPT-2 6 x 384, all logits of 50,257 ids, "
            f"AdamW, float32, eager, 8 x 128) as {original.to_300 / 60:.1f} minutes; ours: {there.seconds:.0f} s"
        )
        ratio = Row(GROUP, name, original.to_300 / there.seconds, "x", said, target=50.0)
    return [
        _minutes("nanoGPT's CPU result", NANOGPT_CPU, sprint, seconds, sprinting),
        _minutes("the original after 300 steps", ORIGINAL_300, sprint, seconds, sprinting),
        replace(_minutes("nanoGPT's A100 result", NANOGPT_A100, validations, seconds, how), target=10.0),
        ratio,
    ]


def _how(recipe: Recipe, split: str) -> str:
    compiling = "compiling and validating" if recipe.compile else "validating"
    return (
        f"{recipe.model}, {recipe.tokenizer} learned from the whole text, dropout {recipe.dropout:g}, {recipe.batch_size} "
        f"rows, schedule of {recipe.steps} steps; from the start of the process, {compiling} included; "
        f"whole validation split every {recipe.eval_every} steps: {split}"
    )


def _minutes(whose: str, bpb: float, validations: Sequence[Validation], seconds: float, how: str) -> Row:
    """The minutes it took to reach `bpb` bits per byte."""
    name = f"minutes to {bpb:g} bits per byte ({whose})"
    validation = reached(validations, bpb)
    if validation is None:
        return replace(_not_reached(name, validations, seconds, how), at_most=True)
    said = (
        f"step {validation.step}, {(validation.seconds - validation.eval_s) / 60:.2f} minutes without validating; {how}"
    )
    return Row(GROUP, name, validation.seconds / 60, "min", said, at_most=True)


def _not_reached(name: str, validations: Sequence[Validation], seconds: float, how: str) -> Row:
    best = min((validation.val_bpb for validation in validations), default=math.nan)
    after = validations[-1].seconds if validations else seconds
    problem = f"not reached: {best:.3f} was the best of {after / 60:.1f} minutes; --only {GROUP} gives it more"
    return Row(GROUP, name, None, "", how, problem=problem)


if __name__ == "__main__":
    main(*sys.argv[1:])
