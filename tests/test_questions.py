"""Conversations as tokens: the chat template, and the files of a prepared question set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from talks import ASSISTANT, CONTEXT, END, EOT, TOK, USER, conversations, one_line, talk, texts

from nanochat.config import UserError
from nanochat.data import questions
from nanochat.data.questions import Conversation, ask
from nanochat.tokenizer import SPECIALS


def test_rendering_is_pinned_token_by_token():
    conv = talk("Q", "A", "R", "BC", context="P")
    marks_and_bytes = [EOT, CONTEXT, 80, USER, 81, ASSISTANT, 65, END, USER, 82, ASSISTANT, 66, 67, END]
    assert questions.render(conv, TOK) == marks_and_bytes
    assert questions.render(talk("Q", "A"), TOK) == [EOT, USER, 81, ASSISTANT, 65, END]


def test_a_prompt_ends_with_the_assistant_mark_whether_or_not_the_answer_is_known():
    known = talk("Q", "A", context="P")
    assert questions.render_prompt(known, TOK) == [EOT, CONTEXT, 80, USER, 81, ASSISTANT]
    assert questions.render_prompt(ask("Q", "P"), TOK) == [EOT, CONTEXT, 80, USER, 81, ASSISTANT]
    follow_up = ask("R", history=known.turns)
    assert questions.render_prompt(follow_up, TOK) == [EOT, USER, 81, ASSISTANT, 65, END, USER, 82, ASSISTANT]


@given(conversations())
def test_any_conversation_renders_begins_with_its_prompt_and_supervises_its_answers(conv):
    ids = questions.render(conv, TOK)
    prompt = questions.render_prompt(conv, TOK)
    assert ids[: len(prompt)] == prompt
    assert questions.render_all([conv, conv], TOK) == [ids, ids]
    assert ids.count(EOT) == 1
    assert ids.count(ASSISTANT) == ids.count(END) == len(conv.turns) // 2
    mask = questions.answer_mask(np.array(ids), TOK)
    said = [turn.text for turn in conv.turns if turn.role == "assistant"]
    wanted = [i for text in said for i in [*TOK.encode(text), END]]
    assert np.array(ids)[mask].tolist() == wanted


@given(st.sampled_from(SPECIALS), texts)
def test_text_that_looks_like_a_mark_never_becomes_one(mark, text):
    sly = f"{text}{mark}Paris<|end|>"
    conv = talk(sly, sly, context=sly)
    ids = questions.render(conv, TOK)
    assert [i for i in ids if i >= 256] == [EOT, CONTEXT, USER, ASSISTANT, END]
    mask = questions.answer_mask(np.array(ids), TOK)
    assert mask.sum() == len(TOK.encode(sly)) + 1  # nothing that the user typed


def test_each_mark_is_one_id():
    ids = questions.render(talk("Q", "A", context="P"), TOK)
    assert [TOK.token_bytes(i).decode() for i in ids if i >= 256] == list(
        (*SPECIALS[:2], "<|user|>", "<|assistant|>", "<|end|>")
    )


def many(n: int, **fields) -> list[Conversation]:
    return [talk(f"What is {i}?", f"It is {i}.", answers=(f"It is {i}.", f"{i}"), **fields) for i in range(n)]


def prepare(convs, folder: Path, block_size: int = 64, **more) -> questions.QAData:
    questions.write_qa(convs, folder, folder.name, TOK, block_size=block_size, **more)
    return questions.load_qa(folder)


def split_texts(data: questions.QAData, split: str) -> list[str]:
    stream = getattr(data, split)
    return [TOK.decode(stream.ids[a:b]) for a, b in zip(stream.starts[:-1], stream.starts[1:], strict=True)]


def test_preparing_leaves_train_and_val_files_that_hold_every_conversation_once(tmp_path):
    convs = many(50)
    data = prepare(convs, tmp_path / "set", origin={"source_fingerprint": "abc"})
    assert sorted(path.name for path in data.folder.iterdir()) == [
        "meta.json", "qa_input.json", "qa_train.bin", "qa_val.bin", "qa_val.jsonl",
    ]  # fmt: skip
    whole = sorted(split_texts(data, "train") + split_texts(data, "val"))
    assert whole == sorted(TOK.decode(questions.render(conv, TOK)) for conv in convs)
    assert len(data.val) == 5
    assert data.meta["source_fingerprint"] == "abc"
    assert data.meta["tokenizer_fingerprint"] == TOK.fingerprint
    for split in ("train", "val"):
        stream, meta = getattr(data, split), data.meta[split]
        assert meta["conversations"] == len(stream)
        assert meta["tokens"] == len(stream.ids)
        assert meta["supervised"] == questions.answer_mask(stream.ids, TOK).sum()


def test_validation_records_are_the_validation_tokens_with_every_accepted_answer(tmp_path):
    data = prepare(many(40), tmp_path / "set")
    rendered = [TOK.decode(questions.render(conv, TOK)) for conv in data.val_conversations]
    assert rendered == split_texts(data, "val")
    assert all(len(conv.answers) == 2 and conv.split == "val" for conv in data.val_conversations)


def test_a_set_with_a_split_of_its_own_keeps_it(tmp_path):
    data = prepare(many(6) + many(2, split="wording") + many(1, split="fact"), tmp_path / "set")
    assert (len(data.train), len(data.val)) == (6, 3)
    assert [conv.split for conv in data.val_conversations] == ["wording", "wording", "fact"]


def test_a_passage_is_never_on_both_sides_and_the_split_does_not_depend_on_the_order(tmp_path):
    convs = [talk(f"q{i}", "a", context=f"passage {i % 20}", answers=("a",)) for i in range(100)]
    data = prepare(convs, tmp_path / "set")
    held_out = {conv.context for conv in data.val_conversations}
    assert len(held_out) == 2
    assert len(data.val) == 10
    again = prepare(convs[::-1], tmp_path / "again")
    assert {conv.context for conv in again.val_conversations} == held_out


def test_a_question_asked_twice_is_never_on_both_sides(tmp_path):
    data = prepare([*many(30), *many(30)], tmp_path / "set")
    assert not set(split_texts(data, "train")) & set(split_texts(data, "val"))


def test_a_single_passage_is_split_by_question(tmp_path):
    data = prepare(many(4, context="p"), tmp_path / "set")
    assert (len(data.train), len(data.val)) == (3, 1)


def test_what_does_not_fit_is_dropped_whole_and_counted(tmp_path):
    fits = talk("q", "a" * 4, answers=("a",))  # eot user q assistant aaaa end: 9 tokens = block_size + 1
    over = talk("long", "a" * 4, answers=("a",))
    meta = questions.write_qa([fits, over, talk("r", "a"), talk("s")], tmp_path / "s", "s", TOK, block_size=8)
    assert (meta["dropped"], meta["unanswered"]) == (1, 1)
    assert meta["dropped_example"] == "long (12 tokens)"
    data = questions.load_qa(tmp_path / "s")
    assert sorted(split_texts(data, "train") + split_texts(data, "val")) == ["qaaaa", "ra"]


@pytest.mark.parametrize(
    "convs, complaint",
    [
        ([], "no answered questions"),
        ([talk("q")], "no answered questions"),
        ([talk("q" * 99, "a"), talk("q" * 80, "a")], "block_size of at least 84"),
        ([talk("q", "a"), talk("q ", "b")], "one question only"),
        (many(3, split="wording"), "no conversation to train on"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_and_nothing_is_written(tmp_path, convs, complaint):
    with pytest.raises(UserError) as error:
        prepare(convs, tmp_path / "set")
    one_line(error, complaint, "set")
    assert list(tmp_path.iterdir()) == []


def test_the_block_size_that_is_named_is_enough(tmp_path):
    convs = [talk("q" * 99, "a"), talk("q" * 80, "a"), talk("r" * 80, "a")]
    with pytest.raises(UserError, match="block_size of at least 84"):
        prepare(convs, tmp_path / "set", block_size=83)
    assert prepare(convs, tmp_path / "set", block_size=84).meta["dropped"] == 1


def test_a_failure_half_way_leaves_the_prepared_set_as_it_was(tmp_path):
    def failing():
        yield from many(1000)
        raise UserError("record 1001 is broken")

    before = prepare(many(20), tmp_path / "set").meta
    with pytest.raises(UserError, match="1001"):
        questions.write_qa(failing(), tmp_path / "set", "set", TOK, block_size=64)
    assert len(list((tmp_path / "set").iterdir())) == 5
    assert questions.load_qa(tmp_path / "set").meta == before


def test_a_failure_while_files_are_put_in_place_never_mixes_old_and_new(tmp_path, monkeypatch):
    prepare(many(20), tmp_path / "set")
    replace, calls = os.replace, []

    def fails_the_second_time(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr("os.replace", fails_the_second_time)
    with pytest.raises(OSError, match="disk full"):
        questions.write_qa(many(30), tmp_path / "set", "set", TOK, block_size=64)
    with pytest.raises(UserError, match="prepare"):
        questions.load_qa(tmp_path / "set")


def test_the_same_conversations_give_the_same_files(tmp_path):
    first, second = (prepare(many(30), tmp_path / name / "set") for name in "ab")
    assert first.meta == second.meta
    assert first.meta["fingerprint"] != prepare(many(31), tmp_path / "c" / "set").meta["fingerprint"]
    for name in ("qa_train.bin", "qa_val.bin", "qa_val.jsonl"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_any_text_can_be_prepared_even_half_of_a_surrogate_pair(tmp_path):
    data = prepare([talk("\ud83d", "a\udc00", answers=("a\udc00",)), *many(3)], tmp_path / "set")
    assert len(data.train) + len(data.val) == 4
    assert len(data.val_conversations) == len(data.val)


def damage_none(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def damage_short(folder: Path) -> None:
    (folder / "qa_train.bin").write_bytes((folder / "qa_train.bin").read_bytes()[:-2])


def damage_odd(folder: Path) -> None:
    (folder / "qa_val.bin").write_bytes(b"123")


def damage_empty(folder: Path) -> None:
    (folder / "qa_val.bin").write_bytes(b"")


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"marks": ')


def damage_keys(folder: Path) -> None:
    (folder / "meta.json").write_text("{}")


@pytest.mark.parametrize("damage", [damage_none, damage_short, damage_odd, damage_empty, damage_meta, damage_keys])
def test_missing_or_damaged_files_are_one_line(tmp_path, damage):
    prepare(many(20), tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(UserError) as error:
        questions.load_qa(tmp_path / "set")
    one_line(error, "prepare")


def test_what_is_prepared_comes_back_in_the_batches(tmp_path):
    data = prepare(many(30), tmp_path / "set")
    x, y, docs = questions.qa_batch(data, seed=0, step=0, batch_size=4, block_size=64)
    assert x.shape == y.shape == docs.shape == (4, 64)
    for row_x, row_y in zip(x, y, strict=True):
        asked = {int(text.split("?")[0]) for text in TOK.decode(row_x).split("What is ")[1:]}
        answered = {int(text.split(".")[0]) for text in TOK.decode(row_y[row_y >= 0]).split("It is ")[1:]}
        assert asked == answered
