"""Texts of the playground: descriptions of models and chats, and its static version for saved notebooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..chat.session import ChatSession
from ..checkpoint import Checkpoint, in_box
from ..config import UserError, whole_text
from . import fallback, markup

# Example questions for buttons, with their passages
EXAMPLES = (
    ("What is the capital of France?", ""),
    ("Who wrote '1984'?", ""),
    ("How many planets are in our solar system?", ""),
    ("Tell me a story about a cat.", ""),
    ("Who has a red boat?", "Anna has a red boat. Ben has a green kite. They play by the river."),
)


def chat_name(path: Path) -> str:
    """The time at which a saved chat began, and its first question."""
    stamp = path.stem
    when = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]} {stamp[9:11]}:{stamp[11:13]}"
    try:
        first = whole_text(json.loads(path.read_text(encoding="utf-8"))["exchanges"][0]["question"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{when} (damaged)"
    return f"{when} {first[:40]}"


def describe(loaded: Checkpoint) -> str:
    """The size and score of a model in one line."""
    n_params, meta = loaded.model.n_params(), loaded.meta
    parts = [
        f"{n_params / 1e6:.1f} M parameters" if n_params >= 1e6 else f"{n_params:,} parameters",
        f"context of {loaded.model.config.block_size} tokens",
    ]
    if (right := _held_out_score(loaded)) is not None:
        parts.append(f"{right:.0%} of held-out questions right")
    elif meta.get("val_bpb") is not None:
        parts.append(f"{meta['val_bpb']:.2f} bits per byte")
    if meta["stage"] == "base_model":
        parts.append("continues texts, not taught to answer yet")
    if in_box(loaded.path):
        parts.append(f"came with nanochat ({meta.get('trained_as', loaded.path.stem)})")
    return " · ".join(parts)


def _held_out_score(loaded: Checkpoint) -> float | None:
    """The share of held-out questions answered right, if the model has a report card, else None."""
    try:
        card = json.loads((loaded.path.parent / f"{loaded.meta['stage']}_card.json").read_text(encoding="utf-8"))
        if card["model"]["fingerprint"] != loaded.meta["fingerprint"]:
            return None
        rows = [row for row in card["scores"] if row["skill"] == "all"]
        return sum(row["em"] * row["n"] for row in rows) / sum(row["n"] for row in rows)
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return None


def unavailable(reason: UserError) -> dict[str, Any]:
    """The output in place of the playground if there is no model."""
    text = (
        "There is no model to talk to here. Run `nanochat course` in a terminal, or the notebooks 03_pretraining and "
        f"04_qa_finetuning; then run this cell again.\n({reason})"
    )
    lines = "<br>".join(map(markup.escape, text.splitlines()))
    return fallback.output(f"{markup.STYLE}<div class='nc'><div class='nc-log'>{lines}</div></div>", text)


def sample_exchange(session: ChatSession) -> tuple[str, str]:
    """An example question with this model's answer, as (HTML, text), in place of the playground in a saved notebook."""
    question = EXAMPLES[0][0]
    separate = ChatSession(session.loaded, notice=lambda sentence: None)
    answer = "".join(separate.reply(question)).strip() or "(nothing)"
    lines = (
        f"A chat with {session.run} ({session.stage}); run this cell to use it.",
        f"You: {question}",
        f"Model: {answer}",
    )
    return "".join(f"<p>{markup.escape(line)}</p>" for line in lines), "\n".join(lines)
