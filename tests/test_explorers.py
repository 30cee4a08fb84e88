"""The explorers of notebooks 01 and 02 show what tokenizer, batches and model really do."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from nanochat.config import ModelConfig, UserError
from nanochat.data import corpus, questions
from nanochat.figures import plots
from nanochat.model import GPT
from nanochat.tokenizer import Tokenizer, train_bpe
from nanochat.widgets import attention, batches, fallback, tokens

TOK: Tokenizer = train_bpe(["the cat sat on the mat, the cat sat on the hat; then 1984 cats.\n"] * 4, 330)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _boxes(source: str) -> list[str]:
    """The texts in the <code> boxes of some HTML."""
    return [html.unescape(box) for box in re.findall(r"<code[^>]*>(?:<b>)?(.*?)(?:</b>)?</code>", source, re.DOTALL)]


# --- tokens -------------------------------------------------------------------------------------------------


@given(texts)
def test_boxes_are_the_tokens_with_their_ids(text):
    source = tokens.tokens_html(TOK, text)
    ids = TOK.encode(text)
    assert [int(id) for id in re.findall(r"<rt>(\d+)</rt>", source)] == ids
    assert len(_boxes(source)) == len(ids)


def test_blanks_and_broken_characters_can_be_seen():
    assert tokens.visible(b" a\n\t\r") == "␣a⏎⇥␍"
    assert tokens.visible("é".encode()[:1]) == r"\xc3"
    assert _boxes(tokens.tokens_html(TOK, " cat")) == ["␣cat"]


def test_what_is_typed_never_becomes_markup():
    for source in (
        tokens.tokens_html(TOK, "<b>&</b>"),
        tokens.merges_html(TOK, "<b>"),
        attention.detail_html(*tiny_model(), "<b>&"),
    ):
        assert "<b><" not in source and "<b>&" not in re.sub(r"<b>[\w,: .()]", "", source)
        assert "&lt;" in source


def test_counts_are_of_characters_bytes_and_tokens():
    said = tokens.counts(TOK, "the café")
    n = len(TOK.encode("the café"))
    assert said == f"bpe:330 ({TOK.vocab_size} ids): 8 characters, 9 bytes, {n} tokens, {9 / n:.2f} bytes a token"
    assert tokens.counts(TOK, "").endswith("0 characters, 0 bytes, 0 tokens")


def test_merges_go_from_single_bytes_to_the_tokens():
    rows = [_boxes(row) for row in re.findall(r"<tr><td>.*?</tr>", tokens.merges_html(TOK, "then"))]
    assert rows[0] == ["t", "h", "e", "n"]
    assert rows[-1] == [tokens.visible(TOK.token_bytes(id)) for id in TOK.encode("then")]
    assert [len(row) for row in rows] == list(range(4, 4 - len(rows), -1))


def test_gpt2_is_left_out_and_said_so_where_its_files_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert tokens.cached_gpt2() is None
    assert "not on this machine" in tokens.tokenizers_html([TOK], "the cat")


def test_typing_changes_the_tokens_shown():
    typed, cut, *_ = tokens.explorer([TOK], "the cat", "then").children
    before = cut.value
    typed.value = "the hat"
    assert cut.value != before
    assert _boxes(cut.value)[:2] == ["the", "␣hat"]


def test_number_goes_through_the_merges_of_the_word():
    *_, controls, pieces = tokens.explorer([TOK], "", "then").children
    spelled, merges = controls.children
    assert _boxes(pieces.value) == ["t", "h", "e", "n"]
    merges.value = merges.max
    assert len(_boxes(pieces.value)) == len(TOK.encode("then"))
    spelled.value = "xy"  # no merges: the number must come back into range
    assert (merges.value, merges.max) == (0, 0)
    assert _boxes(pieces.value) == ["x", "y"]
    spelled.value = ""
    assert "That did not work" not in pieces.value


# --- batches ------------------------------------------------------------------------------------------------

SHIFTED = np.array([[65, 66, 67, 68]]), np.array([[66, 67, 68, 69]])
MASKED = np.array([[TOK.user, 65, TOK.assistant, 66, TOK.end]]), np.array([[-1, -1, 66, TOK.end, -1]])


def _rows(source: str, name: str) -> list[str]:
    found = re.search(f"<tr><th>{name}</th>(.*?)</tr>", source, re.DOTALL)[1]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", found, re.DOTALL)
    return [html.unescape(re.sub(r"<.*?>", "", cell)) for cell in cells]


def test_targets_stand_under_the_inputs_they_belong_to():
    source = batches.batch_html(TOK, SHIFTED)
    assert _rows(source, "input") == ["A", "B", "C", "D"]
    assert _rows(source, "target") == ["B", "C", "D", "E"]


def test_targets_without_loss_are_the_following_tokens_in_brackets():
    source = batches.batch_html(TOK, MASKED)
    assert _rows(source, "target") == ["(A)", "(<|assistant|>)", "B", "<|end|>", "(…)"]
    assert source.count('title="no loss"') == 3
    assert "carry no loss" in source and "carry no loss" not in batches.batch_html(TOK, SHIFTED)


def test_only_the_asked_positions_are_shown():
    x = np.arange(65, 105)[None]
    source = batches.batch_html(TOK, (x, x + 1), start=12, width=20)
    assert re.findall(r"<small>(\d+)</small>", source) == [str(place) for place in range(12, 32)]


def test_documents_of_a_row_have_different_grounds():
    x, y = SHIFTED
    source = batches.batch_html(TOK, (x, y, np.array([[0, 0, 1, 1]])))
    grounds = re.findall(r'<td style="background:(#\w+)', source)
    assert grounds[0] == grounds[1] != grounds[2] == grounds[3]


def test_sentence_counts_the_targets_that_carry_loss():
    assert batches.sentence(MASKED) == "1 rows of 5 positions; 2 of 5 targets (40%) carry loss."


def test_numbers_choose_step_and_row():
    made = []

    def make(step):
        made.append(step)
        return np.full((2, 4), 65 + step) + np.array([[0], [10]]), np.full((2, 4), 66 + step)

    controls, out = batches.viewer(TOK, make).children
    step, row, _ = controls.children
    step.value = 3
    assert made[-1] == 3 and _rows(out.value, "input") == ["D"] * 4
    row.value = 1
    assert _rows(out.value, "input") == ["N"] * 4


def test_the_viewer_starts_at_the_answer_that_comes_first():
    y = np.full((3, 60), -1)
    assert batches.first_answer((y, y)) == (0, 50)  # no answer at all: the end of the first row
    y[1, 50:], y[2, 40:] = 7, 7
    assert batches.first_answer((y, y)) == (2, 30)
    assert batches.first_answer(SHIFTED) == (0, 0)


def test_error_while_making_a_batch_is_shown_in_its_place():
    def make(step):
        if step:
            raise UserError("no <such> step")
        return SHIFTED

    controls, out = batches.viewer(TOK, make).children
    controls.children[0].value = 1
    assert "no &lt;such&gt; step" in out.value


def test_viewer_shows_real_batches_of_both_kinds(nanochat_home):
    conversation = questions.Conversation((questions.Turn("user", "the cat?"), questions.Turn("assistant", "the mat")))
    ids = np.array(questions.render(conversation, TOK))
    x, y = corpus.batch(np.tile(ids, 8), seed=1, step=0, batch_size=2, block_size=8)
    assert _rows(batches.batch_html(TOK, (x, y)), "target")[:-1] == _rows(batches.batch_html(TOK, (x, y)), "input")[1:]
    masked = np.where(questions.answer_mask(ids, TOK), ids, -1)
    shown = _rows(batches.batch_html(TOK, (ids[None, :-1], masked[None, 1:])), "target")
    assert "".join(cell for cell in shown if not cell.startswith("(")) == "the␣mat<|end|>"


# --- attention ----------------------------------------------------------------------------------------------


def _model(arch: str) -> GPT:
    torch.manual_seed(1)
    model = GPT(ModelConfig(300, 16, n_layer=2, n_head=3, n_embd=12, arch=arch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_weights_are_those_that_the_model_mixes_with(arch):
    model = _model(arch)
    ids = [5, 1, 7, 7, 2]
    weights = attention.attention_weights(model, ids)
    assert weights.shape == (2, 3, 5, 5)
    seen = {}

    def keep(module, args, out):
        seen[module.layer] = (args, out)

    hooks = [block.attn.register_forward_hook(keep) for block in model.h]
    with torch.inference_mode():
        model(torch.tensor([ids]))
        for layer, (args, out) in seen.items():
            attn = model.h[layer].attn
            values = attn.heads(args[0], args[1])[2]
            mixed = (weights[layer] @ values).transpose(1, 2).reshape(1, 5, 12)
            assert torch.allclose(attn.c_proj(mixed), out, atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_weights_sum_to_one_and_none_lies_in_the_future():
    weights = attention.attention_weights(_model("modern"), [1, 2, 3, 4])
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 4))
    assert (weights.triu(1) == 0).all()


def test_looking_leaves_the_model_as_it_was():
    model = _model("gpt2").train()
    attention.attention_weights(model, [1, 2])
    assert model.training
    assert not any(block.attn._forward_pre_hooks for block in model.h)


def test_text_without_tokens_or_beyond_the_context_is_refused():
    with pytest.raises(UserError, match="nothing to look at"):
        attention.attention_weights(_model("modern"), [])
    with pytest.raises(UserError, match="do not fit"):
        attention.attention_weights(_model("modern"), [1] * 17)


def test_habits_recognise_heads_that_look_at_themselves_before_them_and_at_the_start():
    itself = torch.eye(5)
    before = torch.zeros(5, 5)
    before[0, 0] = 1
    before[range(1, 5), range(4)] = 1
    first = torch.zeros(5, 5)
    first[:, 0] = 1
    found = attention.habits(torch.stack([itself, before, first])[None])
    assert torch.equal(found, torch.eye(3)[None])
    assert torch.equal(attention.habits(torch.ones(1, 1, 2, 2)), torch.zeros(1, 1, 3))


def test_figures_say_what_they_show():
    model, tok = tiny_model()
    text = "one two three"
    n = len(tok.encode(text)) + 1
    figure, sentence = attention.grid(model, tok, text)
    assert len(figure.axes) == 4
    assert sentence.startswith(f"Attention of 4 heads to {n} tokens")
    _, sentence = attention.detail(model, tok, text, layer=1, head=0)
    assert sentence.startswith(f"Layer 1, head 0: {n} rows by {n} columns")


def test_explorer_follows_text_and_menus():
    model, tok = tiny_model()
    typed, overview, menus, one = attention.explorer(model, tok, "one two").children
    layer, head = menus.children
    layer.value, head.value = 1, 1
    assert "Layer 1, head 1" in one.value
    before = overview.value, one.value
    typed.value = "three <b> four"
    assert overview.value != before[0] and one.value != before[1]
    assert "That did not work" not in overview.value + one.value


def test_long_text_is_cut_to_what_can_be_read():
    model, tok = tiny_model()
    _, sentence = attention.grid(model, tok, "one " * 200)
    assert "to 24 tokens" in sentence


# --- saved outputs ------------------------------------------------------------------------------------------


def test_one_output_holds_the_widget_and_what_stands_in_for_it():
    data = fallback.bundle(tokens.explorer([TOK], "a", "b"), "<p>table</p>", "one sentence")
    assert "<p>table</p>" in data["text/html"] and data["text/plain"] == "one sentence"
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]


@pytest.mark.parametrize("kind", ["tokens", "batches", "attention"])
def test_explorers_leave_their_first_view_in_the_saved_notebook(kind, monkeypatch):
    shown = []
    monkeypatch.setattr(fallback, "show", lambda widget, html, text: shown.append((html, text)))
    model, tok = tiny_model()
    if kind == "tokens":
        tokens.explore([TOK], "the cat", "then")
        assert _boxes(shown[0][0])[:2] == ["the", "␣cat"]
    elif kind == "batches":
        batches.view(TOK, lambda step: MASKED)
        assert _rows(shown[0][0], "input")[0] == "<|user|>"
    else:
        attention.explore(model, tok, "one two")
        assert "Layer 1, head 0" in shown[0][0]
    assert len(shown) == 1 and shown[0][1].endswith((".", "token"))


def test_attention_detail_is_a_heatmap_with_the_future_masked():
    figure, sentence = attention.detail(*tiny_model(), "one two")
    assert isinstance(plots.png(figure), bytes)
    n = len(tiny_model()[1].encode("one two")) + 1
    assert f"masked cells: {n * (n - 1) // 2}" in sentence
