"""The chat in the terminal: type a question, read the answer; commands begin with a slash."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TextIO

from .. import checkpoint, loading
from ..config import UserError, unknown
from .session import Answer, ChatSession

HELP = {
    "/help": "show this list",
    "/model [RUN]": "list the models, or switch to another run and keep the conversation",
    "/stage STAGE": "switch to another stage of this run: base_model, fine_tuned or aligned",
    "/temp NUMBER": "set the temperature: 0 always takes the most likely token, 1 samples the model's own distribution",
    "/passage [TEXT]": "a text for your questions to be about; without TEXT, remove it",
    "/rate 1-5": "rate the last answer; + and - are thumbs up and down",
    "/comment TEXT": "comment on the last answer",
    "/correct TEXT": "write a better version of the last answer",
    "/again": "get another answer to the last question",
    "/compare QUESTION": "get two answers and choose the better one",
    "/new": "start a new conversation",
    "/quit": "leave, as does Ctrl-D",
}


def run_terminal(
    open_session: Callable[[str | None, str | None], ChatSession],
    keyboard: TextIO | None = None,
    screen: TextIO | None = None,
) -> int:
    """Chat until /quit or the end of the input; returns exit status 0.

    `open_session(run, stage)` creates a session; None means the newest. A UserError from the first call is raised; later
    ones are shown in the chat. Ctrl-C stops an answer, not the program.
    """
    terminal = _Terminal(open_session, keyboard or sys.stdin, screen or sys.stdout)
    return terminal.loop()


@contextlib.contextmanager
def _ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Make Ctrl-C call `action` instead of raising KeyboardInterrupt inside the model."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Terminal:
    def __init__(
        self, open_session: Callable[[str | None, str | None], ChatSession], keyboard: TextIO, screen: TextIO
    ) -> None:
        self.open_session, self.keyboard, self.screen = open_session, keyboard, screen
        if isinstance(keyboard, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):  # it has been read from already
                keyboard.reconfigure(errors="replace")  # bytes of another encoding become U+FFFD instead of an error
        self.passage = ""
        self.session = open_session(None, None)
        self.session.notice = lambda sentence: self.say(f"({sentence})")

    def say(self, text: str, end: str = "\n") -> None:
        """Print text, without control characters and with "?" for what the terminal cannot show."""
        encoding = getattr(self.screen, "encoding", None) or "utf-8"
        # a model must not move the cursor or ring the bell
        shown = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
        self.screen.write(shown.encode(encoding, "replace").decode(encoding) + end)
        self.screen.flush()

    def read(self, prompt: str) -> str:
        """Read one line. Raises EOFError at the end of the input."""
        if self.keyboard is sys.stdin and self.keyboard.isatty() and self.screen is sys.stdout:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (importing it gives `input` line editing and history)
            return input(prompt)
        self.say(prompt, end="")
        line = self.keyboard.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def loop(self) -> int:
        self.greet()
        while True:
            try:
                self.attempt(self.read("\nyou: ").strip())
            except KeyboardInterrupt:
                self.say("\n(nothing to stop; /quit leaves)")
            except EOFError:
                self.say("Goodbye, and thank you for the conversation.")
                return 0

    def attempt(self, line: str) -> None:
        """Carry out one line, or show why it failed; the chat continues either way."""
        try:
            if line:
                self.obey(line)
        except EOFError:
            raise
        except UserError as error:
            self.say(f"({error})")
        except Exception as error:  # such as out of memory
            self.say(f"\n(sorry, that went wrong: {type(error).__name__}: {error})")

    def greet(self) -> None:
        meta, model = self.session.loaded.meta, self.session.loaded.model
        n_params = model.n_params()
        size = f"{n_params / 1e6:.1f} M parameters" if n_params >= 1e6 else f"{n_params:,} parameters"
        self.say(f"{self.session.run} ({self.session.stage}), {size}, context of {model.config.block_size} tokens.")
        if meta["stage"] == "base_model":
            self.say("This is a base model: it continues texts but has not been trained to answer yet.")
        self.say("Ask something. /help lists the commands, Ctrl-C stops an answer.")

    def obey(self, line: str) -> None:
        """Carry out one line. Raises UserError for an unknown command and EOFError for /quit."""
        if not line.startswith("/"):
            self.stream(self.session.reply(line, self.passage))
            return
        command, *words = line.split(maxsplit=1)
        entries = {entry.split()[0]: entry for entry in HELP}
        if command not in entries:
            raise unknown("command", command, entries)
        if words and entries[command] == command:
            raise UserError(f"{command} takes no words after it; type {command} alone")
        getattr(self, f"do_{command[1:]}")("".join(words))

    def stream(self, pieces: Iterator[str]) -> None:
        self.say("bot: ", end="")
        with _ctrl_c(self.session.stop):
            for piece in pieces:
                self.say(piece, end="")
        answer = self.session.exchanges[-1].answer
        self.say(
            {"stopped": " (stopped)", "limit": " (…)", "end": ""}[answer.ended] or ("" if answer.text else "(nothing)")
        )

    def last(self) -> Answer:
        if not self.session.exchanges:
            raise UserError("there is no answer yet; ask something first")
        return self.session.exchanges[-1].answer

    def do_quit(self, rest: str) -> None:
        raise EOFError

    def do_help(self, rest: str) -> None:
        for entry, text in HELP.items():
            self.say(f"  {entry:18} {text}")

    def do_model(self, rest: str) -> None:
        if rest:
            self.change(rest, None)
            return
        for run, stage, _ in checkpoint.available():
            here = "*" if (run, stage) == (self.session.run, self.session.stage) else " "
            self.say(f" {here} {run} ({stage})")

    def do_stage(self, rest: str) -> None:
        if not rest:
            raise UserError("which stage? /stage base_model, /stage fine_tuned or /stage aligned")
        self.change(self.session.run, rest)

    def change(self, run: str, stage: str | None) -> None:
        self.session.use(self.open_session(run, stage).loaded)
        self.greet()

    def do_temp(self, rest: str) -> None:
        if rest:
            try:
                value = float(rest.replace(",", "."))
            except ValueError:
                raise UserError(f"the temperature must be a number such as 0.8, not {rest!r}") from None
            self.session.settings = replace(self.session.settings, temperature=value)
        self.say(f"(temperature {self.session.settings.temperature:g})")

    def do_passage(self, rest: str) -> None:
        self.passage = rest
        self.say("(your questions are now about this passage)" if rest else "(no passage)")

    def do_rate(self, rest: str) -> None:
        answer = self.last()
        if rest in ("+", "-"):
            self.session.thumb(answer, 1 if rest == "+" else -1)
        else:
            # Convert single digits only: int() raises ValueError for thousands of digits.
            self.session.rate(answer, int(rest) if len(rest) == 1 and rest.isdecimal() else rest)  # type: ignore[arg-type]
        self.say("(thank you)")

    def do_comment(self, rest: str) -> None:
        self.session.comment(self.last(), rest)
        self.say("(thank you)")

    def do_correct(self, rest: str) -> None:
        self.session.correct(self.last(), rest)
        self.say("(thank you)")

    def do_again(self, rest: str) -> None:
        self.stream(self.session.regenerate())

    def do_new(self, rest: str) -> None:
        self.session.new()
        self.say("(a new conversation)")

    def do_compare(self, rest: str) -> None:
        if not rest:
            raise UserError("compare answers to what? type /compare QUESTION")
        with _ctrl_c(self.session.stop):
            self.session.compare(rest, self.passage)
        exchange = self.session.exchanges[-1]
        for name, answer in zip("AB", exchange.answers, strict=True):
            self.say(f"{name}: {answer.text or '(nothing)'}")
        if exchange.answers[0].text == exchange.answers[1].text:
            return
        while choice := self.read("Which is better, A or B? (Enter: neither) ").strip().upper():
            if choice in ("A", "B"):
                self.session.choose(exchange, "AB".index(choice))
                self.say("(thank you)")
                return


def chat(run: str | None = None, stage: str | None = None) -> None:
    """Chat in the terminal with the model of a run and stage. Raises UserError if there is no such model."""
    first = [(run, stage)]

    def open_session(run: str | None, stage: str | None) -> ChatSession:
        return ChatSession(loading.load(*(first.pop() if first else (run, stage))))

    run_terminal(open_session)
