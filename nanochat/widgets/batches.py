"""The batch viewer: what the model reads, over what it should say next; targets without loss are grey, in brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import ipywidgets as widgets
import numpy as np

from ..packing import IGNORE
from ..tokenizer import Tokenizer
from . import static
from .tokens import COLOURS, INK, visible

Batch = Sequence[np.ndarray]  # x, y and perhaps docs, each (B, T)
_COLUMNS = 12  # positions side by side
_GREY = "#8a8a8a"


def sentence(batch: Batch) -> str:
    """What a batch holds, in numbers."""
    y = np.asarray(batch[1])
    carry = int((y != IGNORE).sum())
    share = carry / y.size
    return f"{len(y)} rows of {y.shape[1]} positions; {carry:,} of {y.size:,} targets ({share:.0%}) carry loss."


def batch_html(tok: Tokenizer, batch: Batch, row: int = 0, start: int = 0, width: int = 36) -> str:
    """Positions start … start + width of one row of (x, y) or (x, y, docs), inputs over targets.

    Documents of a packed row have grounds of different colours. Where a target carries no loss (-1), the token that
    follows stands in brackets.
    """
    x, y = (np.asarray(part)[row] for part in batch[:2])
    docs = np.asarray(batch[2])[row] if len(batch) > 2 else np.zeros_like(x)
    masked = bool((y == IGNORE).any())
    lines = []
    for first in range(start, min(start + width, len(x)), _COLUMNS):
        places = range(first, min(first + _COLUMNS, start + width, len(x)))
        numbers = "".join(f"<td><small>{place}</small></td>" for place in places)
        inputs = "".join(_cell(tok, int(x[place]), int(docs[place])) for place in places)
        targets = "".join(_target(tok, x, y, place, masked) for place in places)
        lines.append(
            f"<table><tr><th><small>position</small></th>{numbers}</tr><tr><th>input</th>{inputs}</tr>"
            f"<tr><th>target</th>{targets}</tr></table>"
        )
    legend = " Targets in brackets carry no loss." if masked else ""
    return f"<p>Row {row}, from position {start}.{legend}</p>{''.join(lines)}"


def _cell(tok: Tokenizer, id: int, doc: int) -> str:
    style = f"background:{COLOURS[doc % len(COLOURS)]};color:{INK}"
    return f'<td style="{style}" title="id {id}"><code>{escape(visible(tok.token_bytes(id)))}</code></td>'


def _target(tok: Tokenizer, x: np.ndarray, y: np.ndarray, place: int, masked: bool) -> str:
    if y[place] != IGNORE:
        text = escape(visible(tok.token_bytes(int(y[place]))))
        return f'<td title="id {y[place]}"><code>{f"<b>{text}</b>" if masked else text}</code></td>'
    text = escape(visible(tok.token_bytes(int(x[place + 1])))) if place + 1 < len(x) else "…"
    return f'<td style="color:{_GREY}" title="no loss">({text})</td>'


def viewer(tok: Tokenizer, make: Callable[[int], Batch]) -> widgets.Widget:
    """The batches make(0), make(1), …: sliders choose the step, the row and where in the row to look."""
    x = make(0)[0]
    step = widgets.IntSlider(0, 0, 99, description="step", continuous_update=False)
    row = widgets.IntSlider(0, 0, len(x) - 1, description="row")
    start = widgets.IntSlider(0, 0, max(0, x.shape[1] - _COLUMNS), step=_COLUMNS, description="position")
    out = widgets.HTML()

    def render() -> str:
        batch = make(step.value)
        return batch_html(tok, batch, row.value, start.value) + f"<p>{sentence(batch)}</p>"

    static.follow(render, out, [step, row, start])
    return widgets.VBox([widgets.HBox([step, row, start]), out])


def view(tok: Tokenizer, make: Callable[[int], Batch], row: int = 0) -> None:
    """Show the viewer, and print what the first batch holds; saved notebooks keep one row of it as a table."""
    batch = make(0)
    static.show(viewer(tok, make), batch_html(tok, batch, row), sentence(batch))
    print(sentence(batch))
