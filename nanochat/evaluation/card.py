"""The report card of a model: bits per byte of held-out text, and scores of its answers to held-out questions.

The held-out questions (see `corpus.prepare_qa`) are asked through the chat template with greedy sampling, and scored by
`scoring`. `baselines` gives the numbers to compare with.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checkpoint, loading, paths
from ..config import UserError
from ..data import corpus as corpus_files
from ..data import questions as qa
from ..data.corpus import CorpusData
from ..data.questions import IDK, Conversation, QAData
from ..generate import generate
from ..model import GPT
from ..tokenizer import Tokenizer
from . import baselines, scoring
from .card_text import compare_cards, format_card
from .loss import mean_loss
from .scoring import Scored

__all__ = [
    "FIVE_QUESTIONS", "bits_per_byte", "compare_cards", "five_questions", "format_card", "report_card", "score",
]  # fmt: skip

Progress = Callable[[int, int, str], None]  # done, total, what is counted

BATCH = 64  # questions per batch
WINDOWS = 128  # windows of validation text for bits per byte
SAMPLES = 6  # right answers shown, and as many wrong ones
TEXT_TOKENS = 160  # maximum length of each sampled text
TEMPERATURE = 0.7
HEROES = ("a fox", "a dog", "a cat", "a girl", "a boy", "a mouse", "a bear", "a bird", "a rabbit", "a king")

# The questions that the NanoChatGPT2 project asks after finetuning, each with strings of which the answer must contain
# one. The president changes with time, so a model trained on a fixed text should refuse.
FIVE_QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of France?", ("Paris",)),
    ("How many planets are in our solar system?", ("eight", "8")),
    ("Who wrote '1984'?", ("George Orwell", "Orwell")),
    ("What is the speed of light?", ("299,792,458", "299 792 458", "299,792", "299 792", "300,000", "300 000")),
    ("Who is the president of the United States?", (IDK,)),
)
_LONGEST_ANSWER = 20  # words; a longer answer to one of the five may just list everything


@torch.inference_mode()
def bits_per_byte(model: GPT, tokens: np.ndarray, tokenizer: Tokenizer, block_size: int, windows: int | None) -> float:
    """Bits per byte of text on `windows` windows spread evenly over `tokens` (None: all of them).

    Unlike the loss per token, it is comparable between tokenizers. The windows are always the same.
    """
    x, y = corpus_files.val_windows(tokens, block_size, windows)
    batches = ((x[at : at + 16], y[at : at + 16]) for at in range(0, len(x), 16))
    return mean_loss(model, batches, tokenizer)["val_bpb"]


def score(
    loaded: checkpoint.Checkpoint, conversations: Sequence[Conversation], *, progress: Progress | None = None
) -> list[Scored]:
    """Answer the last question of each conversation greedily and score the answers, in the order of `conversations`.

    Earlier turns are given; the model writes only the last answer. It may take about twice the tokens of the longest
    accepted answer, and at least 32, before it counts as not `stopped`.
    """
    tokenizer = loaded.tokenizer
    prompts = [qa.render_prompt(conv, tokenizer) for conv in conversations]
    limits = [_token_limit(conv, tokenizer) for conv in conversations]
    # batch together what has the same token limit and a similar length: little padding, and no waiting for long answers
    order = sorted(range(len(prompts)), key=lambda i: (limits[i], len(prompts[i]), i))
    predictions: dict[int, list[int]] = {}
    for limit, group in itertools.groupby(order, key=limits.__getitem__):
        members = list(group)
        for at in range(0, len(members), BATCH):
            batch = members[at : at + BATCH]
            ids = generate(
                loaded.model, [prompts[i] for i in batch], max_new_tokens=limit, stop={tokenizer.end, tokenizer.eot}
            )
            predictions.update(zip(batch, ids, strict=True))
            if progress:
                progress(len(predictions), len(prompts), "questions asked")
    scored = []
    for i, conv in enumerate(conversations):
        prediction = tokenizer.decode(predictions[i]).strip()
        right, overlap = scoring.exact_match(prediction, conv.answers), scoring.f1(prediction, conv.answers)
        stopped = len(predictions[i]) < limits[i]
        scored.append(
            Scored(
                conv.skill, conv.split, conv.question, prediction, conv.answers, right, overlap, stopped, conv.context
            )
        )
    return scored


def _token_limit(conv: Conversation, tokenizer: Tokenizer) -> int:
    """The token limit of an answer: a power of two, so that questions fall into few groups."""
    longest = max((len(tokenizer.encode(answer)) for answer in conv.answers), default=0)
    return max(32, 1 << (2 * longest - 1).bit_length())


def five_questions(loaded: checkpoint.Checkpoint) -> list[dict[str, Any]]:
    """FIVE_QUESTIONS with the model's answers, and whether each contains what it must, word for word."""
    predictions = loading.answer(loaded, [qa.ask(question) for question, _ in FIVE_QUESTIONS])
    return [
        {"question": question, "answer": prediction, "right": _contains(prediction, wanted)}
        for (question, wanted), prediction in zip(FIVE_QUESTIONS, predictions, strict=True)
    ]


