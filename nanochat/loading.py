"""Load the model of a run and stage, and let it answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from . import checkpoint, devices, paths
from .data import questions as qa
from .generate import generate


def load(
    run: str | None = None,
    stage: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
) -> checkpoint.Checkpoint:
    """Load the model of a run and stage (defaults as in checkpoint.find) onto `device`.

    `say` receives a message if this falls back on the bundled model, and if the model's parent no longer exists. Raises
    UserError if there is no such model or it cannot be loaded.
    """
    loaded = checkpoint.load(checkpoint.find(run, stage), devices.pick_device(device))
    if orphaned := checkpoint.orphaned(loaded.path, loaded.meta):
        say(orphaned)
    if run is None and checkpoint.in_box(loaded.path):
        name = loaded.meta.get("trained_as", paths.BOX)
        hint = f"; {misnamed}" if (misnamed := checkpoint.misnamed()) else ""
        say(f"no trained run yet: this is the bundled model ({name}); `nanochat course` trains your own{hint}")
    return loaded


def answer(
    loaded: checkpoint.Checkpoint, conversations: list[qa.Conversation], *, max_new_tokens: int = 64, **sampling: Any
) -> list[str]:
    """The model's answers to conversations that end with a question, generated in one batch.

    `sampling` is passed on to `generate`, as temperature, top_k, top_p and seed.
    """
    tokenizer = loaded.tokenizer
    prompts = [qa.render_prompt(conversation, tokenizer) for conversation in conversations]
    stop = {tokenizer.end, tokenizer.eot}
    ids = generate(loaded.model, prompts, max_new_tokens=max_new_tokens, stop=stop, **sampling)
    return [tokenizer.decode(row).strip() for row in ids]
