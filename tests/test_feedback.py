"""The feedback file: nothing is lost or rewritten, whatever the disk or other writers do."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.chat.feedback import (
    Record,
    Store,
    append,
    current,
    export_preferences,
    from_json,
    labels,
    pairs,
    read,
    to_json,
)
from nanochat.config import UserError
from nanochat.data.conversation import Conversation, Turn

ASKED = Conversation((Turn("user", "Who wrote '1984'?"),))


def record(kind: str = "thumb", value: int | None = None, text: str = "", **changes) -> Record:
    if kind == "thumb" and value is None:
        value = 1
    responses = ("George Orwell.", "Nobody.") if kind == "choice" else ("George Orwell.",)
    values = {"about": "a1", "run": "nano", "stage": "fine_tuned", "conversation": ASKED, "responses": responses}
    return Record(kind=kind, value=value, text=text, **{**values, **changes})


def loud(message: str) -> None:
    raise AssertionError(message)


def test_what_is_appended_is_read_back_in_order(tmp_path: Path):
    path = tmp_path / "feedback" / "nano.jsonl"
    written = [
        record(sampling={"temperature": 0.5, "top_k": None}, seeds=(7,), checkpoint="c", tokenizer="t"),
        record("rating", 4),
        record("choice", 1, seeds=(1, 2)),
        record("comment", text="Nice.\nVery\u2028nice 👍🏽 مرحبا <script>"),
        record("correction", text="Eric Blair, called George Orwell.", conversation=replace(ASKED, context="A book.")),
        record("retract", text="rating"),
    ]
    for each in written:
        append(path, each)
    assert read(path, loud) == written
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(written) + 1 and lines[-1] == b""
    first = json.loads(lines[0])
    assert first["schema"] == 1 and first["time"].endswith("Z") and len(first["id"]) == 32


@given(st.text(), st.text(), st.integers(1, 5))
def test_any_text_survives_the_file(tmp_path_factory, said: str, passage: str, rating: int):
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    written = record("rating", rating, conversation=Conversation((Turn("user", said),), passage), responses=(said,))
    append(path, written)
    assert read(path, loud) == [written]


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_half_of_a_surrogate_pair_becomes_a_question_mark(tmp_path_factory, said: str):
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    said += "\ud83d"
    append(
        path, record("comment", text=said, conversation=Conversation((Turn("user", said),), said), responses=(said,))
    )
    assert "\\ud" not in path.read_text(encoding="utf-8").replace("\\\\", "")
    [found] = read(path, loud)
    mended = "".join("?" if "\ud800" <= char <= "\udfff" else char for char in said)
    assert (found.text, found.conversation.question, found.conversation.context, found.responses) == (
        mended, mended, mended, (mended,)
    )  # fmt: skip


def test_half_of_a_surrogate_pair_that_is_in_a_file_becomes_a_question_mark(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(to_json(record("comment", text="cut \ud83d"))) + "\n")
    assert [found.text for found in read(path, loud)] == ["cut ?"]


@pytest.mark.skipif(os.name != "posix", reason="this system cannot flush folders")
def test_a_new_file_is_on_the_disk_with_its_name_and_an_old_one_needs_that_no_more(tmp_path: Path, monkeypatch):
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.path.realpath(f"/dev/fd/{fd}")), real(fd)))
    path = tmp_path.resolve() / "feedback" / "x.jsonl"
    append(path, record())
    assert flushed == [str(path.parent.parent), str(path), str(path.parent)]
    append(path, record())
    assert flushed[3:] == [str(path)]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("thumb", 0, ""), ("thumb", None, ""), ("thumb", True, ""), ("rating", 6, ""), ("rating", 0, ""),
        ("rating", "5", ""), ("choice", 2, ""), ("choice", None, ""), ("comment", None, "  "), ("correction", None, ""),
        ("retract", None, "everything"), ("applause", 1, ""),
    ],
)  # fmt: skip
def test_senseless_feedback_is_refused_with_one_sentence(kind, value, text):
    with pytest.raises(UserError) as error:
        record(kind, 0 if (kind, value) == ("thumb", None) else value, text)
    assert "\n" not in str(error.value)


def test_a_torn_last_line_costs_only_itself(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    append(path, record(about="before"))
    with path.open("ab") as file:
        file.write(json.dumps(to_json(record(about="torn"))).encode()[:50])
    said = []
    assert [r.about for r in read(path, said.append)] == ["before"]
    before = path.read_bytes()
    append(path, record(about="after"))
    assert path.read_bytes().startswith(before), "what was in the file was changed"
    assert [r.about for r in read(path, said.append)] == ["before", "after"]
    assert said == ["1 unreadable line of x.jsonl passed over; the rest is used."] * 2


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"schema": 2}',
        json.dumps({**to_json(record()), "value": 9}).encode(),
        json.dumps({**to_json(record()), "responses": [1]}).encode(),
        json.dumps({**to_json(record()), "run": "../x"}).encode(),
        json.dumps({**to_json(record()), "time": "yesterday"}).encode(),
        json.dumps({**to_json(record()), "surplus": 1}).encode(),
        json.dumps({**to_json(record()), "conversation": {"turns": [], "context": ""}}).encode(),
        json.dumps({**to_json(record()), "conversation": {"turns": [{"role": "user", "text": 1}]}}).encode(),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_passed_over_and_counted(tmp_path: Path, line: bytes):
    path = tmp_path / "x.jsonl"
    path.write_bytes(line + b"\n")
    append(path, record())
    said = []
    assert len(read(path, said.append)) == 1 and said[0].startswith("1 unreadable line")


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path):
    assert read(tmp_path / "none.jsonl", loud) == []


def _write_many(path: Path, writer: int) -> None:
    for i in range(40):
        append(path, record("comment", text="x" * 20_000, about=f"{writer}-{i}"))


def test_several_processes_write_one_file_without_losing_a_line(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    spawn = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    writers = [spawn.Process(target=_write_many, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [r.about for r in read(path, loud)]
    assert sorted(found) == sorted(f"{writer}-{i}" for writer in range(3) for i in range(40))


def test_a_full_disk_is_told_and_the_feedback_written_once_there_is_room(tmp_path: Path, monkeypatch):
    store, real = Store(tmp_path / "x.jsonl"), os.write

    def full(fd: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert "No space left on device" in store.add(record(about="1"))
    assert "2 kept in memory" in store.add(record(about="2"))
    assert [r.about for r in store.records(loud)] == ["1", "2"], "what waits in memory counts already"
    monkeypatch.setattr(os, "write", real)
    assert store.add(record(about="3")) == ""
    assert [r.about for r in read(store.path, loud)] == ["1", "2", "3"] and store.pending == []


def test_half_a_line_on_a_full_disk_is_written_again_whole(tmp_path: Path, monkeypatch):
    store, real = Store(tmp_path / "x.jsonl"), os.write
    monkeypatch.setattr(os, "write", lambda fd, line: real(fd, line[:30]))
    assert store.add(record())
    monkeypatch.setattr(os, "write", real)
    assert store.retry() == ""
    assert len(read(store.path, lambda said: None)) == 1


def test_a_line_written_again_after_a_failed_fsync_counts_once(tmp_path: Path, monkeypatch):
    store, real = Store(tmp_path / "x.jsonl"), os.fsync

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    assert store.add(record())
    monkeypatch.setattr(os, "fsync", real)
    assert store.retry() == ""
    assert len(read(store.path, loud)) == 1


def test_changing_ones_mind_keeps_the_latest_of_each_kind():
    opinions = current(
        [
            record("thumb", -1), record("comment", text="wrong"), record("thumb", 1), record("comment", text="right"),
            record("correction", text="Orwell"), record("thumb", -1, about="a2"),
        ]
    )  # fmt: skip
    first, second = opinions
    assert (first.thumb, first.comment, first.correction) == (1, "right", "Orwell")
    assert (second.record.about, second.thumb, second.comment) == ("a2", -1, "")


def test_thumb_and_rating_replace_each_other():
    assert [(o.thumb, o.rating) for o in current([record("rating", 2), record("thumb", 1)])] == [(1, None)]
    assert [(o.thumb, o.rating) for o in current([record("thumb", 1), record("rating", 2)])] == [(None, 2)]


def test_what_is_taken_back_no_longer_holds():
    said = [record("thumb", 1), record("comment", text="good")]
    (opinion,) = current([*said, record("retract", text="thumb")])
    assert (opinion.thumb, opinion.comment) == (None, "good")
    assert current([*said, record("retract")]) == []
    assert current([*said, record("retract"), record("thumb", -1)])[0].thumb == -1


def test_labels_are_the_clear_verdicts():
    said = [record("rating", value, about=str(value), responses=(f"answer {value}",)) for value in (1, 2, 3, 4, 5)]
    said += [record("thumb", -1, about="t", responses=("answer t",)), record("comment", text="hm", about="c")]
    assert [(answer, liked) for _, answer, liked in labels(said)] == [
        ("answer 1", False), ("answer 2", False), ("answer 4", True), ("answer 5", True), ("answer t", False),
    ]  # fmt: skip


def test_pairs_come_from_choices_corrections_and_opposite_verdicts_on_one_question():
    said = [
        record("choice", 1, about="c"),
        record("correction", text=" Orwell ", about="k", responses=("Huxley.",)),
        record("thumb", 1, about="up", responses=("George.",)),
        record("thumb", -1, about="down", responses=("Nobody.",)),
        record("thumb", -1, about="other", conversation=Conversation((Turn("user", "Who?"),))),
    ]
    assert [(better, worse) for _, better, worse in pairs(said)] == [
        ("Nobody.", "George Orwell."), ("Orwell", "Huxley."), ("George.", "Nobody."),
    ]  # fmt: skip


def test_a_pair_of_equal_answers_teaches_nothing_and_is_left_out():
    assert list(pairs([record("correction", text="George Orwell.")])) == []


def test_the_export_is_in_the_common_preference_format():
    talk = Conversation((Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Who?")), "A passage.")
    said = [record("correction", text="Orwell", conversation=talk, responses=("Huxley",))]
    assert list(export_preferences(said)) == [
        {
            "prompt": [
                {"role": "system", "content": "A passage."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Who?"},
            ],
            "chosen": [{"role": "assistant", "content": "Orwell"}],
            "rejected": [{"role": "assistant", "content": "Huxley"}],
        }
    ]


def test_a_record_of_a_later_schema_is_refused():
    with pytest.raises(UserError, match="schema"):
        from_json({**to_json(record()), "schema": 2})