def _contains(prediction: str, wanted: tuple[str, ...]) -> bool:
    if IDK in wanted:
        return bool(prediction) and scoring.is_refusal(prediction)
    said = scoring.normalize(prediction)
    runs = (f" {scoring.normalize(answer)} " in f" {said} " for answer in wanted)
    return len(said.split()) <= _LONGEST_ANSWER and any(runs)


# --- the report card --------------------------------------------------------------------------------------------------


def report_card(
    run: str | None = None,
    *,
    stage: str | None = None,
    limit_per_split: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything measured about a model, as JSON-compatible values; `format_card` turns it into markdown.

    At most `limit_per_split` held-out questions of each skill and split are asked, sampled with `seed`. What cannot be
    measured, because data is missing or was prepared again since training, is None, and `notes` says why. The same
    model, data and arguments give the same card. Raises UserError if there is no such model.
    """
    loaded = loading.load(run, stage, device)
    notes: list[str] = []
    corpus = _corpus(loaded, notes)
    questions = _questions(loaded, notes)
    chosen = _choose(questions.val_conversations, limit_per_split, seed) if questions else []
    scored = score(loaded, chosen, progress=progress)
    pairs = baselines.training_pairs(questions, loaded.tokenizer) if questions else []
    training = itertools.chain(_training_text(corpus, loaded.tokenizer), (answer for _, answer in pairs))
    meta = loaded.meta
    return {
        "run": meta["run"],
        "stage": meta["stage"],
        "notes": notes,
        "model": {
            "name": meta["model_name"],
            "parameters": loaded.model.n_params(),
            **asdict(loaded.model.config),
            "tokenizer": loaded.tokenizer.name,
            "step": meta["step"],
            "fingerprint": meta["fingerprint"],
        },
        "corpus": corpus and {"name": corpus.name, "train": corpus.meta["train"], "val": corpus.meta["val"]},
        "questions": questions and {"name": questions.meta["name"], "asked": len(scored), "limit": limit_per_split},
        "bits_per_byte": corpus and _bits(loaded, corpus),
        "scores": _with_baselines(scored, pairs) if scored else [],
        "majority_answer": baselines.majority_baseline(pairs) if pairs else None,
        "five_questions": five_questions(loaded),
        "writing": _writing(loaded, any("story" in question.lower() for question, _ in pairs), training, seed),
        "samples": _samples(scored, seed),
    }


def _corpus(loaded: checkpoint.Checkpoint, notes: list[str]) -> CorpusData | None:
    """The corpus that the model was pretrained on, if it still exists; otherwise None, with the reason in `notes`."""
    name = loaded.meta["corpus"]
    try:
        corpus = corpus_files.load_corpus(paths.data_dir(name))
    except UserError as error:
        notes.append(f"No bits per byte: {error}.")
        return None
    mine, theirs = loaded.tokenizer.fingerprint, corpus.tokenizer.fingerprint
    if mine != theirs:
        notes.append(
            f"No bits per byte: the model reads with tokenizer {mine}, data/{name} is now prepared with {theirs}."
        )
        return None
    trained_on, there = loaded.meta.get("data_fingerprint"), corpus.meta["source_fingerprint"]
    if loaded.meta["stage"] == "base_model" and trained_on not in (None, there):
        notes.append(
            f"data/{name} ({there}) was prepared again since training ({trained_on}): bits per byte may be too low."
        )
    return corpus


def _questions(loaded: checkpoint.Checkpoint, notes: list[str]) -> QAData | None:
    """The questions that the run was finetuned on, otherwise those prepared last; None if there are none."""
    meta = loaded.meta
    tuned = paths.checkpoint_path(meta["run"], "fine_tuned")
    if "qa" not in meta and tuned.is_file():
        meta = checkpoint.read_meta(tuned)
    prepared = _prepared(loaded.tokenizer)
    if "qa" not in meta:
        if not prepared:
            notes.append("No questions were asked: none are prepared for this model's tokenizer (`nanochat finetune`).")
            return None
        return qa.load_qa(next(iter(prepared.values())))
    trained_on = meta["data_fingerprint"]
    if trained_on in prepared:
        return qa.load_qa(prepared[trained_on])
    block_size = loaded.model.config.block_size
    try:
        data = corpus_files.prepare_qa(meta["qa"], loaded.tokenizer, block_size, size=meta.get("size", "default"))
    except UserError as error:
        notes.append(f"No questions were asked: {error}.")
        return None
    if data.meta["source_fingerprint"] != trained_on:
        notes.append(
            f"The questions of {meta['qa']} ({data.meta['source_fingerprint']}) differ from those the model was "
            f"trained on ({trained_on}): it may have been trained on some that now count as held out."
        )
    return data


def _prepared(tokenizer: Tokenizer) -> dict[str, Path]:
    """Source fingerprint → folder of each prepared question set, newest first; damaged ones are left out."""
    files = (file.with_name("meta.json") for file in (paths.home() / "data").glob("*/qa_val.jsonl"))
    found: dict[str, Path] = {}
    for file in paths.newest_first(files):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            meta = json.loads(file.read_text(encoding="utf-8"))
            if meta["tokenizer_fingerprint"] == tokenizer.fingerprint:
                found.setdefault(meta["source_fingerprint"], file.parent)
    return found


def _choose(conversations: Sequence[Conversation], limit: int | None, seed: int) -> list[Conversation]:
    """A random sample of at most `limit` conversations of each split and skill, in their original order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, conv in enumerate(conversations):
        groups.setdefault((conv.split, conv.skill), []).append(i)
    rng = random.Random(seed)
    chosen = [rng.sample(groups[key], min(limit or len(conversations), len(groups[key]))) for key in sorted(groups)]
    return [conversations[i] for i in sorted(itertools.chain.from_iterable(chosen))]


def _bits(loaded: checkpoint.Checkpoint, corpus: CorpusData) -> dict[str, float]:
    """Bits per byte of the model and of the n-gram baselines on the same tokens."""
    block_size, tokenizer = loaded.model.config.block_size, loaded.tokenizer
    windows = corpus_files.val_windows(corpus.val, block_size, WINDOWS)
    counted = baselines.ngram_bits_per_byte(corpus.train, *windows, tokenizer.byte_lengths())
    return {"model": bits_per_byte(loaded.model, corpus.val, tokenizer, block_size, WINDOWS), **counted}


def _writing(loaded: checkpoint.Checkpoint, stories: bool, training: Iterable[str], seed: int) -> dict[str, Any]:
    """Measures of sampled texts: stories if the training has any, otherwise what the model writes after <|endoftext|>."""
    tokenizer = loaded.tokenizer
    prompts = [[tokenizer.eot]] * len(HEROES)
    if stories:
        prompts = [qa.render_prompt(qa.ask(f"Tell me a story about {hero}."), tokenizer) for hero in HEROES]
    stop = {tokenizer.end, tokenizer.eot}
    written = generate(loaded.model, prompts, max_new_tokens=TEXT_TOKENS, temperature=TEMPERATURE, seed=seed, stop=stop)
    texts = [tokenizer.decode(ids).strip() for ids in written]
    ended = sum(len(ids) < TEXT_TOKENS for ids in written)
    measures = scoring.text_measures(texts, training)
    return {
        "asked": "stories about an animal or a child" if stories else "free text",
        "stop_rate": ended / len(texts),
        **measures,
        "sample": texts[0],
    }


def _training_text(corpus: CorpusData | None, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts between special tokens in at most MAX_TOKENS tokens of the training split."""
    if corpus is None:
        return
    tokens = np.asarray(corpus.train[: baselines.MAX_TOKENS])
    specials = np.flatnonzero(tokenizer.byte_lengths()[tokens] == 0)
    for begin, end in itertools.pairwise([-1, *specials.tolist(), len(tokens)]):
        if end - begin > 1:
            yield tokenizer.decode(tokens[begin + 1 : end].tolist())


def _with_baselines(scored: list[Scored], pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of `scoring.summary`, with the exact match of the two baselines in columns majority_em and nearest_em."""
    majority = [baselines.majority_baseline(pairs)] * len(scored)
    nearest = baselines.nearest_baseline(pairs, [item.question for item in scored])
    rows = scoring.summary(scored)
    for column, predictions in (("majority_em", majority), ("nearest_em", nearest)):
        others = [
            replace(item, prediction=prediction, em=scoring.exact_match(prediction, item.answers))
            for item, prediction in zip(scored, predictions, strict=True)
        ]
        for row, other in zip(rows, scoring.summary(others), strict=True):
            row[column] = other["em"]
    return rows


def _samples(scored: list[Scored], seed: int) -> dict[str, list[dict[str, Any]]]:
    rng = random.Random(seed)
    checkable = [item for item in scored if item.skill not in scoring.OPEN_SKILLS]
    samples = {}
    for name, wanted in (("right", True), ("wrong", False)):
        found = [item for item in checkable if item.em == wanted]
        picked = rng.sample(found, min(SAMPLES, len(found)))
        samples[name] = [asdict(item) | {"answers": list(item.answers)} for item in picked]
    return samples
