"""Exercises: every stub fails its check, every solution passes, and wrong answers get helpful messages."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import exercises
from nanochat.config import UserError
from nanochat.exercises import compare

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("0*.ipynb"))


@pytest.fixture(autouse=True)
def _no_answers_yet(monkeypatch):
    exercises.names()  # all are registered now
    for exercise in exercises._EXERCISES.values():
        monkeypatch.setattr(exercise, "wrong", 0)


def _exercises(path: Path) -> list[tuple[str, str]]:
    """(stub, solution) of each cell tagged `exercise`; the solution is in the markdown cell after it."""
    cells = nbformat.read(path, as_version=4).cells
    found = []
    for cell, behind in zip(cells, [*cells[1:], nbformat.v4.new_markdown_cell()], strict=True):
        if "exercise" in cell.metadata.get("tags", ()):
            folded = re.search(r"<details>.*?```python\n(.*?)```.*?</details>", behind.source, re.DOTALL)
            assert behind.cell_type == "markdown" and folded, f"no solution behind: {cell.source[:60]}"
            found.append((cell.source, folded[1]))
    return found


def _imports(path: Path) -> str:
    """The import statements of a notebook, which its exercises may rely on."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in sources for node in ast.parse(source).body]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def _answer(source: str, imports: str) -> tuple[str, object]:
    """Run a cell that ends in `check(name, answer)`: returns the two."""
    given: list[tuple[str, object]] = []
    scope: dict[str, object] = {}
    exec(imports, scope)
    scope["check"] = lambda name, answer: given.append((name, answer))
    exec(source, scope)
    assert len(given) == 1
    return given[0]


ALL = [
    pytest.param(path, stub, solution, id=f"{path.stem[:2]}-{i}")
    for path in NOTEBOOKS
    for i, (stub, solution) in enumerate(_exercises(path))
]


@pytest.mark.parametrize(("path", "stub", "solution"), ALL)
def test_stub_fails_its_check_and_solution_passes(path, stub, solution):
    imports = _imports(path)
    name, answer = _answer(stub, imports)
    refused = exercises.verdict(name, answer)
    assert not refused.right
    assert refused.text.startswith("Not yet: ") and "Hint 1 of" in refused.text

    call = stub[stub.rindex("check(") :]
    accepted = exercises.verdict(*_answer(solution + "\n\n" + call, imports))
    assert accepted.right, accepted.text
    assert accepted.text.startswith("Right: ")


def test_every_lesson_with_checks_has_at_least_three_exercises_and_asks_all_of_them():
    asked = [re.search(r'check\("(.+?)"', stub)[1] for path in NOTEBOOKS for stub, _ in _exercises(path)]
    assert sorted(asked) == exercises.names()
    for path in NOTEBOOKS:
        lesson = path.stem[:2]
        assert sum(name.startswith(lesson) for name in asked) >= 3, path.name


def test_each_wrong_answer_gets_the_next_hint_and_the_last_one_stays():
    said = [exercises.verdict("01.windows", lambda n, t: n).text for _ in range(5)]
    numbers = [int(re.search(r"Hint (\d) of 3", text)[1]) for text in said]
    assert numbers == [1, 2, 3, 3, 3]
    assert len({text for text in said}) == 3


def test_right_answer_takes_the_hints_back_to_the_first():
    exercises.verdict("01.windows", lambda n, t: n)
    assert exercises.verdict("01.windows", lambda n, t: max(0, n - t)).right
    assert "Hint 1 of" in exercises.verdict("01.windows", lambda n, t: n).text


@pytest.mark.parametrize("answer", [None, ..., 7, "text", lambda: 1, lambda *a: 1 / 0, lambda *a: None, lambda *a: "x"])
@pytest.mark.parametrize("name", exercises.names())
def test_no_wrong_answer_of_whatever_kind_raises_or_passes(name, answer):
    verdict = exercises.verdict(name, answer)
    assert not verdict.right
    assert verdict.text.startswith("Not yet: ")


def test_exception_of_an_answer_is_told_in_one_line():
    text = exercises.verdict("01.windows", lambda n, t: 1 / 0).text
    assert text.splitlines()[0] == "Not yet: it stops with ZeroDivisionError: division by zero"


def test_check_prints_the_verdict_and_returns_nothing(capsys):
    assert exercises.check("01.windows", None) is None
    assert capsys.readouterr().out.startswith("Not yet: there is no answer yet.\nHint 1 of 3: ")


def test_unknown_exercise_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean '02\.softmax'"):
        exercises.check("02.softmaks", None)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        pytest.param("01.bytes_per_token", lambda text, tok: len(text) / len(tok.encode(text)), id="characters"),
        pytest.param("01.expand", lambda id, merges: bytes([id % 256]), id="no-merges"),
        pytest.param("01.windows", lambda n, t: max(0, n - t + 1), id="no-last-target"),
        pytest.param("01.windows", lambda n, t: n - t, id="negative"),
        pytest.param("01.leak", lambda train, val: len(set(train) & set(val)) / max(1, len(set(val))), id="distinct"),
        pytest.param("02.softmax", lambda s: s.exp() / s.exp().sum(), id="overflows"),
        pytest.param("02.window_mask", lambda T, w: torch.ones(T, T).tril().bool(), id="no-window"),
        pytest.param("02.window_mask", lambda T, w: torch.ones(T, T).tril().triu(-w).bool(), id="one-too-wide"),
        pytest.param("02.count", lambda V, T, L, C: V * C + T * C + 12 * L * C * C, id="no-biases"),
        pytest.param(
            "02.bits_per_byte",
            lambda nats, n_bytes: float(np.mean(np.array(nats) / n_bytes)) / math.log(2),
            id="mean-of-quotients",
        ),
        pytest.param("02.bits_per_byte", lambda nats, n_bytes: sum(nats) / sum(n_bytes), id="still-nats"),
    ],
)
def test_usual_mistakes_are_not_accepted(name, answer):
    assert not exercises.verdict(name, answer).right


values = st.recursive(
    st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_compare_accepts_what_is_equal(value):
    assert compare("it", value, value) is None


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (0.5, 0.6), (1.0, [1.0, 1.0]), ([1.0, 1.0], 1.0), ([1, 2], [1, 2, 3]), ("a", b"a"), ({1: 2}, {1: 3}), ([], 0),
        ([[1], [2, 3]], [[1], [2, 4]]), (torch.zeros(2, 1), torch.zeros(1, 2)), (np.array([math.nan]), np.array([0.0])),
    ],
)  # fmt: skip
def test_compare_tells_what_differs(got, wanted):
    text = compare("it", got, wanted)
    assert text.startswith("it should ")


def test_compare_takes_tensors_for_lists_and_forgives_rounding():
    assert compare("it", torch.tensor([0.33333, 0.66667]), [1 / 3, 2 / 3]) is None
    assert compare("it", torch.tensor(3), 3) is None
    assert compare("it", [torch.tensor([1, 2])], [[1, 2]]) is None


def test_compare_names_both_shapes():
    assert compare("it", np.zeros((2, 3)), np.zeros((3, 2))) == "it should have the shape (3, 2), yours has (2, 3)."
