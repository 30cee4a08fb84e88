"""A chat session with a trained model, independent of any user interface; the terminal and the playground display it."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import files, paths
from ..checkpoint import Checkpoint
from ..config import UserError, whole_text
from ..data import questions
from ..data.conversation import Conversation, Turn
from . import feedback
from .reply import Answer, Settings, TokenView, explain, fit, run_of, write

__all__ = ["Answer", "ChatSession", "Exchange", "Settings"]

# The temperature for a second answer to the same question where the settings say 0, which gives the same answer again
VARIED = 0.8
TRANSCRIPT = 1  # version of the file format


@dataclass
class Exchange:
    """A question with its answers: several after `regenerate` or `compare`. `chosen` is the index of the one in use."""

    question: str
    passage: str
    answers: list[Answer]
    chosen: int = 0
    comparison: str = ""  # id of the comparison of the first two answers, if they are compared

    @property
    def answer(self) -> Answer:
        """The answer in use: the one that is part of the conversation."""
        return self.answers[self.chosen]


class ChatSession:
    """One conversation, with one loaded model at a time, which writes one answer at a time.

    `notice` receives a sentence whenever the user should know something, such as what no longer fits the context or
    feedback that could not be saved. `on_change` is called after every change worth saving: an answer or a choice.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        settings: Settings | None = None,
        *,
        notice: Callable[[str], None] = print,
        on_change: Callable[[], None] = lambda: None,
    ):
        self.loaded = loaded
        self.settings = settings or Settings()
        self.notice, self.on_change = notice, on_change
        self.exchanges: list[Exchange] = []
        self._lock = threading.Lock()
        # One stop event per answer, so that a late stop does not end the next answer. Two of them, so that a question
        # refused while an answer is being written does not replace the event of that answer.
        self._running: threading.Event | None = None  # of the answer being written
        self._waiting = threading.Event()  # of the question asked last, for a stop before its first piece
        self._asked = 0
        self._stores: dict[str, feedback.Store] = {}

    @property
    def run(self) -> str:
        """The run of the loaded model."""
        return run_of(self.loaded)

    @property
    def stage(self) -> str:
        """The stage of the loaded model."""
        return self.loaded.meta["stage"]

    @property
    def history(self) -> tuple[Turn, ...]:
        """All turns so far, with the answer in use for each question."""
        return self._turns(self.exchanges)

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._lock.locked()

    def budget(self) -> tuple[int, int]:
        """(tokens of the context taken before the next question, size of the context)."""
        limit = self.loaded.model.config.block_size
        turns = self._remembered(self.exchanges)
        if not turns:
            return 0, limit
        conversation = Conversation(turns, self.exchanges[-1].passage.strip())
        return min(limit, len(questions.render(conversation, self.loaded.tokenizer))), limit

    def use(self, loaded: Checkpoint) -> None:
        """Continue the conversation with another model. Raises UserError while an answer is being written."""
        with self._model():
            self.loaded = loaded

    def new(self) -> None:
        """Start a new conversation. Raises UserError while an answer is being written."""
        with self._model():
            self.exchanges = []

    def why(self, answer: Answer, k: int = 5) -> list[TokenView]:
        """Each token of an answer with its probability and the `k` most likely alternatives.

        Raises UserError while an answer is being written, or if another model wrote this one.
        """
        with self._model():
            return explain(self.loaded, answer, k)

    def stop(self) -> None:
        """End the answer being written, within one token; callable from any thread.

        If none is being written, the one requested last will end after its first token.
        """
        (self._running or self._waiting).set()

    # answers

    def reply(self, text: str, passage: str = "") -> Iterator[str]:
        """Yield the answer to `text` in pieces as it is generated.

        Raises UserError at once for an empty text, and at the first piece if the model is busy. The exchange joins the
        history when the iterator ends or is closed, even if the answer was stopped, but not after an error.
        """
        return self._stream_one(_asked(text, passage), self.exchanges, self.settings)

    def regenerate(self) -> Iterator[str]:
        """Yield another answer to the last question, with a new seed; it becomes the one in use, and the others are kept.

        Raises UserError if nothing was asked yet.
        """
        if not self.exchanges:
            raise UserError("there is nothing to answer again yet; ask something first")
        return self._stream_one(self.exchanges[-1], self.exchanges[:-1], self._nonzero_temperature())

    def show_other(self, exchange: Exchange) -> None:
        """Switch to the next of several answers to a question."""
        with self._model():
            exchange.chosen = (exchange.chosen + 1) % len(exchange.answers)
        self.on_change()

    def stream_compare(self, text: str, passage: str = "") -> Iterator[tuple[int, str]]:
        """Yield (0 or 1, piece) of two answers with different seeds, generated in turns; `choose` then picks the better."""
        exchange = _asked(text, passage, comparison=feedback.new_id())
        conversation = self._fit(exchange, self.exchanges)
        return self._exclusively(
            functools.partial(self._stream_both, conversation, self._nonzero_temperature(), exchange)
        )

    def compare(self, text: str, passage: str = "") -> tuple[Answer, Answer]:
        """Two complete answers with different seeds."""
        for _ in self.stream_compare(text, passage):
            pass
        first, second = self.exchanges[-1].answers
        return first, second

    def _stream_one(self, exchange: Exchange, earlier: list[Exchange], settings: Settings) -> Iterator[str]:
        conversation = self._fit(exchange, earlier)
        done = functools.partial(self._finish, exchange)
        return self._exclusively(lambda stop: write(self.loaded, conversation, settings, self._next_seed(), stop, done))

    def _stream_both(
        self, conversation: Conversation, settings: Settings, exchange: Exchange, stop: threading.Event
    ) -> Iterator[tuple[int, str]]:
        answers: dict[int, Answer] = {}
        writers = {}
        for i in range(2):
            done = functools.partial(answers.__setitem__, i)
            writers[i] = write(self.loaded, conversation, settings, self._next_seed(), stop, done)
        try:
            while writers:
                for i in tuple(writers):
                    piece = next(writers[i], None)
                    if piece is None:
                        del writers[i]
                    else:
                        yield i, piece
        finally:
            for writer in writers.values():
                writer.close()
            if len(answers) == 2:  # not after an error, nor when closed before both had begun
                self._finish(exchange, answers[0], answers[1])
        if answers[0].text == answers[1].text:
            self.notice("Both answers are the same; a higher temperature makes them differ.")

    def _finish(self, exchange: Exchange, *answers: Answer) -> None:
        exchange.answers += answers
        exchange.chosen = len(exchange.answers) - len(answers)
        if not any(exchange is known for known in self.exchanges):
            self.exchanges.append(exchange)
        self.on_change()

    @contextmanager
    def _model(self) -> Iterator[None]:
        # A plain Lock, not an RLock, since any thread may close an iterator; non-blocking, since its holder may be
        # waiting for this thread.
        if not self._lock.acquire(blocking=False):
            raise UserError("the model is still answering; stop it or wait until it has finished")
        try:
            yield
        finally:
            self._lock.release()

    def _exclusively(self, begin: Callable[[threading.Event], Iterator[Any]]) -> Iterator[Any]:
        stop = self._waiting = threading.Event()

        def pieces() -> Iterator[Any]:
            with self._model():
                self._running = stop
                try:
                    yield from begin(stop)
                finally:
                    self._running = None

        return pieces()

    def _next_seed(self) -> int:
        self._asked += 1
        return self.settings.seed + self._asked - 1

    def _nonzero_temperature(self) -> Settings:
        if self.settings.temperature > 0:
            return self.settings
        self.notice(f"At temperature 0 there is only one answer; this is sampled at {VARIED} instead.")
        return replace(self.settings, temperature=VARIED)

    def _turns(self, exchanges: list[Exchange]) -> tuple[Turn, ...]:
        answered = [exchange for exchange in exchanges if exchange.answer.text]
        return tuple(
            turn
            for exchange in answered
            for turn in (Turn("user", exchange.question), Turn("assistant", exchange.answer.text))
        )

    def _remembered(self, earlier: list[Exchange]) -> tuple[Turn, ...]:
        turns = self._turns(earlier)
        return turns[max(0, len(turns) - 2 * self.settings.remember) :]

    def _fit(self, exchange: Exchange, earlier: list[Exchange]) -> Conversation:
        turns = self._remembered(earlier)
        conversation, notices = fit(self.loaded, exchange.question, exchange.passage, turns, self.settings)
        for notice in notices:
            self.notice(notice)
        return conversation

    # feedback

    def store(self, run: str | None = None) -> feedback.Store:
        """The feedback store of a run, by default that of the loaded model."""
        run = run or self.run
        return self._stores.setdefault(run, feedback.Store(paths.feedback_path(run)))

    def thumb(self, answer: Answer, value: int) -> None:
        """Rate an answer as helpful (+1) or not (-1)."""
        self._record("thumb", answer.id, [answer], value=value)

    def rate(self, answer: Answer, value: int) -> None:
        """Rate an answer from 1 (bad) to 5 (good). Raises UserError for other values; earlier feedback is kept."""
        self._record("rating", answer.id, [answer], value=value)

    def comment(self, answer: Answer, text: str) -> None:
        """Record a comment on an answer."""
        self._record("comment", answer.id, [answer], text=text)

    def correct(self, answer: Answer, text: str) -> None:
        """Record a better answer."""
        self._record("correction", answer.id, [answer], text=text)

    def retract(self, answer: Answer, kind: str = "") -> None:
        """Withdraw the feedback of one kind on an answer, or all of it."""
        self._record("retract", answer.id, [answer], text=kind)

    def choose(self, exchange: Exchange, index: int) -> None:
        """Record which of two compared answers is better (0 or 1); the conversation continues with it.

        Raises UserError if the exchange is not a comparison.
        """
        if not exchange.comparison:
            raise UserError("there is nothing to choose between; compare two answers first")
        self._record("choice", exchange.comparison, exchange.answers[:2], value=index)
        exchange.chosen = index
        self.on_change()

    def _record(self, kind: str, about: str, answers: list[Answer], value: int | None = None, text: str = "") -> None:
        first = answers[0]
        record = feedback.Record(
            kind=kind,
            about=about,
            run=first.run,
            stage=first.stage,
            conversation=first.conversation,
            responses=tuple(answer.text for answer in answers),
            value=value,
            text=whole_text(text),
            sampling={**first.settings.sampling()},
            seeds=tuple(answer.seed for answer in answers),
            checkpoint=first.checkpoint,
            tokenizer=first.tokenizer,
        )
        if problem := self.store(first.run).add(record):
            self.notice(problem)

    # transcripts

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, to be continued later with `load`."""
        exchanges = [asdict(exchange) for exchange in self.exchanges]
        with files.atomic_write(path, "w") as file:
            json.dump({"transcript": TRANSCRIPT, "exchanges": exchanges}, file)

    def load(self, path: Path) -> None:
        """Continue a saved conversation. Raises UserError if the file is missing or not a transcript."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["transcript"] != TRANSCRIPT:
                raise ValueError("written by another version")
            exchanges = [_exchange(values) for values in content["exchanges"]]
        except OSError as error:
            raise UserError(f"cannot read a chat from {path} ({error.strerror}); start a new one") from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged or not a saved chat ({error}); start a new one") from error
        with self._model():
            self.exchanges = exchanges


