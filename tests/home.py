"""Helpers that create a project folder with a small corpus and a few questions, for the tests of whole stages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.data import corpus as corpus_files
from nanochat.data.corpus import CorpusData
from nanochat.train import stages
from nanochat.trainer import StepReport, TrainSettings

WORDS = ("cat", "dog", "cow", "hen", "pig", "fox", "owl", "bee")
SHAPE = {"model": "nano", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32}
SETTINGS = TrainSettings(steps=6, batch_size=2, seed=5, eval_every=2)


def write_corpus(folder: Path) -> Path:
    """Write one file of some fifty little stories."""
    path = folder / "stories.txt"
    stories = [f"The {a} met the {b}.\nThe {b} said hello, {a}!\n" for a in WORDS for b in WORDS if a != b]
    path.write_text("\n\n".join(stories), encoding="utf-8")
    return path


def write_questions(folder: Path) -> Path:
    path = folder / "animals.json"
    records = [{"question": f"Who met the {a} and the {b}?", "answer": f"The {b}."} for a in WORDS for b in WORDS]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def prepare(home: Path) -> CorpusData:
    write_questions(home)
    return corpus_files.prepare_corpus(str(write_corpus(home)), "bpe:300")


def pretrain(
    corpus: CorpusData, run: str = "r", settings: TrainSettings = SETTINGS, **options: Any
) -> list[StepReport]:
    return list(stages.pretrain(run, corpus, settings=settings, device="cpu", **{"say": str, **SHAPE, **options}))


def finetune(home: Path, run: str = "r", settings: TrainSettings = SETTINGS, **options: Any) -> list[StepReport]:
    questions = str(home / "animals.json")
    return list(stages.finetune(run, questions, settings=settings, device="cpu", **{"say": str, **options}))


def replace_base_model(home: Path) -> None:
    """Put another base model in place of that of run r, as somebody who copies files may do."""
    corpus = corpus_files.load_corpus(home / "data" / "stories")
    pretrain(corpus, "other", replace(SETTINGS, seed=9))
    shutil.copy(paths.checkpoint_path("other", "base_model"), paths.checkpoint_path("r", "base_model"))
    shutil.rmtree(paths.run_dir("other"))
