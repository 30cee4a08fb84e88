"""The one style of the course's figures, and how they are shown.

A white ground, colours that colour-blind people can tell apart and that print well. Figures are made without
pyplot, so that nothing is kept between cells and worker threads may draw.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

# Okabe and Ito 2008, "Color universal design"; of falling darkness, so that they differ in grey as well
BLUE, RED, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
INK, QUIET, FAINT = "#222222", "#666666", "#DDDDDD"
SERIES = (BLUE, ORANGE, GREEN, RED, SKY)
HATCHES = ("", "", "//", "..", "xx")
_DPI = 110
_LINE = 90  # characters that fit beside a narrow window's margins: JupyterLab itself would break lines inside words


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def dress(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "", grid: Literal["x", "y", ""] = "y") -> Axes:
    """Give axes their texts, colours and `grid` ("x", "y" or "" for none)."""
    ax.set_facecolor("white")
    ax.set_title(plain(title), loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_xlabel(plain(xlabel), fontsize=9.5, color=INK)
    ax.set_ylabel(plain(ylabel), fontsize=9.5, color=INK)
    ax.tick_params(labelsize=9, colors=INK, color=FAINT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    if grid:
        ax.grid(axis=grid, color=FAINT, linewidth=0.8)
        ax.set_axisbelow(True)
    return ax


def legend(ax: Axes) -> None:
    """Say inside the axes which line is which."""
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)


@functools.cache
def _font() -> FT2Font:
    return FT2Font(findfont("DejaVu Sans"))


def plain(text: object) -> str:
    """`text` as it stands: no dollar starts a formula; controls and what the font lacks are written as in
    Python.
    """
    drawable = (c >= " " and _font().get_char_index(ord(c)) for c in str(text))
    shown = (c if can else ascii(c)[1:-1] for c, can in zip(str(text), drawable, strict=True))
    return "".join(shown).replace("$", r"\$")


def tick_labels(texts: Sequence[object], longest: int = 28) -> list[str]:
    """Labels of an axis, not too long, with the blanks at their ends made visible."""
    cut = (text if len(text) <= longest else text[: longest - 1] + "…" for text in map(str, texts))
    return [plain(re.sub(r"^ +| +$", lambda blanks: "␣" * len(blanks[0]), text)) for text in cut]


def number(value: float) -> str:
    """Three digits that matter, without needless zeros."""
    if not np.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def empty(title: str, reason: str) -> tuple[Figure, str]:
    """What is shown when there is nothing to draw."""
    figure = new_figure(height=1.6)
    ax = figure.add_subplot()
    ax.set_axis_off()
    ax.text(0.5, 0.5, plain(f"{title}: {reason}"), ha="center", va="center", color=QUIET, fontsize=10)
    return figure, f"{title}: {reason}."


def show(figure: Figure, sentence: str) -> None:
    """Show the figure, where IPython runs, and print the sentence under it."""
    # Only a session that runs IPython has it loaded; importing it here would cost a script a second.
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import Image, display

        display(Image(data=png(figure), format="png", alt=sentence, width=round(figure.get_figwidth() * 96)))
    print(textwrap.fill(sentence, _LINE, break_long_words=False, break_on_hyphens=False))


def png(figure: Figure, dpi: int = 2 * _DPI) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes.

    With 256 colours, which nobody can tell from all of them, saved notebooks are a third of the size.
    """
    from PIL import Image  # what matplotlib writes PNG files with

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()
