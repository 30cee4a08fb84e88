"""The next-token inspector: probabilities are the model's, settings only narrow the choice, typed text is never run."""

from __future__ import annotations

import itertools
import math
from html import escape

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ANSWERS, tiny_model

from nanochat.config import UserError
from nanochat.data import questions
from nanochat.generate import generate
from nanochat.widgets import next_token
from nanochat.widgets.next_token import bars, explorer, inspect, inspection_html, next_probs, prompt_ids


def test_probabilities_before_are_the_softmax_of_the_models_last_logits() -> None:
    model, tok = tiny_model()
    ids = prompt_ids(tok, "hello")
    assert ids == [tok.eot, *tok.encode("hello")]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids]))[0, -1].double().softmax(dim=0)
    before, after = next_probs(model, ids)
    torch.testing.assert_close(before, wanted)
    torch.testing.assert_close(after, before)
    found = inspect(model, tok, ids, n=4)
    assert [c.id for c in found.candidates] == wanted.topk(4).indices.tolist()
    assert found.bits_after == pytest.approx(-(wanted * wanted.log2()).sum().item())


def test_a_question_goes_through_the_chat_template() -> None:
    model, tok = tiny_model()
    ids = prompt_ids(tok, "hello", chat=True)
    assert ids == questions.render_prompt(questions.ask("hello"), tok)
    first = inspect(model, tok, ids).candidates[0]
    assert ANSWERS["hello"].startswith(first.text)
    with pytest.raises(UserError, match="question is empty"):
        prompt_ids(tok, " ", chat=True)


@given(
    temperature=st.floats(0.05, 3.0),
    top_k=st.none() | st.integers(1, 400),
    top_p=st.none() | st.floats(0.05, 1.0),
)
def test_settings_keep_the_order_and_leave_a_distribution(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    model, tok = tiny_model()
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    found = inspect(model, tok, prompt_ids(tok, "one two"), n=tok.vocab_size, **settings)
    after = [c.after for c in found.candidates]
    assert sum(after) == pytest.approx(1.0)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    drawn = [c.before for c in found.candidates if c.after > 0]
    assert found.possible == len(drawn) >= 1
    assert sum(p > drawn[-1] for p in drawn) < (top_k or tok.vocab_size)  # equally likely ones stay together
    assert 0.0 <= found.bits_after <= math.log2(found.possible) + 1e-9


def test_temperature_zero_leaves_no_choice() -> None:
    model, tok = tiny_model()
    found = inspect(model, tok, prompt_ids(tok, "hello"), temperature=0)
    assert (found.possible, found.bits_after, found.candidates[0].after) == (1, 0.0, 1.0)


def test_texts_longer_than_the_context_are_cropped_and_none_is_an_error() -> None:
    model, tok = tiny_model()
    long = prompt_ids(tok, "one two three " * 100)
    cropped = inspect(model, tok, long[-model.config.block_size :])
    assert inspect(model, tok, long) == cropped
    with pytest.raises(UserError, match="nothing to continue"):
        next_probs(model, [])


def test_the_fallback_has_every_candidate_in_words_and_the_figure_the_same_sentence() -> None:
    model, tok = tiny_model()
    found = inspect(model, tok, prompt_ids(tok, "hello", chat=True), n=3, top_k=1)
    html = inspection_html(found)
    for candidate in found.candidates:
        assert f"<code>{escape(candidate.text)}</code>" in html
        assert f"{candidate.before:.1%}" in html
    assert f"1 of {tok.vocab_size:,} tokens can be drawn" in html
    assert bars(found)[1] == found.sentence()


def _parts(box):
    typed, chat, numbers, buttons, written, table = box.children
    return typed, chat, numbers.children, buttons.children, written, table


def test_drawing_at_temperature_zero_writes_what_greedy_generation_writes() -> None:
    model, tok = tiny_model()
    typed, _, (temperature, _, _), (draw, back), written, _ = _parts(explorer(model, tok, "hello", chat=True))
    temperature.value = 0.0
    for _ in range(3):
        draw.click()
    ids = generate(model, [prompt_ids(tok, "hello", chat=True)], max_new_tokens=3)[0]
    marks = "".join(f"<mark>{next_token.visible(tok.token_bytes(id))}</mark>" for id in ids)
    assert written.value == f"<p>hello<br>{marks}</p>"
    back.click()
    assert written.value.count("<mark>") == 2
    typed.value = "wave"  # another text: what was drawn goes
    assert written.value == ""
    assert back.disabled


def test_the_widget_follows_its_numbers_shows_errors_and_escapes_what_is_typed() -> None:
    model, tok = tiny_model()
    typed, chat, (_, top_k, top_p), (draw, _), written, table = _parts(explorer(model, tok, "one two"))
    everything = table.value
    top_k.value = 2
    assert "2 of 320 tokens can be drawn" in table.value
    assert table.value != everything
    top_k.value, top_p.value = 0, 0.05
    assert "1 of 320 tokens can be drawn" in table.value
    typed.value = "<script>alert(1)</script>"
    draw.click()
    assert "&lt;script&gt;" in written.value
    assert "<script" not in written.value + table.value
    typed.value, chat.value = "", True
    assert "question is empty" in table.value
    draw.click()  # does nothing, and says again why
    assert "question is empty" in table.value


def test_the_saved_output_reads_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tok = tiny_model()
    shown = []
    monkeypatch.setattr("nanochat.widgets.fallback.show", lambda *args: shown.append(args))
    next_token.explore(model, tok, "one <two>")
    [(_, html, text)] = shown
    assert "one &lt;two&gt;" in html
    assert "5 of 320 tokens can be drawn" in text
