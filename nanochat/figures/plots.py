"""The plots of the notebooks.

Every plot function returns `(figure, sentence)`; the sentence describes what the figure shows, with computed numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.spines import Spine
from matplotlib.ticker import MaxNLocator

from ..config import unknown
from . import style
from .style import png, show

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

__all__ = [
    "bars", "heatmap", "histogram", "learning_rate", "lines", "losses", "memory", "pipeline", "png", "show", "smooth",
    "speed", "token_lengths",
]  # fmt: skip

Plot = tuple[Figure, str]
Metrics = Sequence[Mapping[str, Any]]  # records of metrics.jsonl

STEPS = (
    ("01 data", "text becomes tokens"),
    ("02 model", "a GPT, piece by piece"),
    ("03 pretraining", "it learns to write"),
    ("04 finetuning", "it learns to answer"),
    ("05 playground", "you talk to it"),
    ("06 feedback", "it learns from you"),
    ("07 scaling", "larger models, GPUs"),
)
_STAGE_TITLES = {"base_model": "pretraining", "fine_tuned": "finetuning", "aligned": "learning from feedback"}
_TICKS = 40  # the most labels on an axis


# --- training -----------------------------------------------------------------------------------------------


def _column(records: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the records whose value `name` is present and finite."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None and np.isfinite(r[name])]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _by_stage(metrics: Metrics) -> dict[str, list[Mapping[str, Any]]]:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in metrics:
        stages.setdefault(record["stage"], []).append(record)
    return stages


def _from_zero(panels: list[tuple[str, Metrics, Axes]]) -> None:
    """Let the shared y axis start at zero. Only after drawing, since it would no longer adapt to the data."""
    panels[0][2].set_ylim(bottom=0)


def _panels(metrics: Metrics, ylabel: str) -> tuple[Figure, list[tuple[str, Metrics, Axes]]]:
    """One panel for each stage, side by side with a shared y axis: the figure, and (title, records, axes) of each."""
    stages = _by_stage(metrics)
    figure = style.new_figure(width=max(7.0, 4.0 * len(stages)))
    axes = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    panels: list[tuple[str, Metrics, Axes]] = []
    for ax, (stage, records) in zip(axes, stages.items(), strict=True):
        name = _STAGE_TITLES.get(stage, stage)
        style.decorate(ax, name, "step", "" if panels else ylabel)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panels.append((name, records, ax))
    return figure, panels


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The moving average of `values` over `window` neighbors (fewer at the ends), of the same length."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def losses(metrics: Metrics) -> Plot:
    """Smoothed training loss, and validation loss, for each stage, in bits per byte.

    The training loss is measured in nats per token and converted with the ratio of the two units in the validations. If
    the bits per byte of a stage are unknown, everything is in nats per token.
    """
    if not metrics:
        return style.empty("Loss", "nothing has been trained yet")
    in_bits = all(len(_column(records, "val_bpb")[0]) for records in _by_stage(metrics).values())
    unit = "bits per byte" if in_bits else "nats per token"
    figure, panels = _panels(metrics, f"loss, {unit}")
    sentences = []
    for name, records, ax in panels:
        steps, values = _column(records, "loss")
        at, val = _column(records, "val_loss")
        if in_bits:
            bits = _column(records, "val_bpb")[1]
            values = values * np.median(bits / val)
            val = bits
        parts = []
        if len(values):
            line = smooth(values, max(1, len(values) // 40))
            ax.plot(steps, values, color=style.SKY, linewidth=0.6, alpha=0.6)
            ax.plot(steps, line, color=style.BLUE, linewidth=1.8, label="training, smoothed")
            parts.append(f"training ended at {line[-1]:.2f}")
        if len(val):
            ax.plot(at, val, "o--", color=style.RED, markersize=5, linewidth=1, label="validation")
            best = int(np.argmin(val))
            fell = f"validation went from {val[0]:.2f} to {val[-1]:.2f} {unit} by step {at[-1]:.0f}"
            once = f"validation was {val[0]:.2f} {unit} at step {at[0]:.0f}"
            parts.insert(0, f"{fell}, lowest {val[best]:.2f} at step {at[best]:.0f}," if len(val) > 1 else once)
        if parts:
            style.legend(ax)
        sentences.append(f"In {name}, {' and '.join(parts) or 'no loss was recorded'}.")
    return figure, " ".join(sentences)


def _over_steps(
    metrics: Metrics,
    title: str,
    ylabel: str,
    column: str,
    draw: Callable[[str, Metrics, Axes, np.ndarray, np.ndarray], str],
) -> Plot:
    """A panel for each stage; `draw(title, records, axes, steps, values)` plots a column and returns its sentence."""
    if not metrics:
        return style.empty(title, "nothing has been trained yet")
    figure, panels = _panels(metrics, ylabel)
    sentences = []
    for name, records, ax in panels:
        steps, values = _column([record for record in records if record["step"] > 0], column)
        taken = len(values) > 0
        sentences.append(draw(name, records, ax, steps, values) if taken else f"In {name} no step was taken.")
    _from_zero(panels)
    return figure, " ".join(sentences)


def learning_rate(metrics: Metrics) -> Plot:
    """The schedule's factor of the learning rate over the steps of each stage."""

    def draw(name: str, records: Metrics, ax: Axes, steps: np.ndarray, rates: np.ndarray) -> str:
        ax.plot(steps, rates, color=style.BLUE, linewidth=2)
        top = steps[rates >= rates.max() * (1 - 1e-9)]
        rise = f"rises until step {top[0]:.0f}, " if top[0] > steps[0] else ""
        return (
            f"In {name} the learning rate {rise}stays at {style.number(rates.max())} up to step {top[-1]:.0f} "
            f"and is {style.number(rates[-1])} at step {steps[-1]:.0f}."
        )

    return _over_steps(metrics, "Learning rate", "learning rate, as a factor", "lr", draw)


