"""The chat in a terminal: a line in, an answer out, and commands that begin with a slash."""

from __future__ import annotations

import builtins
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
    "/help": "this list",
    "/model [RUN]": "the models there are, or talk with another one; what was said is kept",
    "/stage STAGE": "another stage of this run: base_model, fine_tuned or aligned",
    "/temp NUMBER": "the temperature: 0 always takes the most likely word, 1 is as varied as the training text",
    "/passage [TEXT]": "a text that your questions are about; alone, it is put away",
    "/rate 1-5": "rate the last answer; + and - are thumbs up and down",
    "/comment TEXT": "say something about the last answer",
    "/correct TEXT": "write the answer that you would have liked",
    "/again": "another answer to the last question",
    "/compare QUESTION": "two answers, of which you choose the better one",
    "/new": "begin a new conversation",
    "/quit": "leave; Ctrl-D does the same",
}


def run_terminal(
    open_session: Callable[[str | None, str | None], ChatSession],
    input: TextIO | None = None,
    output: TextIO | None = None,
) -> int:
    """Chat until /quit or the end of the input; returns the exit status 0.

    `open_session(run, stage)` makes a session; None means the newest. Its UserErrors leave this function at the start
    and are shown later on. Ctrl-C ends an answer, not the program.
    """
    terminal = _Terminal(open_session, input or sys.stdin, output or sys.stdout)
    return terminal.loop()


@contextlib.contextmanager
def _ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C do `action` instead of raising KeyboardInterrupt in the middle of the model."""
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
        self, open_session: Callable[[str | None, str | None], ChatSession], input: TextIO, output: TextIO
    ) -> None:
        self.open_session, self.input, self.output = open_session, input, output
        if isinstance(input, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):  # it was read from before
                input.reconfigure(errors="replace")  # letters of another encoding become U+FFFD, not an error
        self.passage = ""
        self.session = open_session(None, None)
        self.session.notice = lambda sentence: self.say(f"({sentence})")

    def say(self, text: str, end: str = "\n") -> None:
        encoding = getattr(self.output, "encoding", None) or "utf-8"
        # No model may move the cursor about or ring the bell; what a terminal cannot show becomes "?".
        shown = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
        self.output.write(shown.encode(encoding, "replace").decode(encoding) + end)
        self.output.flush()

    def read(self, prompt: str) -> str:
        """One line. Raises EOFError at the end of the input."""
        if self.input is sys.stdin and self.input.isatty() and self.output is sys.stdout:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (its import gives `input` line editing and a history)
            return builtins.input(prompt)
        self.say(prompt, end="")
        line = self.input.readline()
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
        """Do what one line says, or say why not: whatever goes wrong with it, the chat goes on."""
        try:
            if line:
                self.obey(line)
        except EOFError:
            raise
        except UserError as error:
            self.say(f"({error})")
        except Exception as error:  # out of memory and the like
            self.say(f"\n(sorry, that went wrong: {type(error).__name__}: {error})")

    def greet(self) -> None:
        meta, model = self.session.loaded.meta, self.session.loaded.model
        n_params = model.n_params()
        size = f"{n_params / 1e6:.1f} M parameters" if n_params >= 1e6 else f"{n_params:,} parameters"
        self.say(f"{self.session.run} ({self.session.stage}), {size}, context of {model.config.block_size} tokens.")
        if meta["stage"] == "base_model":
            self.say("This is a base model: it continues texts, and has not been taught to answer yet.")
        self.say("Ask something. /help lists the commands, Ctrl-C stops an answer.")

    def obey(self, line: str) -> None:
        """Do what one line says. Raises UserError for a command that does not exist, and EOFError for /quit."""
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
            # Only one digit becomes a number: int() raises for thousands of them.
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
            raise UserError("what shall both answer? /compare QUESTION")
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
    """The terminal chat of the command line. Raises UserError if there is no such model."""
    first = [(run, stage)]

    def open_session(run: str | None, stage: str | None) -> ChatSession:
        return ChatSession(loading.load(*(first.pop() if first else (run, stage))))

    run_terminal(open_session)
