"""The benchmarks: how they compare, what their table says, and one run of each group at a size that takes seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import paths
from nanochat.bench import (
    generating,
    hugging_face,
    machine,
    memory,
    original,
    shakespeare,
    shapes,
    step_memory,
    suite,
    table,
    texts,
    timing,
    training,
)
from nanochat.bench.rows import Row, from_record, measured, unmeasured
from nanochat.bench.timing import Measured
from nanochat.cli import parser as cli
from nanochat.config import ModelConfig, UserError
from nanochat.data import sources

CPU = torch.device("cpu")
MACHINE = {
    "processor": "an abacus", "cores": 2, "threads": 2, "memory_gb": 8.0, "device": "cpu", "gflops": {"float32": 100},
    "system": "Linux", "python": "3.12.1", "torch": "2.9.0", "nanochat": "0.1.0",
}  # fmt: skip
MET = Row("g", "quick", 2.0, "x", "by hand", target=1.5, low=1.9, high=2.2)
MISSED = Row("g", "small", 1500.0, "MB", "by hand", target=1200.0, at_most=True)
TOLD = Row("h", "speed", 12.5, "MB/s", "by hand")
ABSENT = unmeasured("h", "against others", "they are not installed", target=1.5)


# --- timing


class Clock:
    """A clock that advances only by the durations of the candidates."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float):
        takes = iter(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(takes)

        return run


def test_candidates_run_in_turns_and_each_round_begins_with_another_one() -> None:
    clock = Clock()
    found = timing.interleave(
        {"a": clock.candidate("a", 100, 1, 2, 3), "b": clock.candidate("b", 100, 10, 20, 30)}, rounds=3, clock=clock
    )
    assert clock.calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 2, 3], "b": [10, 20, 30]}  # the first call of each is not among them


def test_a_ratio_is_taken_within_each_round_so_that_a_slow_machine_does_not_change_it() -> None:
    ours, theirs = [1.0, 5.0, 1.0], [2.0, 10.0, 2.2]  # the machine was five times slower in the second round
    assert timing.ratio(theirs, ours) == pytest.approx((2.0, 2.0, 2.2))
    assert timing.ratio(theirs, ours, scale=10) == pytest.approx((20.0, 20.0, 22.0))


@given(st.lists(st.floats(0.001, 1000), min_size=1))
def test_the_median_lies_between_the_extremes(values: list[float]) -> None:
    found = timing.median(values)
    assert found.low == min(values) <= found.value <= max(values) == found.high


# --- rows and table


@pytest.mark.parametrize(
    ("result", "at_most", "met", "verdict"),
    [
        (1.5, False, True, "met"), (1.2, False, False, "missed: 20% too little"),
        (1.5, True, True, "met"), (1.8, True, False, "missed: 20% too much"),
    ],
)  # fmt: skip
def test_a_row_says_whether_its_target_is_met_or_by_how_much_not(result, at_most, met, verdict) -> None:
    row = Row("g", "n", result, "x", "how", target=1.5, at_most=at_most)
    assert (row.met, row.verdict) == (met, verdict)
    assert (row.share >= 1) is met


def test_a_row_without_a_target_makes_no_claim() -> None:
    assert (TOLD.met, TOLD.verdict, TOLD.share) == (None, "", None)


def test_what_could_not_be_measured_says_why_and_is_not_counted_as_met() -> None:
    assert ABSENT.result is None
    assert ABSENT.met is None
    assert ABSENT.verdict == "not measured: they are not installed"


def test_the_table_has_result_and_target_side_by_side_and_counts_what_is_met() -> None:
    shown = table.table(table.Results(MACHINE, [MET, MISSED, TOLD, ABSENT], 90.0))
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert lines["quick"].split("  ", 1)[1].split() == ["2", "x", "(1.9-2.2)", ">=", "1.5", "met"]
    assert "1,500 MB" in lines["small"] and "<= 1,200" in lines["small"] and "missed: 25% too much" in lines["small"]
    assert "not measured: they are not installed" in lines["against others"]
    assert "1 of 3 targets met in 1.5 minutes on: an abacus, 2 cores" in shown


