"""The training monitor: live plots, samples and a Stop button for a training.

The training runs in a worker thread, since the kernel cannot react to clicks while a cell runs.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

import ipywidgets as widgets

from ..figures import plots
from ..figures.style import png
from ..train.progress import duration
from ..trainer import StepReport
from . import fallback

Records = Sequence[Mapping[str, Any]]  # as in metrics.jsonl

CURVES: dict[str, Callable[[Records], plots.Plot]] = {
    "Loss": plots.losses,
    "Learning rate": plots.learning_rate,
    "Speed": plots.speed,
    "Memory": plots.memory,
}
_LINE_S = 0.2  # seconds, at least, between updates of the bar
_CURVE_S = 2.0  # seconds, at least, between updates of the plot, for which the training has to wait
_SAMPLES = 6
_SAMPLE_CHARACTERS = 160


class Train(Protocol):
    """A training that can be monitored, such as `functools.partial(stages.pretrain, run, corpus, settings=…)`."""

    def __call__(
        self, *, resume: bool, stop: Callable[[], bool], say: Callable[[str], None]
    ) -> Iterable[StepReport]: ...


def sentence(records: Records) -> str:
    """The progress of a training in one line."""
    if not records:
        return "Nothing has been trained yet."
    last = records[-1]
    parts = [f"step {last['step']} of {last['total']}"]
    if last.get("loss") is not None:
        parts += [f"loss {last['loss']:.3f} nats per token", f"learning rate × {last['lr']:.2f}"]
        parts.append(f"{last['tokens_per_s']:,.0f} tokens/s")
    memory = f"{last['rss_mb']:,.0f} MB of memory"
    parts.append(memory + (f" and {last['gpu_mb']:,.0f} MB on the GPU" if last["gpu_mb"] else ""))
    if 0 < last["step"] < last["total"]:
        parts.append(f"{duration(last['eta_s'])} left")
    return ", ".join(parts)


def bar_html(records: Records) -> str:
    """A progress bar, and the progress in one line below it."""
    share = 100 * records[-1]["step"] / records[-1]["total"] if records else 0
    frame = "background:rgba(128,128,128,0.25);border-radius:4px;height:0.7em;width:100%"
    fill = f"background:#0072B2;border-radius:4px;height:100%;width:{share:.0f}%"
    return f'<div style="{frame}"><div style="{fill}"></div></div><p>{escape(sentence(records))}</p>'


def curve_html(records: Records, curve: str = "Loss") -> str:
    """One of the plots in CURVES as an image with its description."""
    figure, text = CURVES[curve](records)
    source = base64.b64encode(png(figure, dpi=100)).decode()
    return (
        f'<img alt="{escape(text)}" src="data:image/png;base64,{source}" style="max-width:100%"><p>{escape(text)}</p>'
    )


def samples_html(records: Records) -> str:
    """A table of samples from some of the validations, including the first and the last."""
    found = [record for record in records if record.get("sample") is not None]
    chosen = {round(i * (len(found) - 1) / (_SAMPLES - 1)) for i in range(_SAMPLES)} if found else set()
    rows = "".join(
        f'<tr><td>{found[i]["step"]}</td><td style="text-align:left">{escape(_cut(found[i]["sample"]))}</td></tr>'
        for i in sorted(chosen)
    )
    head = '<tr><th>step</th><th style="text-align:left">what the model writes</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if rows else ""


def _cut(text: str) -> str:
    if not text.strip():
        return "(nothing)"
    return text if len(text) <= _SAMPLE_CHARACTERS else text[: _SAMPLE_CHARACTERS - 1] + "…"


def panel_html(records: Records) -> str:
    """Progress, loss and samples as static HTML, for saved notebooks."""
    return bar_html(records) + curve_html(records) + samples_html(records)


class Monitor:
    """A widget to start, watch, stop and resume a training; `widget` is what to display.

    Until the training is started, it shows `before`, the records of an earlier training. The methods do the same as the
    buttons; `join` waits for the worker thread.
    """

    def __init__(self, train: Train, before: Records = ()):
        self.train = train
        self.records: list[Mapping[str, Any]] = list(before)
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._build()
        self._show("Showing an earlier training. Start begins a new one." if before else "Start begins the training.")

    def _build(self) -> None:
        self.start_button = widgets.Button(description="Start", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", disabled=True)
        self.resume_button = widgets.Button(description="Resume", disabled=True)
        self.start_button.on_click(lambda _button: self.start())
        self.stop_button.on_click(lambda _button: self.stop())
        self.resume_button.on_click(lambda _button: self.start(resume=True))
        self.choice = widgets.ToggleButtons(options=list(CURVES), tooltips=[f"Show: {name}" for name in CURVES])
        self.notice, self.bar, self.curve, self.samples = (widgets.HTML() for _ in range(4))
        self.choice.observe(lambda _change: self._draw(), names="value")
        buttons = widgets.HBox([self.start_button, self.stop_button, self.resume_button])
        self.widget = widgets.VBox([buttons, self.notice, self.bar, self.choice, self.curve, self.samples])

    @property
    def running(self) -> bool:
        """Whether the training is running."""
        return self._worker is not None and self._worker.is_alive()

    def start(self, resume: bool = False) -> None:
        """Start training, or resume a stopped one, in a worker thread. Does nothing if it is running."""
        if self.running:
            return
        self._stop.clear()
        if not resume:
            self.records = []
        self._buttons(running=True, resumable=False)
        self._show("Training…")
        self._worker = threading.Thread(target=self._work, args=(resume,), daemon=True, name="training monitor")
        self._worker.start()

    def stop(self) -> None:
        """Stop the training after the current step; it saves its state."""
        self._stop.set()
        self.stop_button.disabled = True
        self._tell("Stopping after this step…")

    def join(self, timeout: float | None = None) -> None:
        """Wait until the training ends."""
        if self._worker is not None:
            self._worker.join(timeout)

    def _work(self, resume: bool) -> None:
        notices: list[str] = []
        resumable = False
        try:
            drawn = 0.0
            for report in self.train(resume=resume, stop=self._stop.is_set, say=notices.append):
                self.records.append(report.record())
                now = time.monotonic()
                if report.metrics or now - drawn > _CURVE_S:
                    self._draw()
                    drawn = now
                elif now - drawn > _LINE_S:
                    self.bar.value = bar_html(self.records)
            last = self.records[-1] if self.records else None
            resumable = last is not None and last["step"] < last["total"]
            if last is None:
                end = "Stopped before the first step; nothing was changed."
            elif resumable:
                end = f"Stopped after step {last['step']}; Resume continues from there."
            else:
                end = "Done."
            self._show(" ".join([*notices, end]))
        except Exception as error:  # any exception: in a thread, it would be lost
            self._draw()
            self.notice.value = fallback.error_html(error)
        finally:
            self._buttons(running=False, resumable=resumable)

    def _show(self, text: str) -> None:
        self._tell(text)
        self._draw()

    def _tell(self, text: str) -> None:
        self.notice.value = f"<p>{escape(text)}</p>"

    def _draw(self) -> None:
        records = list(self.records)
        self.bar.value = bar_html(records)
        self.curve.value = curve_html(records, self.choice.value)
        self.samples.value = samples_html(records)

    def _buttons(self, running: bool, resumable: bool) -> None:
        self.start_button.disabled = running
        self.start_button.description = "Start over" if resumable else "Start"
        self.stop_button.disabled = not running
        self.resume_button.disabled = running or not resumable


def watch(train: Train, before: Records = ()) -> Monitor:
    """Display a monitor; a saved notebook shows the training `before` as static HTML in its place."""
    monitor = Monitor(train, before)
    fallback.show(monitor.widget, panel_html(before), sentence(before))
    return monitor