def _asked(question: str, passage: str, comparison: str = "") -> Exchange:
    """A new exchange without answers, its texts valid Unicode so that they can be saved."""
    return Exchange(whole_text(question).strip(), whole_text(passage), [], comparison=comparison)


def _exchange(values: dict[str, Any]) -> Exchange:
    texts = {name: whole_text(values[name]) for name in ("question", "passage")}
    exchange = Exchange(**{**values, **texts, "answers": [_answer(answer) for answer in values["answers"]]})
    _ = exchange.answer  # raises IndexError if there is none
    return exchange


def _answer(values: dict[str, Any]) -> Answer:
    stored = values["conversation"]
    turns = tuple(Turn(turn["role"], whole_text(turn["text"])) for turn in stored["turns"])
    conversation = Conversation(turns, whole_text(stored["context"]))
    settings, ids = Settings(**values["settings"]), tuple(map(int, values["ids"]))
    made = {"conversation": conversation, "text": whole_text(values["text"]), "settings": settings, "ids": ids}
    return Answer(**{**values, **made})


def transcripts(run: str) -> list[Path]:
    """The saved chats of a run, newest first."""
    return sorted((paths.run_dir(run) / "chats").glob("*.json"), reverse=True)


def transcript_path(run: str) -> Path:
    """A path for a new transcript of a run; the names sort by time."""
    stamp = feedback.now().replace(":", "").replace("-", "").replace(".", "")
    return paths.run_dir(run) / "chats" / f"{stamp}.json"
