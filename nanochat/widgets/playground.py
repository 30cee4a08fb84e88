"""The playground: a chat with a trained model in a notebook, with feedback on every answer.

It is a view of a `ChatSession`. Answers are generated in a worker thread, so that the buttons keep working.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
from IPython.display import display

from .. import checkpoint, devices, loading
from ..chat import feedback, session
from ..chat.session import ChatSession, Settings
from ..config import UserError
from . import fallback, markup
from .controls import button, row, show, toggle
from .exchange import ExchangeView
from .feedback_tab import OpinionsView
from .labels import EXAMPLES, chat_name, describe, sample_exchange, unavailable

_CHATS = 10  # the most earlier chats to choose from
_FRAME = 1 / 15  # seconds between updates of an answer: more frequent ones would only keep the browser busy


class Playground:
    """The widget and its parts; the function `playground` displays one. The methods do the same as the buttons."""

    def __init__(self, run: str | None = None, stage: str | None = None, device: str = "auto"):
        self.device = device
        self.busy = False
        self.worker: threading.Thread | None = None
        self.views: list[ExchangeView] = []
        self.saved_as: Path | None = None
        notices: list[str] = []
        loaded = loading.load(run, stage, device, notices.append)
        self.session = ChatSession(loaded, notice=self.say, on_change=self._keep)
        self._build()
        self._refresh()
        self.say(" ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in notices))

    # building

    def _build(self) -> None:
        self.model = w.Dropdown(description="Model", layout=w.Layout(width="min(100%, 26em)"))
        self.model.options = [(f"{run} · {stage}", path) for run, stage, path in checkpoint.available()]
        self.model.value = self.session.loaded.path
        self.model.observe(lambda change: self.guard(self._choose_model), names="value")
        self.about = w.HTML(markup.dim(describe(self.session.loaded)))
        self.earlier = w.Dropdown(description="Chats", layout=w.Layout(width="min(98%, 26em)"))
        self.earlier.observe(lambda change: self.guard(self._choose_chat), names="value")
        self.examples = row(
            *(button(text, partial(self._example, text, passage), self.guard) for text, passage in EXAMPLES)
        )
        self.exchanges = w.VBox()
        self.log = w.VBox()
        self._to_the_end()
        self.status = w.HTML()
        # The text reaches the kernel only on Enter or when the field loses focus. Keystrokes sent one by one would queue up
        # behind a busy kernel, and a click on Send could overtake the last ones.
        self.message = w.Text(
            description="Message",
            placeholder="ask something, then press Enter",
            continuous_update=False,
            layout=w.Layout(flex="1 1 16em"),
        )
        # Like on_submit, which is deprecated: Text sends this event on each Enter, even if the text has not changed.
        self.message.on_msg(self._entered)
        self.send = button("Send", self.ask, self.guard)
        self.send.button_style = "primary"
        self.stop = button("Stop", self.session.stop, self.guard, "End the current answer")
        self.compare = button(
            "Compare", self.ask_both, self.guard, "Two answers to this message: choose the better one"
        )
        self.regenerate = button("Regenerate", self.again, self.guard, "Another answer to the last question")
        self.new_chat = button("New chat", self.new, self.guard)
        self.budget = w.HTML()
        self.passage = w.Textarea(
            description="Passage",
            placeholder="a text to ask about (optional): the model then answers from it",
            rows=3,
            layout=w.Layout(width="99%"),
        )
        self.settings = self._settings()
        # Not an Accordion, whose titles cannot be reached by keyboard.
        panels = {"Passage": self.passage, "Settings": self.settings}
        self.openers = row(*(button(name, partial(toggle, panel), self.guard) for name, panel in panels.items()))
        for panel in panels.values():
            show(panel, False)
        self.feedback = OpinionsView(self)
        talk = w.VBox(
            [
                row(self.model, self.about), self.earlier, self.log, self.examples,
                row(self.message, self.send, self.stop),
                row(self.compare, self.regenerate, self.new_chat, self.openers, self.budget),
                self.status, self.passage, self.settings,
            ]
        )  # fmt: skip
        tabs = w.Tab([talk, self.feedback.box], titles=("Chat", "Feedback"))
        tabs.observe(lambda change: self.guard(self.feedback.refresh), names="selected_index")
        self.root = w.VBox([w.HTML(markup.STYLE, layout=w.Layout(display="none")), tabs])
        self.root.add_class("nc")
        self._list_chats()

    def _settings(self) -> w.Widget:
        style = {"description_width": "11em"}
        common = {"style": style, "layout": w.Layout(width="auto")}
        default = self.session.settings
        # Number fields, not sliders, as screen readers do not find the descriptions of sliders.
        self.temperature = w.BoundedFloatText(
            default.temperature, min=0, max=5, step=0.1, description="Temperature", **common
        )
        self.top_k = w.BoundedIntText(0, min=0, max=10**6, description="Top-k (0: all)", **common)
        self.top_p = w.BoundedFloatText(1.0, min=0.01, max=1, step=0.05, description="Top-p (1: all)", **common)
        self.length = w.BoundedIntText(default.max_new_tokens, min=1, max=4096, description="Longest answer", **common)
        self.seed = w.BoundedIntText(default.seed, min=0, max=2**31, description="Seed", **common)
        self.remember = w.BoundedIntText(default.remember, min=0, max=1000, description="Earlier questions", **common)
        fields = [self.temperature, self.top_k, self.top_p, self.length, self.seed, self.remember]
        for field in fields:
            field.observe(lambda change: self.guard(self._apply_settings), names="value")
        hint = "Temperature 0 always takes the most likely token; above 0 answers vary with the seed. "
        hint += "The fewer earlier questions a small model sees, the less it mixes up."
        box = w.VBox([*fields, w.HTML(markup.dim(hint))])
        box.add_class("nc-settings")
        return box

    def _apply_settings(self) -> None:
        self.session.settings = Settings(
            temperature=round(self.temperature.value, 2),
            top_k=self.top_k.value or None,
            top_p=round(self.top_p.value, 2) if self.top_p.value < 1 else None,
            max_new_tokens=self.length.value,
            seed=self.seed.value,
            remember=self.remember.value,
        )

    # messages

    def say(self, sentence: str, error: bool = False) -> None:
        """Show a sentence below the chat."""
        style = "nc-error" if error else "nc-dim"
        self.status.value = f'<div class="{style}" role="status">{markup.escape(sentence)}</div>' if sentence else ""

    def guard(self, action: Callable[[], object]) -> None:
        """Run the action of a click and show any error: Jupyter discards exceptions of callbacks silently."""
        self.say("")
        try:
            action()
        except UserError as error:
            self.say(f"{str(error)[:1].upper()}{str(error)[1:]}.", error=True)
        except Exception as error:
            self.say(f"That went wrong ({type(error).__name__}: {error}). You can continue the chat.", error=True)

    def _refresh(self) -> None:
        """Update which buttons are enabled, and the display of the context's use."""
        for blocked in (self.send, self.compare, self.new_chat, self.model, self.earlier, *self.examples.children):
            blocked.disabled = self.busy
        self.regenerate.disabled = self.busy or not self.session.exchanges
        self.stop.disabled = not self.busy
        show(self.examples, not self.views)
        show(self.log, bool(self.views))
        used, limit = self.session.budget()
        self.budget.value = markup.meter(used, limit, f"Context: {used} of {limit} tokens")

    def opinions(self, run: str) -> dict[str, feedback.Opinion]:
        """The current feedback on the answers of a run, by answer id."""
        return {
            opinion.record.about: opinion for opinion in feedback.current(self.session.store(run).records(self.say))
        }

    # asking

    def _entered(self, _: w.Text, content: dict[str, Any], buffers: object) -> None:
        if content.get("event") != "submit":
            return
        # The text arrives just after this event; wait for it.
        try:
            asyncio.get_running_loop().call_later(0.1, self.guard, self.ask)
        except RuntimeError:  # no event loop: not running in a kernel
            self.guard(self.ask)

    def _example(self, question: str, passage: str) -> None:
        self.passage.value = passage
        self._start(question, comparing=False)

    def ask(self) -> None:
        """Send the message."""
        self._start(self.message.value, comparing=False)

    def ask_both(self) -> None:
        """Send the message to get two answers to choose from."""
        self._start(self.message.value, comparing=True)

    def again(self) -> None:
        """Generate another answer to the last question."""
        self._check_idle()
        view, pieces = self.views[-1], self.session.regenerate()
        view.begin_again()
        self._work(((0, piece) for piece in pieces), view)

    def _start(self, text: str, comparing: bool) -> None:
        self._check_idle()
        passage = self.passage.value
        if comparing:
            pieces = self.session.stream_compare(text, passage)
        else:
            pieces = ((0, piece) for piece in self.session.reply(text, passage))
        view = ExchangeView(self, text.strip(), passage, comparing)
        self.views.append(view)
        self._show_views()
        self._to_the_end()
        self.message.value = ""
        self._work(pieces, view)
        self.message.focus()

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError("the model is still answering; press Stop first")

    def _to_the_end(self) -> None:
        """Scroll to the newest exchange, without a script.

        A new box in the direction column-reverse starts scrolled to its end, and stays there while text is added, unless
        the user scrolls up.
        """
        layout = w.Layout(flex_flow="column-reverse", overflow="auto", max_height="480px")
        scrolled = w.Box([self.exchanges], layout=layout)
        scrolled.add_class("nc-log")
        before, self.log.children = self.log.children, (scrolled,)
        for box in before:
            box.close()

    def _show_views(self) -> None:
        self.exchanges.children = tuple(view.box for view in self.views)

    def _work(self, pieces: Iterator[tuple[int, str]], view: ExchangeView) -> None:
        self.busy = True
        self._refresh()
        self.worker = threading.Thread(target=self._stream, args=(pieces, view), daemon=True)
        self.worker.start()

    def _stream(self, pieces: Iterator[tuple[int, str]], view: ExchangeView) -> None:
        """Show the answer while it is generated, then its buttons; runs in the worker thread."""
        texts, shown, n_before = [""] * len(view.answers), 0.0, len(self.session.exchanges)
        failure = None
        try:
            for i, piece in pieces:
                texts[i] += piece
                if time.monotonic() - shown > _FRAME:
                    for answer, text in zip(view.answers, texts, strict=True):
                        answer.write(text)
                    shown = time.monotonic()
        except Exception as error:
            failure = error
        finally:
            self.busy = False
        self._finish(view, n_before, failure)

    def _finish(self, view: ExchangeView, n_before: int, failure: Exception | None) -> None:
        exchange = view.exchange or next(iter(self.session.exchanges[n_before:]), None)
        if exchange is not None:
            view.finish(exchange)
        else:  # no answer: put the question back into the message field
            self.views.remove(view)
            self._show_views()
            self.message.value = self.message.value or view.text
        self._refresh()
        if failure is not None:
            name = type(failure).__name__
            self.say(f"The model could not answer ({name}: {failure}). You can continue the chat.", error=True)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the current answer is finished."""
        if self.worker is not None:
            self.worker.join(timeout)

    # chats and models

    def new(self) -> None:
        """Start a new chat; the last one stays available among the earlier chats."""
        self.session.new()
        self.saved_as = None
        self._show_chat()
        self.message.focus()

    def _keep(self) -> None:
        """Save the chat; called after every change, so that it survives a restart of the kernel."""
        if self.saved_as is None:
            self.saved_as = session.transcript_path(self.session.run)
        try:
            self.session.save(self.saved_as)
        except OSError as error:
            self.say(f"This chat could not be saved ({error.strerror or error}); you can continue it.", error=True)

    def _list_chats(self) -> None:
        found = [(chat_name(path), path) for path in session.transcripts(self.session.run)[:_CHATS]]
        self.earlier.options = [("this chat", ""), *found]  # the value None would show no selection
        self.earlier.value = self.saved_as if self.saved_as in dict(found).values() else ""
        show(self.earlier, bool(found))

    def _choose_chat(self) -> None:
        path = self.earlier.value
        if path in ("", self.saved_as):
            return
        self.session.load(path)
        self.saved_as = path
        self._show_chat()

    def _show_chat(self) -> None:
        self.views = []
        for exchange in self.session.exchanges:
            comparing = bool(exchange.comparison) and len(exchange.answers) == 2
            view = ExchangeView(self, exchange.question, exchange.passage, comparing)
            view.finish(exchange)
            self.views.append(view)
        self._show_views()
        self._list_chats()
        self._refresh()

    def _choose_model(self) -> None:
        path = self.model.value
        if path == self.session.loaded.path:
            return
        self.say("Loading …")
        try:
            self.session.use(checkpoint.load(path, devices.pick_device(self.device)))
        finally:
            self.model.value = self.session.loaded.path
        self.about.value = markup.dim(describe(self.session.loaded))
        self._list_chats()
        self._refresh()
        self.say(checkpoint.orphaned(path, self.session.loaded.meta))


def playground(run: str | None = None, stage: str | None = None, device: str = "auto") -> None:
    """Display a chat with the model of `run` and `stage` (default: the newest), or what to do if there is none.

    Where the widget cannot run, as in a saved notebook, an example exchange is shown in its place.
    """
    try:
        app = Playground(run, stage, device)
    except UserError as error:
        display(unavailable(error), raw=True)
    else:
        fallback.show(app.root, *sample_exchange(app.session))