def test_results_are_the_same_after_writing_and_reading(tmp_path) -> None:
    results = table.Results(MACHINE, [MET, MISSED, TOLD, ABSENT], 12.5)
    picture = table.save(results, tmp_path / "out" / "bench.json")
    assert table.load(tmp_path / "out" / "bench.json") == results
    assert picture.read_bytes().startswith(b"\x89PNG")
    records = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert [record["met"] for record in records] == [True, False, None, None]
    assert [from_record(record) for record in records] == results.rows


@pytest.mark.parametrize("content", ["", "[]", '{"rows": []}', '{"machine": {}, "seconds": 1, "rows": [{"nam": 1}]}'])
def test_what_is_no_result_file_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json holds no results"):
        table.load(tmp_path / "x.json")


def test_the_figure_has_a_bar_for_each_target_that_was_measured_and_can_be_empty() -> None:
    drawn = table.figure(table.Results(MACHINE, [MET, MISSED, TOLD, ABSENT], 1.0))
    ends = [bar.get_x() + bar.get_width() for bar in drawn.axes[0].patches]
    assert ends == pytest.approx([2 / 1.5, 1200 / 1500])
    assert table.figure(table.Results(MACHINE, [TOLD], 1.0)).axes


# --- the suite


def group(*rows: Row):
    return (1.0, lambda device, left, say: list(rows))


def refusing(device, left, say):
    raise UserError("there is no such file; get it")


