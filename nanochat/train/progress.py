"""Progress display of a training: a line that is updated in a terminal, or a panel in a notebook.

Where nothing can be updated (a log file), only the validations are written, one per line.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterable
from typing import TextIO

from .. import statusline
from ..trainer import StepReport


def duration(seconds: float) -> str:
    """A duration in readable form: 45 s, 3 min 20 s, 2 h 05 min."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _measured(metrics: dict[str, float]) -> str:
    """The metrics of a validation in one phrase: "validation 3.210 (1.234 bits per byte), accuracy 0.912"."""
    words = {"val_loss": "validation {:.3f}", "val_bpb": "({:.3f} bits per byte)"}
    known = " ".join(form.format(metrics[name]) for name, form in words.items() if name in metrics)
    return ", ".join([known, *(f"{name} {value:.3f}" for name, value in metrics.items() if name not in words)])


def line(report: StepReport) -> str:
    """A step report as a line of text."""
    parts = [f"{report.stage} {report.step}/{report.total}"]
    if report.step:
        parts.append(f"loss {report.loss:.3f}")
    if report.metrics:
        parts.append(_measured(report.metrics) + (" *" if report.best else ""))
    if report.step:
        parts.append(f"{report.tokens_per_s:,.0f} tokens/s")
        parts.append(f"{report.rss_mb:,.0f} MB" + (f" + {report.gpu_mb:,.0f} MB GPU" if report.gpu_mb else ""))
        if report.step < report.total:
            parts.append(f"{duration(report.eta_s)} left")
    return "  ".join(parts)


def leave(reports: Iterable[StepReport]) -> None:
    """Close the generator of an interrupted training, so that it saves its state now.

    Python would close it only when nothing refers to it any more, and a traceback does.
    """
    if isinstance(reports, Generator):
        reports.close()


def follow(reports: Iterable[StepReport], stream: TextIO | None = None) -> list[StepReport]:
    """Run a training to its end, showing its progress on `stream` (default: stderr); returns all reports."""
    stream = stream or sys.stderr
    watched = stream.isatty()
    seen: list[StepReport] = []
    shown, unfinished = 0.0, False
    try:
        for report in reports:
            seen.append(report)
            now = time.monotonic()
            if report.metrics:
                statusline.write(line(report), stream)
                unfinished = False
                if report.sample:
                    print(f"    says: {report.sample[:160]!r}", file=stream, flush=True)
            elif watched and now - shown > 0.2:
                statusline.show(line(report), stream)
                shown, unfinished = now, True
    finally:
        leave(reports)
        if unfinished:
            print(file=stream, flush=True)
    return seen


def follow_in_notebook(reports: Iterable[StepReport]) -> list[StepReport]:
    """Run a training to its end, showing a bar and a line per validation in the cell's output; returns all reports."""
    from IPython.display import display

    seen: list[StepReport] = []
    validations: list[str] = []
    handle = display({"text/plain": "starting…"}, raw=True, display_id=True)
    shown = 0.0

    def show(bar: str) -> None:
        handle.update({"text/plain": "\n".join([*validations, *([bar] if bar else [])])}, raw=True)

    try:
        for report in reports:
            seen.append(report)
            if report.metrics:
                validations.append(line(report) + (f"\n    says: {report.sample[:100]!r}" if report.sample else ""))
            now = time.monotonic()
            if now - shown > 0.5 or report.metrics:
                filled = round(30 * report.step / report.total)
                bar = "█" * filled + "░" * (30 - filled) + "  " + line(report)
                show("" if report.step == report.total else bar)
                shown = now
    finally:
        leave(reports)
        # the final state has no progress bar, which would look as if the training were still running
        if not seen:
            show("nothing was trained")
        else:
            show("" if seen[-1].metrics else line(seen[-1]))
    return seen
