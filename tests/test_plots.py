"""Figures: the description says what was drawn, everything is in view, and no input text breaks a figure."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nanochat.config import UserError
from nanochat.figures import plots, style
from nanochat.tokenizer import train_bpe


def _record(stage: str, step: int, loss: float, **more: float) -> dict[str, Any]:
    values = {"lr": 0.5, "tokens_per_s": 1000.0, "rss_mb": 400.0, "gpu_mb": 0.0, "mfu": 0.5}
    return {"stage": stage, "step": step, "loss": loss, **values, **more}


def _metrics() -> list[dict[str, Any]]:
    """Ten steps of pretraining and two of finetuning, as in metrics.jsonl, where the first step has no loss."""
    nan = float("nan")
    metrics = [_record("base_model", 0, nan, lr=0.0, tokens_per_s=nan, mfu=nan, val_loss=6.0, val_bpb=3.0)]
    for step in range(1, 11):
        rate = min(step / 2, 1.0) if step < 6 else (10 - step) / 5
        metrics.append(_record("base_model", step, 6.0 - 0.4 * step, lr=rate, rss_mb=400.0 + step))
    metrics[5] |= {"val_loss": 3.0, "val_bpb": 1.5}
    metrics[10] |= {"val_loss": 3.5, "val_bpb": 1.75}
    metrics.append(_record("fine_tuned", 1, 2.0, gpu_mb=900.0, tokens_per_s=3000.0, val_loss=1.0, val_bpb=0.5))
    metrics.append(_record("fine_tuned", 2, 1.0, gpu_mb=800.0, tokens_per_s=5000.0))
    return metrics


def _pixels(figure: Figure) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(plots.png(figure, dpi=50)))


def _all_in_view(figure: Figure) -> bool:
    """Whether all points of all lines lie inside their axes."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        for line in ax.lines:
            if line.get_transform() != ax.transData:
                continue  # a line across the whole axes
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            if not ((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).all():
                return False
    return True


FIGURES = {
    "losses": lambda: plots.losses(_metrics()),
    "learning_rate": lambda: plots.learning_rate(_metrics()),
    "memory": lambda: plots.memory(_metrics()),
    "speed": lambda: plots.speed(_metrics()),
    "histogram": lambda: plots.histogram([1, 2, 2, 3], "Lengths", "tokens"),
    "bars": lambda: plots.bars(["a", "b"], {"before": [0.1, 0.2], "after": [0.8, 0.9]}, "Scores"),
    "lines": lambda: plots.lines({"loss": ([0, 1, 2], [3.0, 1.0, 2.0]), "best": ([1], [1.0])}, "Loss", "step"),
    "heatmap": lambda: plots.heatmap([[1.0, np.nan], [0.5, 0.5]], "ab", "cd", "Attention"),
    "pipeline": lambda: plots.pipeline("02"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_sentence_a_white_ground_and_no_pyplot_state(name: str) -> None:
    figure, sentence = FIGURES[name]()
    assert sentence.endswith(".")
    assert "\n" not in sentence
    pixels = _pixels(figure)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1.0).all()  # the corners: white and opaque
    assert (pixels[..., 3] == 1.0).all()
    assert (pixels[..., :3] < 0.9).any()  # something is drawn
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    assert plots.png(figure, dpi=50) == plots.png(figure, dpi=50)


@pytest.mark.parametrize("draw", [plots.losses, plots.learning_rate, plots.memory, plots.speed])
def test_curves_of_every_stage_are_in_view_and_a_run_without_records_is_said(draw: Any) -> None:
    figure, _ = draw(_metrics())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["pretraining", "finetuning"]
    assert _all_in_view(figure)
    assert "nothing has been trained yet" in draw([])[1]
    alone, _ = draw(_metrics()[:1])  # only the validation before the first step
    assert _all_in_view(alone)


def test_lines_are_in_view_and_told_with_their_first_last_and_lowest_values() -> None:
    figure, sentence = plots.lines({"loss": ([0, 1, 2], [3.0, 1.0, 2.0]), "best": ([1], [1.0])}, "Descent")
    assert sentence == "Descent: loss goes from 3 to 2, lowest 1 at 1; best is 1."
    assert _all_in_view(figure)
    assert plots.lines({"loss": ([], [])}, "Descent")[1] == "Descent: there are no points."


def test_losses_are_told_in_bits_per_byte() -> None:
    figure, sentence = plots.losses(_metrics())
    assert sentence == (
        "In pretraining, validation went from 3.00 to 1.75 bits per byte by step 10, lowest 1.50 at step 5, and "
        "training ended at 1.00. In finetuning, validation was 0.50 bits per byte at step 1 and training ended at 0.50."
    )
    assert figure.axes[0].get_ylabel() == "loss, bits per byte"


def test_losses_without_bits_per_byte_stay_in_nats() -> None:
    records = [{key: value for key, value in record.items() if key != "val_bpb"} for record in _metrics()]
    figure, sentence = plots.losses(records)
    assert "from 6.00 to 3.50 nats per token" in sentence
    assert figure.axes[0].get_ylabel() == "loss, nats per token"


def test_learning_rate_memory_and_speed_are_told_with_their_numbers() -> None:
    assert plots.learning_rate(_metrics())[1].startswith(
        "In pretraining the learning rate rises until step 2, stays at 1 up to step 5 and is 0 at step 10."
    )
    memory = plots.memory(_metrics())[1]
    assert memory.startswith("In pretraining, the process used at most 410 MB (step 10).")
    assert memory.endswith("the GPU used at most 900 MB (step 1).")
    assert "4,000 tokens a second, 50% of" in plots.speed(_metrics())[1]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 80))
