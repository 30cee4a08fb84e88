"""The benchmark's results as a table, a figure, and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..config import UserError
from ..figures import style
from ..files import atomic_write
from .machine import sentence
from .rows import Row, from_record


@dataclass(frozen=True)
class Results:
    """The results of one run: a description of the machine, the rows, and the seconds it took."""

    machine: dict[str, Any]
    rows: list[Row]
    seconds: float


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{'<=' if row.at_most else '>='} {style.number(row.target)}"


def _result(row: Row) -> str:
    if row.result is None:
        return "-"
    spread = "" if row.low is None or row.high is None else f" ({style.number(row.low)}-{style.number(row.high)})"
    return f"{style.number(row.result)} {row.unit}{spread}"


def table(results: Results) -> str:
    """All rows as text: result (with the extremes of the rounds), target and verdict. The JSON says more."""
    heads = ("what", "result", "target", "verdict")
    lines = [(row.name, _result(row), _target(row), row.verdict) for row in results.rows]
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(3)]
    shown, group = [_columns(heads, widths)], ""
    for row, line in zip(results.rows, lines, strict=True):
        if row.group != group:
            group = row.group
            shown.append(f"\n{group}")
        shown.append(_columns(line, widths))
    asked = [row for row in results.rows if row.target is not None]
    met = sum(row.met is True for row in asked)
    shown.append(
        f"\n{met} of {len(asked)} targets met in {results.seconds / 60:.1f} minutes on: {sentence(results.machine)}"
    )
    return "\n".join(line.rstrip() for line in shown)


def _columns(line: Sequence[str], widths: Sequence[int]) -> str:
    padded = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
    return "  ".join((*padded, line[3]))


def figure(results: Results) -> Figure:
    """One bar for each target: the ratio of result and target, from 1 on met, on a logarithmic axis."""
    rows = [row for row in results.rows if row.share]
    if not rows:
        return style.empty("Results against targets", "nothing that has a target was measured")[0]
    drawn = style.new_figure(10.0, 1.2 + 0.34 * len(rows))
    ax = style.decorate(
        drawn.add_subplot(), "Results against targets", "result / target (right of the line: met)", grid="x"
    )
    shares = [row.share for row in rows if row.share]
    colors = [style.BLUE if row.met else style.ORANGE for row in rows]
    bars = ax.barh(range(len(rows)), [share - 1 for share in shares], left=1.0, height=0.7, color=colors)
    ax.set_xscale("log")
    ax.axvline(1.0, color=style.INK, linewidth=1.2)
    said = [f"{_result(row).split(' (')[0]}  ({_target(row)})" for row in rows]
    for bar, share, text in zip(bars, shares, said, strict=True):
        right = share >= 1
        ax.annotate(
            text, (share, bar.get_y() + bar.get_height() / 2), (4 if right else -4, 0), textcoords="offset points",
            ha="left" if right else "right", va="center", fontsize=8, color=style.INK,
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(style.plain(row.name), 60)) for row in rows], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlim(min(0.25, *shares) / 3, max(4.0, *shares) * 4)
    return drawn


def save(results: Results, path: Path) -> Path:
    """Write `path` (JSON) and the figure beside it; returns the figure's path."""
    content = {
        "machine": results.machine, "seconds": results.seconds, "rows": [row.record() for row in results.rows]
    }  # fmt: skip
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
    picture = path.with_suffix(".png")
    with atomic_write(picture) as file:
        file.write(style.png(figure(results)))
    return picture


def load(path: Path) -> Results:
    """The results that `save` wrote. Raises UserError for any other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return Results(content["machine"], [from_record(record) for record in content["rows"]], content["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no results of `nanochat bench` ({type(error).__name__}); run it again"
        ) from error