def memory(metrics: Metrics) -> Plot:
    """Memory in MB of the process, and of the GPU if one is used, over the steps of each stage."""
    if not metrics:
        return style.empty("Memory", "nothing has been trained yet")
    figure, panels = _panels(metrics, "memory, MB")
    sentences = []
    for name, records, ax in panels:
        parts = []
        lines = (("rss_mb", "process", style.BLUE, "-"), ("gpu_mb", "GPU", style.RED, "--"))
        for column, label, color, dashes in lines:
            steps, values = _column(records, column)
            if values.any():
                ax.plot(steps, values, dashes, color=color, linewidth=2, label=label)
                parts.append(f"the {label} used at most {values.max():,.0f} MB (step {steps[np.argmax(values)]:.0f})")
        if parts:
            style.legend(ax)
        sentences.append(f"In {name}, {' and '.join(parts) or 'memory was not measured'}.")
    _from_zero(panels)
    return figure, " ".join(sentences)


def speed(metrics: Metrics) -> Plot:
    """Training speed in tokens per second over the steps of each stage."""

    def draw(name: str, records: Metrics, ax: Axes, steps: np.ndarray, values: np.ndarray) -> str:
        ax.plot(steps, values, color=style.BLUE, linewidth=1.5)
        middle = float(np.median(values))
        ax.axhline(middle, color=style.RED, linestyle="--", linewidth=1, label="median")
        style.legend(ax)
        share = _column(records, "mfu")[1]
        used = f", {np.median(share):.0%} of what its matrix units can do" if share.any() else ""
        return f"In {name} the machine trained on {middle:,.0f} tokens a second{used}."

    return _over_steps(metrics, "Speed", "tokens per second", "tokens_per_s", draw)


# --- tokens, probabilities, scores, matrices ----------------------------------------------------------------


def histogram(values: Sequence[float] | np.ndarray, title: str, xlabel: str) -> Plot:
    """A histogram of `values`. If they are integers within a small range, each gets a bar of its own."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return style.empty(title, "there are no values")
    low, high = values.min(), values.max()
    whole = bool((values == np.round(values)).all()) and high - low <= 60
    edges = np.arange(low - 0.5, high + 1) if whole else np.histogram_bin_edges(values, bins=30)
    figure = style.new_figure()
    ax = style.decorate(figure.add_subplot(), title, xlabel, "how many")
    counts, _, _ = ax.hist(values, edges.tolist(), color=style.BLUE, edgecolor="white", linewidth=0.6)
    middle = float(np.median(values))
    ax.axvline(middle, color=style.RED, linestyle="--", linewidth=1.2, label=f"median {style.number(middle)}")
    if whole:
        ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.legend(ax)
    peak = int(np.argmax(counts))
    low_text, high_text, middle_text, mean_text = map(style.number, (low, high, middle, values.mean()))
    ends = (low + peak,) if whole else edges[peak : peak + 2]
    at = " to ".join(map(style.number, ends))
    return figure, (
        f"{title}: {len(values):,} values from {low_text} to {high_text}, median {middle_text}, mean {mean_text}; most "
        f"often ({counts[peak]:,.0f} times) {at}."
    )


def token_lengths(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray, title: str = "Length of tokens") -> Plot:
    """A histogram of the lengths in bytes of a text's tokens, without special tokens."""
    lengths = tokenizer.byte_lengths()[np.asarray(ids, dtype=np.int64)]
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return style.empty(title, "there are no tokens of text")
    figure, _ = histogram(lengths, title, "bytes in a token")
    return figure, (
        f"{title}: {len(lengths):,} tokens stand for {lengths.sum():,} bytes, {lengths.mean():.2f} bytes a token; "
        f"{(lengths == 1).mean():.0%} are single bytes, the longest has {lengths.max()}."
    )


