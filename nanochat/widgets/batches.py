"""The batch viewer: the inputs of a batch above their targets; targets without loss are gray and in parentheses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np

from ..data.packing import IGNORE
from ..tokenizer import Tokenizer
from . import fallback
from .markup import escape
from .tokens import COLORS, INK, visible

Batch = Sequence[np.ndarray]  # x, y and perhaps docs, each (B, T)
_COLUMNS = 10  # positions per line
_GREY = "#8a8a8a"  # readable on light and dark pages
_CENTRED = "text-align:center"


def sentence(batch: Batch) -> str:
    """The size of a batch and its share of targets that carry loss, as a sentence."""
    y = np.asarray(batch[1])
    carry = int((y != IGNORE).sum())
    share = carry / y.size
    return f"{len(y)} rows of {y.shape[1]} positions; {carry:,} of {y.size:,} targets ({share:.0%}) carry loss."


def batch_html(tok: Tokenizer, batch: Batch, row: int = 0, start: int = 0, width: int = 36) -> str:
    """`width` positions of one row of (x, y) or (x, y, docs), beginning at `start`, as HTML: inputs above targets.

    The documents of a packed row have different background colors. If a target carries no loss (-1), the token that
    follows is shown in parentheses.
    """
    x, y = (np.asarray(part)[row] for part in batch[:2])
    docs = np.asarray(batch[2])[row] if len(batch) > 2 else np.zeros_like(x)
    masked = bool((y == IGNORE).any())
    lines = []
    for first in range(start, min(start + width, len(x)), _COLUMNS):
        places = range(first, min(first + _COLUMNS, start + width, len(x)))
        numbers = "".join(f'<td style="{_CENTRED}"><small>{place}</small></td>' for place in places)
        inputs = "".join(_cell(tok, int(x[place]), int(docs[place])) for place in places)
        targets = "".join(_target(tok, x, y, place, masked) for place in places)
        lines.append(
            f"<table><tr><th><small>position</small></th>{numbers}</tr><tr><th>input</th>{inputs}</tr>"
            f"<tr><th>target</th>{targets}</tr></table>"
        )
    legend = " Targets in brackets carry no loss." if masked else ""
    return f"<p>Row {row}, from position {start}.{legend}</p>{''.join(lines)}"


def _cell(tok: Tokenizer, token: int, doc: int) -> str:
    style = f"background:{COLORS[doc % len(COLORS)]};color:{INK};{_CENTRED}"
    return f'<td style="{style}" title="id {token}">{_code(escape(visible(tok.token_bytes(token))))}</td>'


def _code(text: str) -> str:
    return f'<code style="background:none;color:inherit">{text}</code>'


def _target(tok: Tokenizer, x: np.ndarray, y: np.ndarray, place: int, masked: bool) -> str:
    if y[place] != IGNORE:
        text = escape(visible(tok.token_bytes(int(y[place]))))
        shown = _code(f"<b>{text}</b>" if masked else text)
        return f'<td style="{_CENTRED}" title="id {y[place]}">{shown}</td>'
    text = escape(visible(tok.token_bytes(int(x[place + 1])))) if place + 1 < len(x) else "…"
    return f'<td style="color:{_GREY};{_CENTRED}" title="no loss">({text})</td>'


def viewer(tok: Tokenizer, make: Callable[[int], Batch], row: int = 0, start: int = 0) -> widgets.Widget:
    """A widget that shows the batches make(0), make(1), …, with fields for the step, the row and the first position."""
    rows, length = np.asarray(make(0)[0]).shape
    steps = fallback.number(0, 0, 99, "Step")
    which = fallback.number(row, 0, rows - 1, "Row")
    place = fallback.number(start, 0, (length - 1) // _COLUMNS * _COLUMNS, "Position", step=_COLUMNS)
    out = widgets.HTML()

    fallback.follow(
        lambda: _with_sentence(tok, make(steps.value), which.value, place.value), out, [steps, which, place]
    )
    return widgets.VBox([widgets.HBox([steps, which, place], layout=fallback.WRAP), out])


def first_answer(batch: Batch) -> tuple[int, int]:
    """(row, start): where the earliest answer of the batch is, as the viewer's initial position."""
    carries = np.asarray(batch[1]) != IGNORE
    first = np.where(carries.any(axis=1), carries.argmax(axis=1), carries.shape[1])
    row = int(first.argmin())
    return row, max(0, (int(first[row]) // _COLUMNS - 1) * _COLUMNS)


def view(tok: Tokenizer, make: Callable[[int], Batch]) -> None:
    """Display the viewer; a saved notebook shows a table of a part of the first batch in its place."""
    batch = make(0)
    row, start = first_answer(batch)
    fallback.show(viewer(tok, make, row, start), _with_sentence(tok, batch, row, start), sentence(batch))


def _with_sentence(tok: Tokenizer, batch: Batch, row: int, start: int) -> str:
    return f"{batch_html(tok, batch, row, start)}<p>{sentence(batch)}</p>"
