"""The training monitor: it shows the reports, can stop and resume a worker thread, and hides no error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import counting_task, small_config

from nanochat.model import GPT
from nanochat.state import load_state
from nanochat.trainer import StepReport, TrainSettings, train
from nanochat.widgets import monitor
from nanochat.widgets.monitor import CURVES, Monitor, panel_html, sentence

REPORT = StepReport("base_model", 0, 4, float("nan"), 0.0, 0, float("nan"), 0.0, float("nan"), 500.0, 0.0, float("nan"))


def _reports(total: int = 4) -> Iterator[StepReport]:
    yield replace(REPORT, total=total, metrics={"val_loss": 4.0, "val_bpb": 2.0}, best=True, sample="xx <b>yy</b>")
    for step in range(1, total + 1):
        measured = {"metrics": {"val_loss": 2.0, "val_bpb": 1.0}, "sample": f"sample {step}"} if step == total else {}
        yield replace(
            REPORT,
            total=total,
            step=step,
            loss=4.0 - 0.4 * step,
            lr=0.5,
            tokens_per_s=1000.0,
            mfu=0.5,
            eta_s=9.0,
            **measured,
        )


def _records(total: int = 4) -> list[dict[str, Any]]:
    return [report.record() for report in _reports(total)]


def _fake(*, resume: bool, stop: Callable[[], bool], say: Callable[[str], None]) -> Iterator[StepReport]:
    yield from _reports()


def test_the_panel_has_curve_figures_and_samples_and_runs_nothing_that_a_model_wrote() -> None:
    html = panel_html(_records())
    assert "step 4 of 4, loss 2.400 nats per token, learning rate × 0.50, 1,000 tokens/s, 500 MB of memory" in html
    assert 'src="data:image/png;base64,' in html
    assert "validation went from 2.00 to 1.00 bits per byte" in html
    assert "xx &lt;b&gt;yy&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "sample 4" in html


def test_every_stage_of_a_training_can_be_shown() -> None:
    records = _records()
    assert sentence([]) == "Nothing has been trained yet."
    assert sentence(records[:1]) == "step 0 of 4, 500 MB of memory"
    assert sentence(records[:2]).endswith("9 s left")
    for seen in ([], records[:1], records[:3], records):
        assert panel_html(seen)
    gpu = [{**record, "gpu_mb": 900.0} for record in records]
    assert "900 MB on the GPU" in sentence(gpu)


def test_long_trainings_show_a_few_samples_the_first_and_last_among_them() -> None:
    records = [{"step": step, "sample": f"text {step} " + "x" * 500} for step in range(50)]
    html = monitor.samples_html(records)
    assert html.count("<tr>") == 1 + 6
    assert "text 0 " in html
    assert "text 49 " in html
    assert len(html) < 2000


def test_a_training_runs_to_its_end_and_every_curve_can_be_chosen() -> None:
    watched = Monitor(_fake)
    assert (watched.start_button.disabled, watched.stop_button.disabled, watched.resume_button.disabled) == (
        False,
        True,
        True,
    )
    watched.start_button.click()
    watched.join(30)
    assert not watched.running
    assert watched.records == _records()
    assert "Done." in watched.notice.value
    assert "width:100%" in watched.bar.value
    pictures = set()
    for name in CURVES:
        watched.choice.value = name
        pictures.add(watched.curve.value)
    assert len(pictures) == len(CURVES)
    assert (watched.start_button.disabled, watched.stop_button.disabled, watched.resume_button.disabled) == (
        False,
        True,
        True,
    )


def test_what_came_before_is_shown_until_a_training_starts() -> None:
    watched = Monitor(_fake, before=[{**record, "total": 8} for record in _records()])
    assert "step 4 of 8" in watched.bar.value
    assert "earlier training" in watched.notice.value
    watched.start()
    watched.join(30)
    assert watched.records == _records()


def test_stop_ends_the_training_and_go_on_gives_what_an_uninterrupted_one_gives(tmp_path: Path) -> None:
    settings = TrainSettings(steps=6, batch_size=4, eval_every=3)

    def training(folder: Path, resume: bool = False, **how: Any) -> Iterator[StepReport]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        state = load_state(folder / "state.pt") if resume else None
        return train(GPT(small_config()), counting_task(folder), settings, state=state, **how)

    def held_after_two(*, stop: Callable[[], bool], **how: Any) -> Iterator[StepReport]:
        """As `training`, but waiting after step 2 until Stop was clicked, so that the test does not depend on timing."""
        for report in training(tmp_path / "a", stop=stop, **how):
            yield report
            if report.step == 2 and not how["resume"]:
                reached.set()
                clicked.wait(30)

    reached, clicked = threading.Event(), threading.Event()
    watched = Monitor(held_after_two)
    watched.start()
    assert reached.wait(30)
    assert watched.running
    watched.start()  # a second start while it runs changes nothing
    assert not watched.stop_button.disabled
    watched.stop_button.click()
    clicked.set()
    watched.join(30)
    assert [record["step"] for record in watched.records] == [0, 1, 2, 3]
    assert "Stopped after step 3; Resume" in watched.notice.value
    assert watched.start_button.description == "Start over"
    watched.resume_button.click()
    watched.join(30)
    whole = list(training(tmp_path / "b"))
    assert [(r["step"], r.get("loss"), r.get("val_loss")) for r in watched.records] == [
        (r.step, r.record().get("loss"), r.metrics.get("val_loss")) for r in whole
    ]
    assert "Done." in watched.notice.value
    assert watched.resume_button.disabled


def test_what_a_stage_says_and_what_goes_wrong_is_shown() -> None:
    def failing(*, resume: bool, stop: Callable[[], bool], say: Callable[[str], None]) -> Iterator[StepReport]:
        yield next(_reports())
        raise ValueError("no <space> left")

    def talking(*, resume: bool, stop: Callable[[], bool], say: Callable[[str], None]) -> Iterator[StepReport]:
        say("An earlier model is kept.")
        yield from _reports()

    watched = Monitor(failing)
    watched.start()
    watched.join(30)
    assert "no &lt;space&gt; left" in watched.notice.value
    assert not watched.start_button.disabled
    assert watched.stop_button.disabled
    watched = Monitor(talking)
    watched.start()
    watched.join(30)
    assert "An earlier model is kept. Done." in watched.notice.value


def test_the_saved_output_shows_the_earlier_training(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("nanochat.widgets.fallback.show", lambda *args: shown.append(args))
    watched = monitor.watch(partial(_fake), _records())
    [(widget, html, text)] = shown
    assert widget is watched.widget
    assert html == panel_html(_records())
    assert text.startswith("step 4 of 4")


def test_stopped_while_steps_are_tried_out_it_says_that_nothing_was_changed() -> None:
    watched = Monitor(lambda **how: iter(()))
    watched.start()
    watched.join(30)
    assert "Stopped before the first step" in watched.notice.value
    assert (watched.start_button.disabled, watched.resume_button.disabled) == (False, True)
