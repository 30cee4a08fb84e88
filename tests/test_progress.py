"""The progress display of a training, on a terminal and in a log file."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator

import IPython.display
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.train import progress
from nanochat.trainer import StepReport


def report(step: int, total: int = 10, **changes) -> StepReport:
    values = {
        "stage": "base_model", "step": step, "total": total, "loss": 3.25 if step else math.nan, "lr": 1.0,
        "tokens": 512 * step, "tokens_per_s": 6100.0 if step else math.nan, "elapsed_s": 2.0 * step,
        "eta_s": 2.0 * (total - step), "rss_mb": 812.0, "gpu_mb": 0.0, "mfu": 0.7,
    }  # fmt: skip
    return StepReport(**{**values, **changes})


def training(total: int = 10, every: int = 5) -> Iterator[StepReport]:
    for step in range(total + 1):
        seen = {"metrics": {"val_loss": 4.0 - step / 10, "val_bpb": 2.5}, "best": True, "sample": f"Step {step}\nsays"}
        yield report(step, total, **(seen if step % every == 0 else {}))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a second each time it is read."""
    ticks = iter(range(100, 10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


# --- durations and lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (200_000, "55 h 33 min"), (math.nan, "?"), (math.inf, "?"),
    ],
)  # fmt: skip
def test_duration_is_written_as_people_say_it(seconds, text):
    assert progress.duration(seconds) == text


@given(st.floats(0, 1e9))
def test_duration_is_never_off_by_more_than_what_it_leaves_out(seconds):
    text = progress.duration(seconds)
    units = {"s": 1, "min": 60, "h": 3600}
    said = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)", text))
    assert abs(said - seconds) <= (0.5 if "s" in text else 60)


def test_line_before_the_first_step_has_only_what_is_known():
    assert progress.line(report(0, metrics={"val_loss": 6.5})) == "base_model 0/10  validation 6.500"


def test_metrics_without_words_of_their_own_are_named():
    text = progress.line(report(0, metrics={"val_loss": 0.5, "accuracy": 0.75}))
    assert text == "base_model 0/10  validation 0.500, accuracy 0.750"


def test_line_of_a_step_has_loss_speed_memory_and_what_is_left():
    assert progress.line(report(4)) == "base_model 4/10  loss 3.250  6,100 tokens/s  812 MB  12 s left"


def test_line_of_a_validation_marks_the_best_and_the_last_line_leaves_nothing():
    text = progress.line(report(10, metrics={"val_loss": 3.0, "val_bpb": 1.5}, best=True, gpu_mb=2048.0))
    assert text == (
        "base_model 10/10  loss 3.250  validation 3.000 (1.500 bits per byte) *  6,100 tokens/s  812 MB + 2,048 MB GPU"
    )


# --- a stream -----------------------------------------------------------------------------------------------------------


def test_a_log_has_a_line_for_each_validation_and_no_controls(clock):
    log = io.StringIO()
    seen = progress.follow(training(), log)
    assert [r.step for r in seen] == list(range(11))
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines[::2]] == ["0/10", "5/10", "10/10"]
    assert lines[1::2] == [f"    says: {f'Step {step}{chr(10)}says'!r}" for step in (0, 5, 10)]
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_a_terminal_shows_every_step_in_one_row_that_is_overwritten(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Terminal()
    progress.follow(training(), screen)
    rows = screen.getvalue().split("\r\x1b[2K")
    assert [row.split()[1] for row in rows[1:]] == [f"{step}/10" for step in range(11)]
    passing = [row for row in rows[1:] if "validation" not in row]
    assert len(passing) == 8
    assert all(len(row) < 40 and "\n" not in row for row in passing)


def test_a_terminal_is_not_flooded_by_fast_steps(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 5.0)
    screen = Terminal()
    progress.follow(training(1000, every=1000), screen)
    assert screen.getvalue().count("\r") <= 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("diverged")])
def test_what_goes_wrong_leaves_the_cursor_on_a_row_of_its_own(clock, error):
    def breaking() -> Iterator[StepReport]:
        yield report(1)
        raise error

    screen = Terminal()
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        progress.follow(breaking(), screen)
    assert screen.getvalue().endswith("left\n")


def test_a_stream_that_is_not_named_is_stderr(capsys):
    assert progress.follow([]) == []
    progress.follow(training())
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("base_model 0/10")


# --- a notebook ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def panel(monkeypatch):
    """The successive contents of a cell's single display."""
    shown = []

    class Handle:
        def update(self, data: dict, raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: dict, raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        shown.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def test_a_notebook_has_one_panel_with_a_bar_that_fills(clock, panel):
    seen = progress.follow_in_notebook(training())
    assert [r.step for r in seen] == list(range(11))
    filled = [text.count("█") for text in panel if "░" in text or "█" in text]
    assert filled == sorted(filled) and len(filled) == 10


def test_what_stays_in_a_notebook_are_the_validations(clock, panel):
    progress.follow_in_notebook(training())
    lines = panel[-1].splitlines()
    assert [line.split()[1] for line in lines[::2]] == ["0/10", "5/10", "10/10"]
    assert "█" not in panel[-1] and "░" not in panel[-1]


def test_a_training_that_was_stopped_shows_how_far_it_came(clock, panel):
    progress.follow_in_notebook(r for r in training() if r.step <= 7)
    assert panel[-1].splitlines()[-1].startswith("base_model 7/10") and "░" not in panel[-1]


def test_an_interrupt_in_a_notebook_goes_on_up_and_leaves_what_was_seen(clock, panel):
    def breaking() -> Iterator[StepReport]:
        yield from (r for r in training() if r.step <= 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        progress.follow_in_notebook(breaking())
    assert "base_model 5/10" in panel[-1] and panel[-1].splitlines()[-1].startswith("base_model 6/10")


def test_nothing_to_train_is_said(panel):
    assert progress.follow_in_notebook([]) == []
    assert panel[-1] == "nothing was trained"
