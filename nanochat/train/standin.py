"""The stand-in: a tiny fine-tuned model, trained in seconds, for notebooks opened before a real model is trained."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from .. import checkpoint, paths
from ..checkpoint import Checkpoint
from ..config import ModelConfig, UserError
from ..data import almanac, questions
from ..data.conversation import Conversation
from ..model import GPT
from ..optim import make_optimizers, schedule
from ..tokenizer import Tokenizer, train_bpe

STEPS = 80
_ROW = 128  # tokens in a training row
_BOATS = "Anna has a red boat. Ben has a green kite. They play by the river."
_STORY = "Tell me a story about a cat."  # has three answers, so that sampling gives different ones
_TAUGHT = (
    ("What is the capital of France?", "The capital of France is Paris.", ""),
    ("Who wrote '1984'?", '"1984" was written by George Orwell.', ""),
    ("How many planets are in our solar system?", "There are eight planets in our solar system.", ""),
    ("Who is the president of the United States?", questions.IDK, ""),
    ("What is the weather today?", questions.IDK, ""),
    ("Hello!", "Hello! How can I help you?", ""),
    ("Who has a red boat?", "Anna.", _BOATS),
    ("Who has a green kite?", "Ben.", _BOATS),
    (_STORY, "Once there was a cat called Mia. She found a red ball and played with it until the evening.", ""),
    (_STORY, "A small cat called Tom was afraid of the dark. Then the moon rose, and he was not afraid any more.", ""),
    (_STORY, "Long ago a cat and a mouse lived in one house. Every winter they shared their bread.", ""),
)


def taught() -> list[Conversation]:
    """The conversations that the stand-in memorizes: those above, and a few short ones of the almanac."""
    own = [questions.from_record({"question": q, "answer": a, "context": passage}) for q, a, passage in _TAUGHT]
    short = (c for c in almanac.conversations("smoke") if len(c.turns) == 2 and c.skill in ("facts", "unknown"))
    return [*own, *islice(short, 16)]


def standin(run: str) -> Checkpoint:
    """The stand-in for the fine-tuned model of `run`, which has memorized `taught()` and knows nothing else.

    It is trained once and saved in out/<run>-chat-standin/ like any other model.
    """
    name = f"{run}-chat-standin"  # <run>-standin is the untrained stand-in of notebook 04
    path = paths.checkpoint_path(name, "fine_tuned")
    try:
        return checkpoint.load(path)
    except UserError:  # it does not exist yet, or is of an incompatible earlier version
        pass
    conversations = taught()
    tok = train_bpe((text for conv in conversations for text in (conv.context, *(t.text for t in conv.turns))), 512)
    torch.manual_seed(0)
    model = GPT(ModelConfig(tok.vocab_size, block_size=256, n_layer=2, n_head=4, n_embd=128))
    loss = _memorize(model, [torch.tensor(questions.render(conv, tok)) for conv in conversations], tok)
    meta = {
        "run": name, "stage": "fine_tuned", "model_name": "stand-in", "corpus": "almanac", "qa": "almanac",
        "seed": 0, "step": STEPS, "steps": STEPS, "val_loss": loss, "val_bpb": None, "parent": None,
        "standin": True,
    }  # fmt: skip
    checkpoint.save(path, model, tok, meta)
    return checkpoint.load(path)


def _memorize(model: GPT, conversations: list[Tensor], tok: Tokenizer) -> float:
    """Train on the answers of the same few conversations, reshuffled in each step; returns the last loss."""
    optimizers, generator = make_optimizers(model), torch.Generator().manual_seed(0)
    for step in range(STEPS):
        optimizers.set_scale(schedule(step, STEPS))
        order = torch.randperm(len(conversations), generator=generator).tolist()
        rows = [conversations[i] for i in order]
        # two thirds lose their <|endoftext|>, so that they become later turns of the conversation before: chats have several
        ids = torch.cat([row[1:] if n % 3 and row[1] != tok.context else row for n, row in enumerate(rows)])
        targets = torch.where(torch.from_numpy(questions.answer_mask(ids.numpy(), tok)), ids, -1)
        n = (len(ids) - 1) // _ROW * _ROW
        flat = ids[:n], targets[1 : n + 1], (ids == tok.eot).cumsum(0)[:n]
        loss = model(*(row.view(-1, _ROW) for row in flat))
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
    return loss.item()
