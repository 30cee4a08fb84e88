"""Models side by side: the same questions, each model's own answers, and no text that is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ANSWERS, tiny_checkpoint

from nanochat import checkpoint
from nanochat.data import questions
from nanochat.data.questions import Conversation, Turn
from nanochat.widgets import compare


@pytest.fixture
def models(nanochat_home: Path) -> dict[str, checkpoint.Checkpoint]:
    loaded = checkpoint.load(tiny_checkpoint(nanochat_home))
    other = checkpoint.load(tiny_checkpoint(nanochat_home, block_size=48))
    return {"one": loaded, "<other>": other}


def test_every_model_answers_every_question(models: dict[str, checkpoint.Checkpoint]) -> None:
    asked = [questions.ask("hello"), questions.ask("html")]
    said = compare.answers(models, asked)
    assert said == {name: [ANSWERS["hello"], ANSWERS["html"]] for name in models}


def test_the_table_has_passages_and_accepted_answers_where_they_are_known_and_escapes_all() -> None:
    conversation = Conversation((Turn("user", "who? <i>"),), context="<b>Ann</b>", answers=("Ann", "A."))
    html = compare.answers_html([conversation], {"<base>": ["<script>"], "tuned": ["Ann"]})
    for part in ("&lt;b&gt;Ann", "who? &lt;i&gt;", "Ann / A.", "&lt;base&gt;", "&lt;script&gt;", "accepted"):
        assert part in html
    assert "<b>" not in html
    assert "accepted" not in compare.answers_html([questions.ask("who?")], {"base": ["me"]})


def test_the_widget_answers_what_is_typed_and_shows_errors(models: dict[str, checkpoint.Checkpoint]) -> None:
    asked, _, out = compare.explorer(models, "hello").children
    assert out.value.count("Hello! How can I help?") == 2
    asked.value = "html"
    assert out.value.count("&lt;script&gt;") == 2
    assert "<script" not in out.value
    asked.value = " "
    assert "question is empty" in out.value


def test_the_saved_output_is_the_table(
    models: dict[str, checkpoint.Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr("nanochat.widgets.fallback.show", lambda *args: shown.append(args))
    said = compare.compare(models, [questions.ask("hello")])
    [(_, html, text)] = shown
    assert html == compare.answers_html([questions.ask("hello")], said)
    assert text == "1 questions, answered by one and <other>."
