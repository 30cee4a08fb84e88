"""A question and its answers in the playground, with the buttons for feedback and for looking inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as w

from ..chat.feedback import Opinion
from ..chat.reply import TokenView
from ..chat.session import Answer, Exchange
from . import markup
from .controls import App, button, row, show, toggle
from .tokens import visible

ENDED = {"end": "", "limit": " · cut off at the limit", "stopped": " · stopped"}


class AnswerView:
    """The view of an answer. It shows the answer while it is generated; `bind` adds the buttons."""

    def __init__(self, app: App, name: str = "Model"):
        self.app, self.name = app, name
        self.answer: Answer | None = None
        self.thumb: int | None = None
        self.bubble = w.HTML()
        self.about = w.HTML()
        self.helpful = button("Helpful", lambda: self._thumb(1), app.guard)
        self.not_helpful = button("Not helpful", lambda: self._thumb(-1), app.guard)
        self.say_more = button("Comment", self._toggle_form, app.guard, "Say why, or write a better answer")
        self.why = button("Why this word?", self._toggle_why, app.guard, "What else the model considered")
        self.actions = row(self.helpful, self.not_helpful, self.say_more, self.why)
        self.form = self._form()
        self.inside = w.VBox()
        self.box = w.VBox([self.bubble, self.about, self.actions, self.form, self.inside])
        self.box.add_class("nc-answer")
        for hidden in (self.actions, self.form, self.inside):
            show(hidden, False)

    def write(self, text: str) -> None:
        """Show the answer so far."""
        self.bubble.value = markup.bubble("bot", text, writing=True, label=self.name)

    def bind(self, answer: Answer, opinion: Opinion | None = None, chosen: bool = False) -> None:
        """Show a finished answer with the earlier feedback on it."""
        self.answer = answer
        self.mark(chosen)
        speed = f" · {answer.tokens_per_s:.0f} tokens/s" if answer.seconds > 0 else ""
        sampled = f" · temperature {answer.settings.temperature:g}, seed {answer.seed}"
        n_tokens = f"{len(answer.ids)} token{'s' * (len(answer.ids) != 1)}"
        text = f"{self.name} · {n_tokens}{speed}{sampled if answer.settings.temperature else ''}{ENDED[answer.ended]}"
        self.about.value = markup.dim(text)
        if opinion is not None:
            self.comment.value, self.correction.value = opinion.comment, opinion.correction
            self._show_thumb(opinion.thumb)
        show(self.actions, True)

    def mark(self, chosen: bool) -> None:
        """Show whether the answer is the chosen one."""
        text = self.answer.text if self.answer else ""
        self.bubble.value = markup.bubble("bot", text, chosen=chosen, label=self.name)

    @property
    def _bound(self) -> Answer:
        assert self.answer is not None, "the buttons are hidden until there is an answer"
        return self.answer

    def _thumb(self, value: int) -> None:
        if self.thumb == value:  # pressed again: withdraw it
            self.app.session.retract(self._bound, "thumb")
            self._show_thumb(None)
        else:
            self.app.session.thumb(self._bound, value)
            self._show_thumb(value)

    def _show_thumb(self, value: int | None) -> None:
        self.thumb = value
        self.helpful.button_style = "success" if value == 1 else ""
        self.not_helpful.button_style = "warning" if value == -1 else ""

    def _form(self) -> w.VBox:
        wide = w.Layout(width="100%")
        style = {"description_width": "8em"}
        self.comment = w.Text(
            description="Comment", placeholder="what is good or bad about it", layout=wide, style=style
        )
        self.correction = w.Textarea(
            description="Better answer",
            placeholder="what you would have liked to read",
            rows=2,
            layout=wide,
            style=style,
        )
        self.save = button("Save", self._save, self.app.guard, "Save the comment and the better answer")
        self.saved = w.HTML()
        return w.VBox([self.comment, self.correction, row(self.save, self.saved)])

    def _toggle_form(self) -> None:
        if toggle(self.form):
            self.comment.focus()

    def _save(self) -> None:
        answer = self._bound
        opinion = self.app.opinions(answer.run).get(answer.id)
        before = {"comment": opinion.comment, "correction": opinion.correction} if opinion else {}
        changed = 0
        for kind, field in (("comment", self.comment), ("correction", self.correction)):
            text, old = field.value.strip(), before.get(kind, "")
            if text == old:
                continue
            if text:
                {"comment": self.app.session.comment, "correction": self.app.session.correct}[kind](answer, text)
            else:
                self.app.session.retract(answer, kind)
            changed += 1
        self.saved.value = markup.dim("Saved, thank you." if changed else "Nothing new to save.")

    def _toggle_why(self) -> None:
        if not self.inside.children:
            self.inside.children = (look_inside(self.app.session.why(self._bound), self.app.guard),)
        toggle(self.inside)


def _seen(text: str) -> str:
    """A token with visible spaces."""
    return visible(text.encode("utf-8", "replace"))


def look_inside(views: list[TokenView], guard: Callable[[Callable[[], object]], None]) -> w.Widget:
    """A widget with the tokens of an answer, colored by surprise, and the alternatives to one of them."""
    if not views:
        return w.HTML(markup.dim("There are no tokens to look at."))
    colored, candidates = w.HTML(), w.HTML()
    choices = [(f"{i}: {_seen(view.text)}", i - 1) for i, view in enumerate(views, 1)]
    place = w.Dropdown(options=choices, description="Token", layout=w.Layout(width="min(100%, 20em)"))
    texts = [view.text for view in views]
    strengths = [view.bits / markup.FULL_BITS for view in views]
    titles = [f"{_seen(view.text)}: {view.probability:.1%}, {view.bits:.1f} bits" for view in views]
    total = sum(view.bits for view in views)

    def draw(_: Any = None) -> None:
        view = views[place.value]
        colored.value = markup.tokens(texts, strengths, titles, place.value)
        rows = [(_seen(text), p, f"{p:.1%}") for text, p in view.top]
        if view.text not in [text for text, _ in view.top]:
            rows.append((_seen(view.text), view.probability, f"{view.probability:.1%}"))
        rows = [(name, p, f"{text} ← written" if name == _seen(view.text) else text) for name, p, text in rows]
        candidates.value = markup.bars(rows) + markup.dim(f"Surprise here: {view.bits:.2f} bits.")

    place.observe(lambda change: guard(draw), names="value")
    draw()
    explained = (
        f"The darker a token, the more it surprised the model itself: {total:.1f} bits for {len(views)} tokens. "
        "Choose one to see what else it considered, before temperature, top-k and top-p."
    )
    return w.VBox([w.HTML(markup.dim(explained)), colored, place, candidates])


class ExchangeView:
    """The view of a question and its answers."""

    def __init__(self, app: App, question: str, passage: str, comparing: bool = False):
        self.app, self.text, self.comparing = app, question, comparing
        self.exchange: Exchange | None = None
        passage = (
            f'<div class="nc-passage" dir="auto">{markup.escape(passage.strip())}</div>' if passage.strip() else ""
        )
        self.question = w.HTML(passage + markup.bubble("user", question))
        self.answers: list[AnswerView] = []
        self.other = button("Show other answer", self._other, app.guard)
        self.other.layout.align_self = "flex-start"
        self.choose: list[w.Button] = []
        self.chosen = w.HTML()
        self.box = w.VBox([self.question])
        self.begin()

    def begin(self) -> list[AnswerView]:
        """Add empty views for the answer (or two) to be generated next."""
        names = ("Answer A", "Answer B") if self.comparing else ("Model",)
        self.answers = [AnswerView(self.app, name) for name in names]
        for view in self.answers:
            view.write("")
        self._lay_out([view.box for view in self.answers])
        return self.answers

    def begin_again(self) -> list[AnswerView]:
        """Replace the answers shown by an empty view for a new one."""
        self.comparing = False
        return self.begin()

    def _lay_out(self, boxes: list[w.Widget]) -> None:
        if self.comparing:
            for box in boxes:
                box.layout = w.Layout(flex="1 1 16em", width="auto")
            boxes = [w.HBox(boxes, layout=w.Layout(flex_flow="row wrap")), row(*self.choose, self.chosen)]
        self.box.children = (self.question, *boxes, *([] if self.comparing else [self.other]))
        show(self.other, False)

    def finish(self, exchange: Exchange) -> None:
        """Show the finished answers of an exchange."""
        self.exchange = exchange
        opinions = self.app.opinions(exchange.answer.run)
        if self.comparing:
            self.choose = [
                button(f"{name} is better", partial(self._choose, i), self.app.guard) for i, name in enumerate("AB")
            ]
            opinion = opinions.get(exchange.comparison)
            for view, answer in zip(self.answers, exchange.answers, strict=False):
                view.bind(answer, opinions.get(answer.id))
            self._lay_out([view.box for view in self.answers])
            self._show_choice(opinion.choice if opinion else None)
            return
        self.answers[0].bind(exchange.answer, opinions.get(exchange.answer.id))
        if len(exchange.answers) > 1:
            self.other.description = f"Show other answer ({exchange.chosen + 1} of {len(exchange.answers)})"
        show(self.other, len(exchange.answers) > 1)

    @property
    def _finished(self) -> Exchange:
        assert self.exchange is not None, "the buttons are hidden until there is an answer"
        return self.exchange

    def _choose(self, index: int) -> None:
        self.app.session.choose(self._finished, index)
        self._show_choice(index)

    def _show_choice(self, index: int | None) -> None:
        for i, (view, choice) in enumerate(zip(self.answers, self.choose, strict=True)):
            view.mark(i == index)
            choice.button_style = "success" if i == index else ""
        text = "Which one is better? The chat continues with it (with A until you choose)."
        self.chosen.value = markup.dim(text if index is None else f"The chat continues with {'AB'[index]}.")

    def _other(self) -> None:
        exchange = self._finished
        self.app.session.show_other(exchange)
        self.begin()
        self.finish(exchange)
