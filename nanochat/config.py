"""What can be chosen: model shapes by name, run profiles, and the one kind of error meant for people.

The seven model sizes are those of the NanoChatGPT2 project; the four GPT-2 sizes are those of Radford et al. 2019
("Language Models are Unsupervised Multitask Learners", table 2). `nano` is the default of this course,
`nano-long` what the profile "long" trains in an hour and a quarter.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any


class UserError(ValueError):
    """Something a person can mend. The message is one line: what is wrong, then what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: names the nearest known one, then all of them."""
    choices = list(known)
    folded = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(choices)}")


def whole_text(text: str) -> str:
    """`text` with "?" for half surrogate pairs: terminals and JSON can bring them in, UTF-8 files cannot hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def positive(name: str, value: int) -> int:
    """`value` if it is a whole number above zero; raises UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices there, not of files


def safe_name(name: str, kind: str = "run") -> str:
    """`name` if it can be a file name on every system; raises UserError for `../`, separators, blanks and the like."""
    if not _SAFE.fullmatch(str(name)) or str(name).endswith(".") or _WINDOWS.fullmatch(str(name)):
        raise UserError(
            f"{name!r} cannot be the name of a {kind}; use letters, digits, '_', '-' and '.', starting with a letter or "
            "digit, and no name that Windows keeps for itself"
        )
    return str(name)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. Raises UserError for values that cannot work.

    `arch="gpt2"` is GPT-2 exactly (learned positions, LayerNorm, GELU, biases); `arch="modern"` has rotary positions,
    RMSNorm, QK-norm, squared ReLU and no biases. The head is the embedding table in both. With `smear` (modern only) heads
    may also look for the token before a position, with `value_residual` (modern only) hand on values of the first layer.
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
                raise UserError(f"{name} is a part of arch 'modern'; GPT-2's published weights have none")
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
    """The preset `name`, with the vocabulary of your tokenizer in place of its own.

    Raises UserError for an unknown name, of a model or an override (it names the nearest known one), or impossible values.
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
    """How long one stage is trained in a profile, and how. The fields mean what they do in trainer.TrainSettings."""

    steps: int  # not minutes: the same seed trains the same model on a slow machine and on a fast one
    lr_scale: float = 1.0
    decay_from: float = 0.4
    optimizer: str = "muon"


@dataclass(frozen=True)
class Profile:
    """How much of everything one run of the course does, and what it works on."""

    name: str
    run: str  # a folder in out/
    corpus: str
    qa: str
    size: str  # how much of the almanac is generated
    tokenizer: str
    model: str
    batch_size: int  # rows of block_size tokens in one step
    eval_questions: int  # at most so many held-out questions of each kind are asked for the report card
    stages: dict[str, StageBudget]
    device: str = "auto"


def _stages(pretrain: StageBudget, finetune: StageBudget) -> dict[str, StageBudget]:
    return {"base_model": pretrain, "fine_tuned": replace(finetune, decay_from=0.0)}  # finetuning only slows down


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
        # beginning at half the rates, as the default does, spoils what 2,500 steps had settled
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
    """A notebook's parameters made whole: what is empty comes from the profile, what is given is checked.

    The run is named after the model unless it has a name of its own. `choices` are corpus, qa, tokenizer and device.
    All are texts, whatever papermill made of what was typed: of a run 2024, a number; of None, no value at all.
    Raises UserError for an unknown profile or model, or a run name that cannot be a folder.
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
