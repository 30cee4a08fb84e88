"""The training monitor: loss, learning rate, speed, memory and samples of a training while it runs, with a Stop button.

The training runs in a worker thread, since a cell that trains leaves its kernel no time to hear of clicks.
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
_LINE_S = 0.2  # seconds between updates of the figures at least
_CURVE_S = 2.0  # and of the curve: drawing one takes some 0.1 s, which the training has to wait for
_SAMPLES = 6
_SAMPLE_CHARACTERS = 160


class Train(Protocol):
    """What can be watched: `functools.partial(stages.pretrain, run, corpus, settings=…)`, for instance."""

    def __call__(
        self, *, resume: bool, stop: Callable[[], bool], say: Callable[[str], None]
    ) -> Iterable[StepReport]: ...


def sentence(records: Records) -> str:
    """Where a training is, in one line of figures."""
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
    """A bar that fills with the steps, and the line of figures under it."""
    share = 100 * records[-1]["step"] / records[-1]["total"] if records else 0
    frame = "background:rgba(128,128,128,0.25);border-radius:4px;height:0.7em;width:100%"
    fill = f"background:#0072B2;border-radius:4px;height:100%;width:{share:.0f}%"
    return f'<div style="{frame}"><div style="{fill}"></div></div><p>{escape(sentence(records))}</p>'


def curve_html(records: Records, curve: str = "Loss") -> str:
    """One of CURVES as a picture with its sentence."""
    figure, text = CURVES[curve](records)
    source = base64.b64encode(png(figure, dpi=100)).decode()
    return (
        f'<img alt="{escape(text)}" src="data:image/png;base64,{source}" style="max-width:100%"><p>{escape(text)}</p>'
    )


def samples_html(records: Records) -> str:
    """What the model wrote at some of the validations, the first and the last among them."""
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
    """Everything at once, without a widget: what a saved notebook keeps."""
    return bar_html(records) + curve_html(records) + samples_html(records)


class Monitor:
    """A training that can be started, stopped and gone on with, and its panel `widget`.

    Until it is started the panel shows `before`, records of an earlier training. Methods do what clicks do; `join`
    waits for the worker.
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
        self.resume_button = widgets.Button(description="Go on", disabled=True)
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
        """Whether the worker is at work."""
        return self._worker is not None and self._worker.is_alive()

    def start(self, resume: bool = False) -> None:
        """Train in a worker thread: from the beginning, or from where it was stopped. Nothing happens if it runs."""
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
        """End after the step in progress; the state is saved by then."""
        self._stop.set()
        self.stop_button.disabled = True
        self._tell("Stopping after this step…")

    def join(self, timeout: float | None = None) -> None:
        """Wait until the worker is done."""
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
                end = f"Stopped after step {last['step']}; Go on continues from there."
            else:
                end = "Done."
            self._show(" ".join([*notices, end]))
        except Exception as error:  # a thread's exception would be lost: the person at the widget should see it
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
    """Show a monitor; saved notebooks keep what `before` holds as a picture with a table of samples."""
    monitor = Monitor(train, before)
    fallback.show(monitor.widget, panel_html(before), sentence(before))
    return monitor
