"""Configuration: model presets, run profiles, and UserError, the exception for errors that the user can fix.

`nano` is the default model of this course; `nano-long` is the model of the profile "long", which trains for an hour and a
quarter. The other presets are those of the NanoChatGPT2 project; the four GPT-2 sizes among them are from Radford et al.
2019 ("Language Models are Unsupervised Multitask Learners", table 2).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any


class UserError(ValueError):
    """An error that the user can fix. The message is one line: what is wrong, then what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for an unknown name of a `kind` (such as "model"): suggests the most similar known name and lists all."""
    choices = list(known)
    folded = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(choices)}")


def whole_text(text: str) -> str:
    """`text` with "?" for unpaired surrogates, which terminals and JSON can produce and UTF-8 cannot represent."""
    return text.encode("utf-8", "replace").decode("utf-8")


def positive(name: str, value: int) -> int:
    """`value` if it is a positive integer; raises UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # reserved device names


def safe_name(name: str, kind: str = "run") -> str:
    """`name` if it is a valid file name on every system; raises UserError for `../`, separators, spaces and the like."""
    if not _SAFE.fullmatch(str(name)) or str(name).endswith(".") or _WINDOWS.fullmatch(str(name)):
        raise UserError(
            f"{name!r} cannot be the name of a {kind}; use letters, digits, '_', '-' and '.', starting with a letter or "
            "digit, and no name that Windows reserves"
        )
    return str(name)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. Raises UserError for values that cannot work.

    `arch="gpt2"` is exactly GPT-2 (learned positions, LayerNorm, GELU, biases); `arch="modern"` has rotary positions,
    RMSNorm, QK-norm, squared ReLU and no biases. In both, the output head shares the weights of the token embedding.
    Two options are for "modern" only: with `smear`, attention heads may mix the key of each position with that of the
    token before it; with `value_residual`, later layers may mix their values with those of the first layer.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    arch: str = "modern"
    dropout: float = 0.0
    smear: bool = False
    value_residual: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            positive(name, getattr(self, name))
        if self.arch not in ("gpt2", "modern"):
            raise unknown("architecture", self.arch, ("gpt2", "modern"))
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.arch == "modern" and (self.n_embd // self.n_head) % 2:
            raise UserError("rotary positions need an even head size: choose n_embd / n_head even")
        for name in ("smear", "value_residual"):
            if getattr(self, name) and self.arch != "modern":
                raise UserError(f"{name} needs arch 'modern'; GPT-2's published weights have no {name}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")


_GPT2 = {"arch": "gpt2", "vocab_size": 50257}
_NANO = {"arch": "modern", "block_size": 256, "smear": True, "value_residual": True}

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {**_NANO, "n_layer": 3, "n_head": 2, "n_embd": 128},
    "nano-long": {**_NANO, "n_layer": 4, "n_head": 3, "n_embd": 192},
    "very_small_for_test": {**_GPT2, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 32},
    "nanoGPT": {**_GPT2, "block_size": 128, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "miniGPT": {**_GPT2, "block_size": 128, "n_layer": 12, "n_head": 8, "n_embd": 512},
    "GPT2-Small": {**_GPT2, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "GPT2-Medium": {**_GPT2, "block_size": 1024, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "GPT2-Large": {**_GPT2, "block_size": 1024, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "GPT2-XL": {**_GPT2, "block_size": 1024, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}


def model_config(name: str, vocab_size: int | None = None, **overrides: Any) -> ModelConfig:
    """The preset `name`; `vocab_size`, if given, and `overrides` replace its values.

    Raises UserError for an unknown model or override, or for invalid values.
    """
    if name not in MODEL_PRESETS:
        raise unknown("model", name, MODEL_PRESETS)
    values = dict(MODEL_PRESETS[name])
    if vocab_size is not None:
        values["vocab_size"] = vocab_size
    if "vocab_size" not in values:
        raise UserError(f"model {name!r} takes its vocabulary from the tokenizer; pass vocab_size")
    known = [each.name for each in fields(ModelConfig)]
    for given in overrides:
        if given not in known:
            raise unknown("part of a model's shape", given, known)
    return ModelConfig(**{**values, **overrides})


@dataclass(frozen=True)
class StageBudget:
    """How long and how a profile trains one stage. The fields are those of trainer.TrainSettings."""

    steps: int  # not minutes: the same seed trains the same model on a slow machine and on a fast one
    lr_scale: float = 1.0
    decay_from: float = 0.4
    optimizer: str = "muon"


@dataclass(frozen=True)
class Profile:
    """A named set of choices for a whole run of the course: data, model, and how long each stage trains."""

    name: str
    run: str  # a folder in out/
    corpus: str
    qa: str
    size: str  # how much of the almanac is generated
    tokenizer: str
    model: str
    batch_size: int  # rows of block_size tokens in one step
    eval_questions: int  # the most questions of each held-out split that the report card asks
    stages: dict[str, StageBudget]
    device: str = "auto"


def _stages(pretrain: StageBudget, finetune: StageBudget) -> dict[str, StageBudget]:
    # in finetuning the learning rate decays from the start
    return {"base_model": pretrain, "fine_tuned": replace(finetune, decay_from=0.0)}


_DEFAULT = Profile(
    name="default",
    run="nano",
    corpus="almanac",
    qa="almanac",
    size="default",
    tokenizer="bpe:1024",
    model="nano",
    batch_size=16,
    eval_questions=100,
    stages=_stages(StageBudget(400), StageBudget(2000, lr_scale=0.5)),
)

PROFILES: dict[str, Profile] = {
    "smoke": replace(
        _DEFAULT, name="smoke", run="smoke", size="smoke", tokenizer="bpe:512", batch_size=4, eval_questions=8,
        stages=_stages(StageBudget(20), StageBudget(12, lr_scale=0.5)),
    ),
    "short": replace(
        _DEFAULT, name="short", run="nano-short",
        stages=_stages(StageBudget(150), StageBudget(600, lr_scale=0.5)),
    ),
    "default": _DEFAULT,
    "long": replace(
        _DEFAULT, name="long", run="nano-long", model="nano-long", size="full", eval_questions=400,
        # finetuning at half the learning rates, as in the default, would undo too much of a long pretraining
        stages=_stages(StageBudget(1500), StageBudget(5500, lr_scale=0.15)),
    ),
    "gpu": replace(
        _DEFAULT, name="gpu", run="GPT2-Small", corpus="TinyStories", qa="squad_v2", tokenizer="gpt2", model="GPT2-Small",
        batch_size=32, eval_questions=400, device="cuda",
        stages=_stages(StageBudget(20000), StageBudget(3000, lr_scale=0.6)),
    ),
}  # fmt: skip


def profile(name: str) -> Profile:
    """The run profile `name`; raises UserError for an unknown one."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def choose(profile: object = "default", *, run: object = "", model: object = "", **choices: object) -> Profile:
    """The profile of a notebook's parameters: empty parameters take the profile's value, others replace it.

    If a model is given and no run, the run is named after the model. `choices` may be corpus, qa, tokenizer and device.
    Values are converted to text, as papermill passes the run name 2024 as a number; None counts as empty. Raises UserError
    for an unknown profile or model, or a run name that cannot be a folder name.
    """
    typed = {"profile": profile, "run": run, "model": model, **choices}
    given: dict[str, Any] = {name: str(value) for name, value in typed.items() if value is not None and str(value)}
    if (name := given.pop("profile", "")) not in PROFILES:
        raise unknown("profile", name, PROFILES)
    base = PROFILES[name]
    if "model" in given:
        model_config(given["model"], 512)
        given.setdefault("run", given["model"])
    return replace(base, **{**given, "run": safe_name(given.get("run", base.run))})
