"""The next-token inspector: the model's predictions before and after temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from ..config import UserError
from ..data import questions
from ..figures import plots
from ..generate import next_token_probs
from ..model import GPT
from ..tokenizer import Tokenizer
from . import fallback
from .tokens import visible

_BAR = 9  # em, the width of a bar for probability 1


@dataclass(frozen=True)
class Candidate:
    """A possible next token: its probability before and after the sampling settings."""

    id: int
    text: str  # with visible spaces
    before: float
    after: float


@dataclass(frozen=True)
class Inspection:
    """The most likely next tokens, best first, and the effect of the sampling settings.

    `possible` of `vocab_size` tokens can be drawn. `bits_before` and `bits_after` are the entropy (Shannon 1948) before and
    after the settings: 0 bits if only one token can follow, 1 bit for a fair coin.
    """

    candidates: tuple[Candidate, ...]
    possible: int
    vocab_size: int
    bits_before: float
    bits_after: float

    def sentence(self) -> str:
        """The inspection in one sentence."""
        first = self.candidates[0]
        return (
            f"Most likely next: {first.text!r}, {first.before:.1%} before the settings and {first.after:.1%} after; "
            f"{self.possible:,} of {self.vocab_size:,} tokens can be drawn; the choice went from "
            f"{self.bits_before:.2f} to {self.bits_after:.2f} bits."
        )


def prompt_ids(tok: Tokenizer, text: str, chat: bool = False) -> list[int]:
    """The ids given to a model: `text` as the beginning of a document or, with `chat`, as a question to be answered."""
    return questions.render_prompt(questions.ask(text), tok) if chat else [tok.eot, *tok.encode(text)]


def _entropy_bits(probs: Tensor) -> float:
    return -(probs * probs.clamp(min=1e-30).log2()).sum().item() + 0.0  # no minus zero


@torch.inference_mode()
def next_probs(model: GPT, ids: list[int], **sampling: Any) -> tuple[Tensor, Tensor]:
    """The probabilities of the token after `ids`, (V,) each: without settings, and with those of `sampling`.

    `sampling` are options of `generate.next_token_probs`. If there are more ids than the context holds, the first ones are
    ignored. Raises UserError if there are none, or for invalid settings.
    """
    if not ids:
        raise UserError("there is nothing to continue; type some text")
    device = model.wte.weight.device
    x = model.trunk(torch.tensor([ids[-model.config.block_size :]], device=device))
    logits = model.head(x[:, -1:])[:, -1].double().cpu()
    return next_token_probs(logits)[0], next_token_probs(logits, **sampling)[0]


def inspect(model: GPT, tok: Tokenizer, ids: list[int], *, n: int = 12, **sampling: Any) -> Inspection:
    """The n most likely tokens after `ids`, in an order that no setting changes.

    `sampling` is as in `next_probs`, which may raise UserError.
    """
    before, after = next_probs(model, ids, **sampling)
    # tokens of equal probability, which the logit softcap can cause, are in the order in which sampling keeps them
    ranked = after.argsort(descending=True, stable=True)
    best = ranked[before[ranked].argsort(descending=True, stable=True)][:n].tolist()
    return Inspection(
        tuple(Candidate(t, visible(tok.token_bytes(t)), before[t].item(), after[t].item()) for t in best),
        int((after > 0).sum()),
        len(after),
        _entropy_bits(before),
        _entropy_bits(after),
    )


def bars(inspection: Inspection) -> plots.Plot:
    """A plot of the candidates' probabilities before and after the settings."""
    found = inspection.candidates
    series = {"as the model says": [c.before for c in found], "as it is drawn": [c.after for c in found]}
    figure, _ = plots.bars([c.text for c in found], series, "The next token", "probability")
    return figure, inspection.sentence()


def _bar(share: float, color: str) -> str:
    box = f"display:inline-block;height:0.75em;width:{_BAR * share:.2f}em;background:{color};vertical-align:baseline"
    return f'<td style="text-align:left;min-width:{_BAR + 4}em"><span style="{box}"></span> {share:.1%}</td>'


def inspection_html(inspection: Inspection) -> str:
    """The candidates as an HTML table of percentages with bars."""
    rows = "".join(
        f'<tr><td style="text-align:left"><code>{escape(c.text)}</code></td><td>{c.id}</td>'
        f"{_bar(c.before, '#0072B2')}{_bar(c.after, '#E69F00')}</tr>"
        for c in inspection.candidates
    )
    names = ("token", "id", "as the model says", "as it is drawn")
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{escape(inspection.sentence())}</p>"


def explorer(model: GPT, tok: Tokenizer, text: str, chat: bool = False) -> widgets.Widget:
    """A widget with a text to edit, the sampling settings, and buttons to draw tokens one by one."""
    layout = {"width": "98%", "height": "4em"}
    typed = widgets.Textarea(text, description="Text", placeholder="Type the beginning of a text.", layout=layout)
    as_question = widgets.Checkbox(chat, description="ask it as a question, in the chat template", indent=False)
    temperature = fallback.number(1.0, 0.0, 2.0, "Temperature", step=0.05)
    top_k = fallback.number(0, 0, 50, "Top-k (0: off)")
    top_p = fallback.number(1.0, 0.05, 1.0, "Top-p (1: off)", step=0.05)
    draw = widgets.Button(description="Draw a token", button_style="primary")
    back = widgets.Button(description="Take it back")
    written, table = widgets.HTML(), widgets.HTML()
    drawn: list[int] = []

    def settings() -> dict[str, Any]:
        return {
            "temperature": temperature.value,
            "top_k": top_k.value or None,
            "top_p": top_p.value if top_p.value < 1 else None,
        }

    def render() -> str:
        ids = prompt_ids(tok, typed.value, as_question.value) + drawn
        marked = "".join(f"<mark>{escape(visible(tok.token_bytes(token)))}</mark>" for token in drawn)
        between = "<br>" if as_question.value else ""
        written.value = f"<p>{escape(typed.value)}{between}{marked}</p>" if drawn else ""
        back.disabled = not drawn
        return inspection_html(inspect(model, tok, ids, **settings()))

    def add() -> None:
        ids = prompt_ids(tok, typed.value, as_question.value) + drawn
        generator = torch.Generator().manual_seed(len(ids))
        drawn.append(int(torch.multinomial(next_probs(model, ids, **settings())[1], 1, generator=generator)))

    def click(act: Callable[[], object]) -> Callable[[object], None]:
        def handle(_button: object) -> None:
            with suppress(UserError):  # the table shows the error
                act()
            update()

        return handle

    for source in (typed, as_question):  # tokens drawn for another text are discarded
        source.observe(lambda _change: drawn.clear(), names="value")
    update = fallback.follow(render, table, [typed, as_question, temperature, top_k, top_p])
    draw.on_click(click(add))
    back.on_click(click(drawn.pop))
    numbers = widgets.HBox([temperature, top_k, top_p], layout=fallback.WRAP)
    return widgets.VBox([typed, as_question, numbers, widgets.HBox([draw, back]), written, table])


def explore(model: GPT, tok: Tokenizer, text: str, chat: bool = False) -> None:
    """Display the inspector; a saved notebook shows the candidates after `text`, with top-k 5, in its place."""
    found = inspect(model, tok, prompt_ids(tok, text, chat), top_k=5)
    html = f"<p>After <b>{escape(text)}</b>, with top-k 5:</p>{inspection_html(found)}"
    fallback.show(explorer(model, tok, text, chat), html, found.sentence())