def bars(
    labels: Sequence[object],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    title: str,
    xlabel: str = "",
) -> Plot:
    """A horizontal bar for each label, from top to bottom; with several series (name → values), one for each series."""
    series = dict(values) if isinstance(values, Mapping) else {"": values}
    columns = {name: np.nan_to_num(np.asarray(column, dtype=float)) for name, column in series.items()}
    if not len(labels):
        return style.empty(title, "there is nothing to compare")
    height = 0.9 + len(labels) * max(0.28, 0.2 * len(columns)) + 0.3 * (len(columns) > 1)
    figure = style.new_figure(height=height)
    ax = style.decorate(figure.add_subplot(), title, xlabel, grid="x")
    places, thick = np.arange(len(labels), dtype=float), 0.8 / len(columns)
    for i, (name, column) in enumerate(columns.items()):
        options: dict[str, Any] = {
            "color": style.SERIES[i % 5],
            "hatch": style.HATCHES[i % 5],
            "edgecolor": "white",
            "linewidth": 0,
        }
        offset = (i - (len(columns) - 1) / 2) * thick
        drawn = ax.barh(places + offset, column, thick * 0.92, label=style.plain(name) or None, **options)
        ax.bar_label(drawn, [style.number(value) for value in column], padding=3, fontsize=8, color=style.INK)
    ax.set_yticks(places, style.tick_labels(labels))
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.margins(x=0.12)
    if len(columns) > 1:
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9, labelcolor=style.INK)
    return figure, f"{title}: {'; '.join(_extremes(name, labels, column) for name, column in columns.items())}."


def _extremes(name: str, labels: Sequence[object], column: np.ndarray) -> str:
    most, least = int(np.argmax(column)), int(np.argmin(column))
    where = f"{name}: " if name else ""
    low = f", lowest {str(labels[least])!r} ({style.number(column[least])})" if len(column) > 1 else ""
    return f"{where}highest {str(labels[most])!r} ({style.number(column[most])}){low}"


def lines(
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
) -> Plot:
    """A line for each series (name → (x values, y values)), with markers if it has few points."""
    points = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items() if len(x)}
    if not points:
        return style.empty(title, "there are no points")
    figure = style.new_figure()
    ax = style.decorate(figure.add_subplot(), title, xlabel, ylabel)
    sentences = []
    for i, (name, (x, y)) in enumerate(points.items()):
        options: dict[str, Any] = {
            "color": style.SERIES[i % 5],
            "linestyle": ("-", "--", ":", "-.", "-")[i % 5],
            "linewidth": 2,
        }
        ax.plot(x, y, marker="o" if len(x) <= 25 else "", markersize=5, label=style.plain(name), **options)
        first, last, low = (style.number(value) for value in (y[0], y[-1], y.min()))
        low_at = style.number(x[np.argmin(y)])
        sentences.append(
            f"{name} goes from {first} to {last}, lowest {low} at {low_at}" if len(x) > 1 else f"{name} is {last}"
        )
    style.legend(ax)
    return figure, f"{title}: {'; '.join(sentences)}."


