"""One answer in a chat: fit the prompt into the context, sample the answer, and give the probability of each token."""

from __future__ import annotations

import codecs
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch

from ..checkpoint import Checkpoint
from ..config import UserError, positive
from ..data import questions
from ..data.conversation import Conversation, Turn
from ..generate import check_sampling, stream
from ..tokenizer import Tokenizer
from .feedback import new_id


class Sampling(TypedDict):
    """The settings that `generate` takes."""

    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int


@dataclass(frozen=True)
class Settings:
    """How answers are sampled. Raises UserError for invalid values."""

    temperature: float = 0.0  # 0: greedy
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 128  # a story takes about 100
    seed: int = 0  # the n-th answer of a session is sampled with seed + n
    # How many earlier exchanges the model is shown. More of them distract a small model.
    remember: int = 3

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p, None)
        positive("max_new_tokens", self.max_new_tokens)
        if isinstance(self.remember, bool) or not isinstance(self.remember, int) or self.remember < 0:
            raise UserError(f"remember must be a whole number of at least 0, not {self.remember!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**62:
            raise UserError(f"seed must be a whole number of at least 0 and below 2**62, not {self.seed!r}")

    def sampling(self) -> Sampling:
        """The keyword arguments that `generate` takes."""
        return {
            "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
        }  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer, with everything needed to sample it again."""

    conversation: Conversation  # what the model was shown; ends with the question
    text: str
    ids: tuple[int, ...]  # its token ids, without the stop token
    ended: str  # "end": by a stop token, "limit": by max_new_tokens or the context, "stopped": by the user
    seconds: float
    settings: Settings
    seed: int
    run: str
    stage: str
    checkpoint: str  # fingerprint of the model's weights
    tokenizer: str  # fingerprint of its tokenizer
    id: str = field(default_factory=new_id)

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated per second; 0 if no time was measured."""
        return len(self.ids) / self.seconds if self.seconds > 0 else 0.0


def run_of(loaded: Checkpoint) -> str:
    """The name of the run that a model belongs to."""
    return loaded.meta.get("run") or loaded.path.parent.name


def fit(
    loaded: Checkpoint, question: str, passage: str, earlier: Sequence[Turn], settings: Settings
) -> tuple[Conversation, list[str]]:
    """The conversation to show the model, cut to leave room for an answer, and a sentence for each cut that was made.

    The oldest exchanges are dropped first, until `max_new_tokens` fit or half the context is free. A question too long
    by itself loses its beginning, and a passage its end, until `max_new_tokens` fit or a quarter of the context is free.
    Raises UserError for an empty question.
    """
    tok, block_size = loaded.tokenizer, loaded.model.config.block_size
    questions.ask(question)
    question, passage, notices = question.strip(), passage.strip(), []
    room = block_size - min(settings.max_new_tokens, block_size // 4)
    n_text = max(1, room - (4 if passage else 3))  # the rest are the template's special tokens
    shorter = _crop(question, n_text // 2 if passage else n_text, tok, keep_end=True)
    if shorter is not None:
        question = shorter
        notices.append("The question is too long for this model: it read only the end.")
    shorter = _crop(passage, n_text - len(tok.encode(question)), tok, keep_end=False)
    if shorter is not None:
        passage = shorter
        notices.append("The passage is too long for this model: it read only the beginning.")
    turns = (*earlier, Turn("user", question))
    room = block_size - min(settings.max_new_tokens, block_size // 2)
    while len(turns) > 1 and len(questions.render_prompt(Conversation(turns, passage), tok)) > room:
        turns = turns[2:]
    if dropped := (len(earlier) + 1 - len(turns)) // 2:
        what = (
            "an earlier question and its answer" if dropped == 1 else f"{dropped} earlier questions and their answers"
        )
        notices.append(f"The context is full: the model no longer sees {what}.")
    return Conversation(turns, passage), notices


def _crop(text: str, n: int, tok: Tokenizer, *, keep_end: bool) -> str | None:
    """The last (or first) n tokens of a text that has more than n; None for a shorter one."""
    # Cut before encoding whatever is certainly too long: someone will paste a whole book.
    bound = (n + 1) * int(tok.byte_lengths().max())
    ids = tok.encode(text[-bound:] if keep_end else text[:bound])
    if len(ids) <= n:
        return None
    while n > 0:
        cropped = tok.decode(ids[-n:] if keep_end else ids[:n]).strip("\ufffd")  # half a character at the cut
        if len(tok.encode(cropped)) <= n:
            return cropped
        ids, n = (
            (ids[-n + 1 :] if keep_end else ids[: n - 1]),
            n - 1,
        )  # the cropped text takes more tokens than the crop
    return ""


@dataclass
class _Draft:
    """An answer while it is being written."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    ended: str = "limit"


def write(
    loaded: Checkpoint,
    conversation: Conversation,
    settings: Settings,
    seed: int,
    stop: threading.Event,
    done: Callable[[Answer], None],
) -> Generator[str, None, None]:
    """Sample one answer and yield its text in pieces of whole characters, until `stop` is set.

    `done` receives the answer when it ends or the iterator is closed, but not after an error.
    """
    draft = _Draft()
    begin = time.perf_counter()

    def finish() -> None:
        origin = (run_of(loaded), loaded.meta["stage"], loaded.meta["fingerprint"], loaded.tokenizer.fingerprint)
        seconds = time.perf_counter() - begin
        text = draft.text.rstrip()
        done(Answer(conversation, text, tuple(draft.ids), draft.ended, seconds, settings, seed, *origin))

    try:
        yield from _pieces(loaded, conversation, settings, seed, stop, draft)
    except GeneratorExit:
        draft.ended = "stopped"
        finish()
        raise
    finish()


def _pieces(
    loaded: Checkpoint,
    conversation: Conversation,
    settings: Settings,
    seed: int,
    stop: threading.Event,
    draft: _Draft,
) -> Iterator[str]:
    tok = loaded.tokenizer
    prompt = questions.render_prompt(conversation, tok)
    # Past the context, generation would slide the window and lose the question; the answer ends there instead.
    room = max(1, loaded.model.config.block_size - len(prompt))
    sampling = settings.sampling()
    sampling["max_new_tokens"] = min(settings.max_new_tokens, room)
    specials = {tok.eot, tok.context, tok.user, tok.assistant, tok.end}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in stream(loaded.model, prompt, seed=seed, **sampling):
        if token in specials:
            draft.ended = "end"
            break
        draft.ids.append(token)
        piece = decoder.decode(tok.token_bytes(token))
        piece = piece if draft.text else piece.lstrip()
        if piece:
            draft.text += piece
            yield piece
        if stop.is_set():
            draft.ended = "stopped"
            return  # the decoder may still hold half a character
    if rest := decoder.decode(b"", final=True):
        draft.text += rest
        yield rest


@dataclass(frozen=True)
class TokenView:
    """One generated token with its probability and the most likely alternatives."""

    text: str
    probability: float
    top: tuple[tuple[str, float], ...]  # (text, probability) of the most likely tokens, best first

    @property
    def bits(self) -> float:
        """The surprisal of the token in bits: -log2 of its probability."""
        return -math.log2(max(self.probability, 1e-12))


@torch.inference_mode()
def explain(loaded: Checkpoint, answer: Answer, k: int = 5) -> list[TokenView]:
    """For each token of an answer, including the stop token, its probability and the k most likely tokens.

    These are the model's own probabilities: temperature 1, no top-k or top-p. Raises UserError if another model wrote
    the answer.
    """
    if answer.checkpoint != loaded.meta["fingerprint"]:
        raise UserError(f"another model wrote this answer; switch to {answer.run} ({answer.stage}) to inspect it")
    tok, model = loaded.tokenizer, loaded.model
    prompt = questions.render_prompt(answer.conversation, tok)
    written = [*answer.ids, tok.end] if answer.ended == "end" else list(answer.ids)
    if not written:
        return []
    # The last token is predicted, not fed. Tokens that no longer fit into the context are cut from the left.
    fed = (prompt + written)[:-1][-model.config.block_size :]
    logits = model(torch.tensor([fed], device=next(model.parameters()).device))[0, -len(written) :]
    probs = torch.softmax(logits.double(), dim=-1).cpu()
    best = probs.topk(min(k, probs.size(1)))
    return [
        TokenView(
            visible(tok, token),
            probs[i, token].item(),
            tuple(
                (visible(tok, int(other)), p.item()) for other, p in zip(best.indices[i], best.values[i], strict=True)
            ),
        )
        for i, token in enumerate(written)
    ]


def visible(tok: Tokenizer, token: int) -> str:
    r"""The text of a token id; bytes that form no whole character are shown as \xNN."""
    return tok.token_bytes(token).decode("utf-8", errors="backslashreplace")
