"""A tiny model that has memorized a few answers: real weights in a real checkpoint, trained in a second."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch

from nanochat import checkpoint, paths
from nanochat.config import ModelConfig
from nanochat.data import questions
from nanochat.model import GPT
from nanochat.tokenizer import Tokenizer, train_bpe

NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
ANSWERS = {
    "hello": "Hello! How can I help?",
    "wave": "Hi 👋🏽 مرحبا",
    "html": "<b>bold</b> <script>alert('x')</script> & more",
    "count": NUMBERS,
}


@functools.cache
def tiny_model() -> tuple[GPT, Tokenizer]:
    """A model of two layers of width 32 that gives exactly the answers of ANSWERS, and its tokenizer."""
    tok = train_bpe([*ANSWERS, *ANSWERS.values()] * 3, 320)
    torch.manual_seed(0)
    model = GPT(ModelConfig(tok.vocab_size, 96, n_layer=2, n_head=2, n_embd=32))
    rows = [
        questions.render(questions.Conversation((questions.Turn("user", q), questions.Turn("assistant", a))), tok)
        for q, a in ANSWERS.items()
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tok.eot] * (width - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tok


def tiny_checkpoint(
    home: Path, run: str = "tiny", stage: str = "fine_tuned", block_size: int = 96, parent: str | None = None
) -> Path:
    """Save the tiny model as a stage of `run` in the project folder `home`; returns the path."""
    path = home / "out" / run / paths.checkpoint_path(run, stage).name
    learned, tok = tiny_model()
    model = GPT(replace(learned.config, block_size=block_size))  # rotary positions: the weights fit any length
    model.load_state_dict(learned.state_dict())
    meta = {"run": run, "stage": stage, "model_name": "tiny", "corpus": "tests", "step": 120, "val_loss": 0.5}
    checkpoint.save(path, model, tok, {**meta, "val_bpb": 0.4, "parent": parent})
    return path