def test_a_group_that_cannot_be_measured_says_so_and_the_others_go_on(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(suite, "GROUPS", {"g": group(MET), "x": (1.0, refusing), "h": group(TOLD)})
    monkeypatch.setattr(machine, "describe", lambda device: MACHINE)
    path = tmp_path / "bench.json"
    assert cli.main(["bench", "--json", str(path)]) == 0
    said = capsys.readouterr()
    assert [row.name for row in table.load(path).rows] == ["quick", "x", "speed"]
    assert "not measured: there is no such file; get it" in said.out
    assert "[2/3] x, about 1 s" in said.err


def test_one_group_alone(monkeypatch, capsys) -> None:
    monkeypatch.setattr(suite, "GROUPS", {"g": group(MET), "x": (1.0, refusing)})
    monkeypatch.setattr(machine, "describe", lambda device: MACHINE)
    assert cli.main(["bench", "--only", "g"]) == 0
    assert "1 of 1 targets met" in capsys.readouterr().out


def test_an_unknown_group_is_answered_with_the_nearest(capsys) -> None:
    assert cli.main(["bench", "--only", "generatoin"]) == 2
    assert "did you mean 'generation'?" in capsys.readouterr().err


def test_the_training_on_shakespeare_gets_the_time_that_is_left(monkeypatch) -> None:
    given = []

    def last(device, left, say):
        given.append(left)
        return []

    monkeypatch.setattr(suite, "GROUPS", {"last": (1.0, last)})
    monkeypatch.setattr(machine, "describe", lambda device: MACHINE)
    suite.run(say=str)
    assert 0 < given[0] <= suite.SECONDS


def test_without_transformers_the_comparison_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(hugging_face, "installed", lambda: False)
    rows = training._compare(TINY, CPU, torch.float32, 1, 16, False)
    assert [row.name.split(":")[0] for row in rows] == ["against Hugging Face", "share of the matrix rate"]
    assert rows[0].verdict == 'not measured: transformers is not installed; pip install "nanochat[hf]"'
    assert rows[1].result > 0


def test_without_a_compiler_the_eager_rows_are_there(monkeypatch) -> None:
    def broken(*args, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch.nn.Module.compile", broken)
    rows = training._compare(TINY, CPU, torch.float32, 1, 16, True)
    assert [row.verdict for row in rows if "compiled" in row.name] == [
        "not measured: torch.compile does not work here (RuntimeError); install a C++ compiler"
    ]
    assert any("eager" in row.name and row.result for row in rows)


# --- what the groups say


def test_both_loops_without_and_with_a_cache_write_the_same() -> None:
    from small import small_model

    from nanochat.generate import generate

    model = small_model()
    assert generating.uncached(model, [1, 2, 3], 8) == generate(model, [[1, 2, 3]], max_new_tokens=8)[0]


def test_made_up_text_is_always_the_same_and_never_runs_out_of_new_words() -> None:
    one, other = ("".join(texts.written_text(400_000)) for _ in range(2))
    assert one == other
    assert 400_000 <= len(one) < 500_000
    words = one.replace(".", "").split()
    first, second = (set(half) for half in (words[: len(words) // 2], words[len(words) // 2 :]))
    assert len(second - first) > len(first) / 10


def test_the_peak_is_that_of_the_process_and_of_those_it_starts() -> None:
    block = "b = b'x' * 120_000_000\nfor _ in range(10**7): pass"  # and it is kept for a while
    small, _ = memory.peak_mb(["-c", "pass"])
    assert 110 < memory.peak_mb(["-c", block])[0] - small < 200
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {block!r}])"
    assert memory.peak_mb(["-c", nested])[0] - small > 110


def test_a_part_that_fails_says_its_last_line() -> None:
    with pytest.raises(UserError, match=r"a part of the bench failed .*ZeroDivisionError"):
        memory.peak_mb(["-c", "1 / 0"])


def validations(*found: tuple[int, float, float]) -> list[shakespeare.Validation]:
    return [shakespeare.Validation(step, seconds, 1.0, bpb) for step, seconds, bpb in found]


def test_a_result_counts_from_the_first_validation_that_is_as_good(monkeypatch) -> None:
    seen = validations((0, 5.0, 7.0), (25, 20.0, 2.7), (50, 30.0, 2.5), (75, 60.0, 2.12), (100, 90.0, 2.2))
    monkeypatch.setattr(shakespeare, "learning", lambda *args, **changes: (seen, "a tenth"))
    monkeypatch.setattr(shakespeare, "original_seconds", lambda: original.Original(2.0, 1.0))
    rows = shakespeare.rows(100.0)
    assert [row.result for row in rows] == pytest.approx([20 / 60, 0.5, 1.0, (300 * 2 + 12 * 200) / 30])
    assert [row.met for row in rows] == [None, None, True, True]


def test_a_result_that_was_not_reached_is_said_with_the_best_one(monkeypatch) -> None:
    monkeypatch.setattr(
        shakespeare, "learning", lambda *args, **changes: (validations((0, 6.0, 7.0), (25, 30.0, 3.0)), "")
    )
    monkeypatch.setattr(shakespeare, "original_seconds", lambda: original.Original(2.0, 1.0))
    assert {row.verdict for row in shakespeare.rows(100.0)} == {
        "not reached: 3.000 was the best of 0.5 minutes; --only shakespeare gives it more"
    }


def test_what_the_sprint_leaves_of_the_time_goes_to_the_long_training(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(shakespeare, "learning", lambda seconds, *args, **changes: given.append(seconds) or ([], ""))
    monkeypatch.setattr(shakespeare, "original_seconds", lambda: original.Original(2.0, 1.0))
    shakespeare.rows(100.0)
    assert given[0] == 25.0
    assert 75.0 < given[1] < 100.0


# --- each group for real, at a size that takes seconds

TINY = shapes.Shape("tiny", ModelConfig(61, 32, 2, 2, 32), 2)


def check(rows: list[Row], count: int) -> None:
    """Check that everything was measured and can be written and displayed."""
    assert len(rows) == count
    assert [row.verdict for row in rows if row.result is None] == []
    assert all(row.result > 0 and row.how for row in rows)
    results = table.Results(MACHINE, rows, 1.0)
    assert json.loads(json.dumps([row.record() for row in rows], allow_nan=False))
    assert all(row.name in table.table(results) for row in rows)


@pytest.mark.slow
def test_an_opponent_that_ends_is_an_error() -> None:
    impossible = replace(TINY, batch_size=-1)
    with (
        hugging_face.separate_step(impossible, CPU, torch.float32) as step,
        pytest.raises(UserError, match="step failed"),
    ):
        step()


@pytest.mark.slow
def test_training_for_real() -> None:
    pytest.importorskip("transformers")
    rows = training.rows(CPU, [TINY], rounds=2, size=64, compiled=False)
    check(rows, 3 * len(training.precisions(CPU)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch hides its own warnings while it compiles; errors it cannot hide
def test_training_compiled_for_real() -> None:
    rows = training._compare(TINY, CPU, torch.float32, 1, 16, True)
    assert [row for row in rows if "share" in row.name and "compiled" in row.name and row.result]


@pytest.mark.slow
def test_generation_for_real() -> None:
    check(generating.rows(CPU, contexts=(16, 48), new=4, rounds=2), 7)


@pytest.mark.slow
def test_tokenization_and_preparation_for_real(tmp_path, monkeypatch) -> None:
    def absent():
        raise UserError("GPT-2's vocabulary cannot be read; save it")

    monkeypatch.setattr(texts, "gpt2", absent)
    *rows, last = texts.tokenization(n_bytes=400_000, rounds=1)
    check(rows, 2)
    assert last.verdict == "not measured: GPT-2's vocabulary cannot be read; save it"
    check(texts.preparation(sizes_mb=(0.5,)), 2)


@pytest.mark.slow
def test_memory_of_a_step_for_real(monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(step_memory, "SHAPES", (TINY,))
    monkeypatch.setattr(step_memory, "our_step", lambda *args: lambda: ran.append(args[0]))
    step_memory.main()
    assert ran == [TINY] * step_memory.STEPS
    monkeypatch.setattr(step_memory, "peak_mb", lambda arguments: (900.0, 1.0) if "-m" in arguments else (0.0, 0.0))
    monkeypatch.setattr(step_memory, "torch_alone_mb", lambda: 200.0)
    assert [row.result for row in step_memory.rows()] == [900.0, 700.0]


@pytest.mark.slow
def test_the_originals_recipe_for_real() -> None:
    found = original.measure(TINY, rounds=1)
    assert found.step > 0 and found.batch > 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with a short play in place of tiny_shakespeare."""
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    downloads = paths.data_dir("downloads")
    downloads.mkdir(parents=True)
    scenes = "".join(f"ROMEO:\nThe {n} stars are {n % 7} and night is day.\n\n" for n in range(1500))
    (downloads / sources.CORPORA["tiny_shakespeare"].file_name).write_text(scenes)
    return tmp_path


@pytest.mark.slow
def test_learning_for_real(home) -> None:
    seen = []
    found, split = shakespeare.learning(
        60, seen.append, model="very_small_for_test", tokenizer="bpe:300", steps=4, eval_every=2, batch_size=2,
        compile=False,
    )  # fmt: skip
    assert [moment.step for moment in found] == [0, 2, 4]
    assert 0 < found[0].seconds <= found[-1].seconds
    assert found[-1].eval_s < found[-1].seconds
    assert len(seen) == 3
    assert "nanoGPT" in split
    assert [path.name for path in home.iterdir()] == ["data"]  # what was trained is gone


@pytest.mark.slow
def test_a_machine_is_described() -> None:
    said = machine.sentence(machine.describe(CPU))
    assert f"PyTorch {torch.__version__}" in said and "GFLOP/s in float32" in said


def test_a_training_that_fails_is_an_error_not_an_empty_result(home) -> None:
    with pytest.raises(UserError, match="training of the benchmark failed"):
        shakespeare.learning(1, str, tokenizer="nonsense")


def test_measured_rows_keep_the_extremes() -> None:
    row = measured("g", "n", Measured(2.0, 1.0, 3.0), "x", "how", target=1.0)
    assert (row.result, row.low, row.high, row.met) == (2.0, 1.0, 3.0, True)
    assert replace(row, target=None).met is None