def heatmap(
    matrix: Any,
    xlabels: Sequence[object],
    ylabels: Sequence[object],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
) -> Plot:
    """A matrix (rows, columns) as colors, from white (0) to dark; NaN means masked and is hatched in gray.

    If there are negative values, these are orange and positive ones purple. Small matrices also show their numbers.
    """
    matrix = np.ma.masked_invalid(np.asarray(matrix, dtype=float))
    if not matrix.count():
        return style.empty(title, "there are no values")
    rows, columns = matrix.shape
    signed = matrix.min() < 0
    top = float(np.abs(matrix).max()) or 1.0
    width = float(np.clip(0.42 * max(rows, columns), 3.0, 6.0))
    figure = style.new_figure(width * columns / max(rows, columns) + 2.2, width * rows / max(rows, columns) + 1.5)
    ax = style.decorate(figure.add_subplot(), title, xlabel, ylabel, grid="")
    ax.patch.set(facecolor="#EEEEEE", hatch="////", edgecolor="#CCCCCC")
    cmap = mpl.colormaps["PuOr" if signed else "Blues"]
    image = ax.imshow(matrix, cmap=cmap, interpolation="nearest", vmin=-top if signed else 0.0, vmax=top)
    for axis, labels in ((ax.xaxis, xlabels), (ax.yaxis, ylabels)):
        stride = -(-len(labels) // _TICKS)
        axis.set_ticks(range(0, len(labels), stride), style.tick_labels(labels[::stride], 16))
    horizontal = all(len(str(label)) <= 2 for label in xlabels)
    if not horizontal:  # slanted labels that end at their columns
        named = [label.get_text() for label in ax.get_xticklabels()]
        ax.set_xticks(ax.get_xticks(), named, rotation=60, ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if matrix.size <= 144:
        digits = 0 if top >= 100 or bool((matrix == matrix.round()).all()) else 2  # counts as integers
        for row, column in np.argwhere(~np.ma.getmaskarray(matrix)):
            value = matrix[row, column]
            ink = "white" if abs(value) > 0.6 * top else style.INK
            ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=7.5, color=ink)
    bar = figure.colorbar(image, ax=ax, shrink=0.8, aspect=18)
    cast("Spine", bar.outline).set_visible(False)  # up to 3.10 matplotlib says that it is several
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=style.INK)
    row, column = map(int, np.unravel_index(int(np.ma.argmax(matrix)), matrix.shape))
    masked = f", masked cells: {matrix.size - matrix.count()}" if matrix.count() < matrix.size else ""
    return figure, (
        f"{title}: {rows} rows by {columns} columns, largest value {style.number(matrix.max())} in row "
        f"{str(ylabels[row])!r}, column {str(xlabels[column])!r}; mean {style.number(matrix.mean())}{masked}."
    )


# --- the pipeline --------------------------------------------------------------------------------------------


def pipeline(here: str) -> Plot:
    """The notebooks of the course as a row of boxes, with the current one marked.

    `here` is the number or name of a notebook: "03", "pretraining" or "03_pretraining". Raises UserError if there is none.
    """
    names = [name for name, _ in STEPS]
    wanted = str(here).replace("_", " ").casefold()
    found = [i for i, name in enumerate(names) if wanted[:2] == name[:2] or wanted in (name, name[3:])]
    if not found:
        raise unknown("step of the course", here, names)
    at = found[0]
    figure = style.new_figure(10.0, 1.5)
    ax = figure.add_subplot()
    ax.set_axis_off()
    ax.set(xlim=(-0.5, len(STEPS) - 0.5), ylim=(-0.75, 0.8))
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    styles: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "before": (dict(facecolor="#E8F1F8", edgecolor=style.SKY), dict(color=style.INK)),
        "here": (dict(facecolor=style.BLUE, edgecolor=style.BLUE), dict(color="white", fontweight="bold")),
        "after": (dict(facecolor="white", edgecolor=style.QUIET), dict(color=style.INK)),
    }
    for i, (name, about) in enumerate(STEPS):
        box, text = styles["here" if i == at else "before" if i < at else "after"]
        ax.add_patch(FancyBboxPatch((i - 0.36, -0.2), 0.72, 0.4, "round,pad=0.04", linewidth=1.2, **box))
        ax.text(i, 0, name, fontsize=8.5, **text, **middle)
        ax.text(i, -0.5, about, fontsize=7, color=style.QUIET, **middle)
        if i:
            ends = (i - 0.6, 0), (i - 0.4, 0)
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=8, color=style.QUIET))
    ax.text(at, 0.56, "you are here ▾", fontsize=9, color=style.BLUE, fontweight="bold", **middle)
    done = f"before it: {', '.join(names[:at])}; " if at else ""
    left = f"still to come: {', '.join(names[at + 1 :])}" if at + 1 < len(names) else "it is the last one"
    return figure, f"You are at {names[at]} ({STEPS[at][1]}), step {at + 1} of {len(STEPS)}; {done}{left}."
