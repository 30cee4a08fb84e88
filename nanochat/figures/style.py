"""The common style of the figures, and functions that show them.

White background, and colors that color-blind readers can tell apart and that print well. Figures are made without pyplot,
so that no state is kept between cells and worker threads can draw.
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

# Okabe and Ito 2008, "Color universal design"; they differ in lightness, so that they can be told apart in gray as well
BLUE, RED, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
INK, QUIET, FAINT = "#222222", "#666666", "#DDDDDD"
SERIES = (BLUE, ORANGE, GREEN, RED, SKY)
HATCHES = ("", "", "//", "..", "xx")
_DPI = 110
_LINE = 90  # characters per line: JupyterLab would break longer lines of a narrow window inside words


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure; `width` and `height` are in inches."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def decorate(ax: Axes, title: str = "", xlabel: str = "", ylabel: str = "", grid: Literal["x", "y", ""] = "y") -> Axes:
    """Set the title, labels, colors and grid lines ("x", "y" or "" for none) of axes, and return them."""
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
    """Add a legend inside the axes."""
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)


@functools.cache
def _font() -> FT2Font:
    return FT2Font(findfont("DejaVu Sans"))


def plain(text: object) -> str:
    """`text` for matplotlib to show literally: dollar signs are escaped, as they would start a formula.

    Control characters, and characters that the font lacks, appear as Python escapes.
    """
    drawable = (c >= " " and _font().get_char_index(ord(c)) for c in str(text))
    shown = (c if can else ascii(c)[1:-1] for c, can in zip(str(text), drawable, strict=True))
    return "".join(shown).replace("$", r"\$")


def tick_labels(texts: Sequence[object], longest: int = 28) -> list[str]:
    """The labels of an axis, shortened to `longest` characters, with leading and trailing spaces made visible."""
    cut = (text if len(text) <= longest else text[: longest - 1] + "…" for text in map(str, texts))
    return [plain(re.sub(r"^ +| +$", lambda spaces: "␣" * len(spaces[0]), text)) for text in cut]


def number(value: float) -> str:
    """`value` as text with three significant digits (integers and values above 100: all), without trailing zeros."""
    if not np.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def empty(title: str, reason: str) -> tuple[Figure, str]:
    """A figure that only says that there is nothing to draw, and why."""
    figure = new_figure(height=1.6)
    ax = figure.add_subplot()
    ax.set_axis_off()
    ax.text(0.5, 0.5, plain(f"{title}: {reason}"), ha="center", va="center", color=QUIET, fontsize=10)
    return figure, f"{title}: {reason}."


def show(figure: Figure, sentence: str) -> None:
    """Display the figure, if running in IPython, and print the sentence below it."""
    # IPython is not imported here, which would take a script a second: a session that runs in IPython has it loaded.
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import Image, display

        display(Image(data=png(figure), format="png", alt=sentence, width=round(figure.get_figwidth() * 96)))
    print(textwrap.fill(sentence, _LINE, break_long_words=False, break_on_hyphens=False))


def png(figure: Figure, dpi: int = 2 * _DPI) -> bytes:
    """The figure as the bytes of a PNG file, the same for the same figure.

    It has only 256 colors, a difference that cannot be seen and that makes saved notebooks much smaller.
    """
    from PIL import Image  # matplotlib requires it

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()