def test_smoothing_keeps_length_and_range_and_leaves_constants_alone(values: list[float], window: int) -> None:
    smoothed = plots.smooth(np.array(values), window)
    assert len(smoothed) == len(values)
    assert min(values) - 1e-6 <= smoothed.min() and smoothed.max() <= max(values) + 1e-6
    assert plots.smooth(np.full(len(values), 3.0), window) == pytest.approx(3.0)


def test_histogram_counts_whole_numbers_one_by_one() -> None:
    figure, sentence = plots.histogram([3, 1, 2, 2], "Lengths", "tokens")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1, 2, 1]
    assert sentence == "Lengths: 4 values from 1 to 3, median 2, mean 2; most often (2 times) 2."
    spread = plots.histogram(np.linspace(0, 1000, 500), "Many", "x")[0]
    assert sum(bar.get_height() for bar in spread.axes[0].patches) == 500
    assert plots.histogram([], "None", "x")[1] == "None: there are no values."


def test_token_lengths_are_bytes_without_specials() -> None:
    tok = train_bpe(["aaaa aaaa aaaa"] * 5, 270)
    ids = [tok.eot, *tok.encode("aaaa"), *tok.encode("é"), tok.end]
    lengths = [len(tok.token_bytes(id)) for id in ids[1:-1]]
    _, sentence = plots.token_lengths(tok, ids)
    assert f"{len(lengths)} tokens stand for 6 bytes, {6 / len(lengths):.2f} bytes a token" in sentence
    assert plots.token_lengths(tok, [tok.eot])[1] == "Length of tokens: there are no tokens of text."


def test_bars_tell_the_extremes_of_each_series() -> None:
    figure, sentence = plots.bars(["x", " y"], {"before": [0.25, 0.5], "after": [0.875, float("nan")]}, "EM")
    assert sentence == "EM: before: highest ' y' (0.5), lowest 'x' (0.25); after: highest 'x' (0.875), lowest ' y' (0)."
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["x", "␣y"]
    assert plots.bars([], [], "EM")[1] == "EM: there is nothing to compare."


def test_heatmap_names_the_largest_cell_and_marks_what_is_masked() -> None:
    figure, sentence = plots.heatmap([[0.5, np.nan], [0.25, 0.75]], ["k1", "k2"], ["q1", "q2"], "Attention")
    assert sentence == (
        "Attention: 2 rows by 2 columns, largest value 0.75 in row 'q2', column 'k2'; mean 0.5, masked cells: 1."
    )
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0.25", "0.50", "0.75"]
    signed = plots.heatmap([[-2.0, 1.0]], "ab", "c", "Weights")[0].axes[0].images[0]
    assert signed.get_clim() == (-2.0, 2.0)  # zero is white
    assert plots.heatmap([[np.nan]], "a", "b", "Empty")[1] == "Empty: there are no values."


def test_large_heatmaps_stay_readable() -> None:
    figure, _ = plots.heatmap(np.zeros((3, 200)), range(200), "abc", "Wide")
    assert len(figure.axes[0].get_xticks()) <= 40
    assert not figure.axes[0].texts
    assert max(figure.get_size_inches()) < 10


@pytest.mark.parametrize(
    ("here", "step"), [("01", 1), ("01_data_loading", 1), ("pretraining", 3), ("07 scaling", 7), ("05_playground", 5)]
)
def test_pipeline_marks_where_you_are(here: str, step: int) -> None:
    figure, sentence = plots.pipeline(here)
    name = plots.STEPS[step - 1][0]
    assert sentence.startswith(f"You are at {name} (") and f"step {step} of 7" in sentence
    bold = [text.get_text() for text in figure.axes[0].texts if text.get_fontweight() == "bold"]
    assert bold == [name, "you are here ▾"]


@pytest.mark.parametrize("here", ["", "08", "cooking"])
def test_pipeline_refuses_a_step_that_does_not_exist(here: str) -> None:
    with pytest.raises(UserError, match="unknown step of the course"):
        plots.pipeline(here)


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_can_be_a_label(text: str, title: str) -> None:
    # Without a warning about missing glyphs and without formulas: pytest turns warnings into errors.
    assert plots.bars([text], [1.0], title)[0].draw_without_rendering() is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("5$ and 6$", r"5\$ and 6\$"),
        ("a\nb\t", r"a\nb\t"),
        ("日", r"\u65e5"),
        ("🙂", r"\U0001f642"),
        ("é ␣ ▾", "é ␣ ▾"),
    ],
)
def test_labels_show_what_cannot_be_drawn_as_python_writes_it(text: str, shown: str) -> None:
    assert style.plain(text) == shown


def test_show_displays_where_ipython_runs_and_always_prints_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, sentence = plots.pipeline("01")
    displayed: list[Any] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    plots.show(figure, sentence)
    printed = capsys.readouterr().out
    assert displayed == []
    assert printed.split() == sentence.split()
    assert max(map(len, printed.splitlines())) <= 90, "JupyterLab would break the line inside a word"
    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace())
    plots.show(figure, sentence)
    assert capsys.readouterr().out == printed
    (image,) = displayed
    assert image.data.startswith(b"\x89PNG")
    assert image._repr_mimebundle_()[1]["image/png"]["width"] == round(figure.get_figwidth() * 96)


def test_drawing_imports_neither_pyplot_nor_ipython() -> None:
    code = (
        "import sys; from nanochat.figures import plots; plots.show(*plots.bars(['a'], [1.0], 'T'));"
        "assert not {'matplotlib.pyplot', 'IPython', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "T: highest 'a' (1).\n")
