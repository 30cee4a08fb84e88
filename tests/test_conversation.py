"""Conversations read from files: every format, and a one-line message for every fault."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talks import ASSISTANT, TOK, conversations, one_line, talk

from nanochat.config import UserError
from nanochat.data import questions as qa
from nanochat.data.questions import IDK, Conversation, ask


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, content: object) -> list[Conversation]:
    return list(qa.read_qa(save(path, content)))


def squad(*questions: dict, context: str = "Rouen is in Normandy.") -> dict:
    return {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


def test_question_and_answer_are_the_last_ones():
    conv = talk("a", "b", "c", "d")
    assert (conv.question, conv.answer, conv.answered) == ("c", "d", True)
    waiting = ask("e", history=conv.turns)
    assert (waiting.question, waiting.answer, waiting.answered) == ("e", "d", False)
    assert ask("e").answer == ""


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(UserError, match="empty"):
        ask(question)


def test_squad_keeps_the_passage_and_every_different_answer(tmp_path):
    answers = [{"text": text, "answer_start": 0} for text in ("in Normandy", "Normandy ", "in Normandy")]
    (conv,) = read(tmp_path / "s.json", squad({"question": " Where? ", "id": "7", "answers": answers}))
    assert conv == talk(
        "Where?", "in Normandy", context="Rouen is in Normandy.", answers=("in Normandy", "Normandy"),
        skill="reading", id="7",
    )  # fmt: skip


def test_an_unanswerable_question_is_answered_i_dont_know(tmp_path):
    question = {
        "question": "Who?",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [{"text": "x"}],
    }
    (conv,) = read(tmp_path / "s.json", squad(question))
    assert (conv.answer, conv.answers, conv.context) == (IDK, (IDK,), "Rouen is in Normandy.")


LISTED = [
    ({"question": "q", "answer": " a "}, talk("q", "a", answers=("a",))),
    ({"question": "q", "answers": ["a", "b", "a"]}, talk("q", "a", answers=("a", "b"))),
    ({"question": "q", "answer": "a", "context": "p"}, talk("q", "a", context="p", answers=("a",))),
    (
        {"instruction": "i", "input": "p", "output": "o", "id": 3},
        talk("i", "o", context="p", answers=("o",), id="3"),
    ),
    ({"instruction": "i", "input": "", "output": "o"}, talk("i", "o", answers=("o",))),
    ({"instruction": "i", "input": "", "output": ""}, talk("i")),
    (
        {"turns": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}], "split": "val"},
        talk("q", "a", answers=("a",), split="val"),
    ),
]


@pytest.mark.parametrize("record, wanted", LISTED)
def test_lists_and_lines_of_records_are_read_alike(tmp_path, record, wanted):
    line = json.dumps(record)
    assert read(tmp_path / "a.json", [record, record]) == [wanted, wanted]
    assert read(tmp_path / "b.jsonl", f"{line}\n\n{line}") == [wanted, wanted]
    assert read(tmp_path / "lines.json", f"{line}\n{line}\n") == [wanted, wanted]
    assert read(tmp_path / "bom.json", f"\ufeff[{line}]") == [wanted]
    assert read(tmp_path / "bom.jsonl", f"\ufeff{line}\r\n{line}\r\n") == [wanted, wanted]
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps([record], indent=2).encode()))
    assert list(qa.read_qa(tmp_path / "c.json.gz")) == [wanted]


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path):
    record = {"question": "a\ud83d", "answers": ["\udc00b", "\U0001f600"], "id": "\ud83d"}
    wanted = talk("a?", "?b", answers=("?b", "\U0001f600"), id="?")
    assert read(tmp_path / "x.jsonl", json.dumps(record)) == [wanted]
    assert read(tmp_path / "x.json", [record]) == [wanted]
    assert qa.from_record(record) == wanted


@given(conversations())
def test_a_record_gives_its_conversation_back(conv):
    assert qa.from_record(json.loads(json.dumps(qa.to_record(conv)))) == conv


GOOD = '{"question": "q", "answer": "a"}'
BAD_LINES = [
    ('{"question": "q"}', "'answer' is missing"),
    ('{"question": "q", "answer": " "}', "'answer' is empty"),
    ('{"question": "q", "answers": []}', "'answers' is empty"),
    ('{"question": "q", "answers": "a"}', "'answers' must be a list"),
    ('{"question": "q", "answers": ["a", ""]}', "answer 2: 'text' is empty"),
    ('{"question": "", "answer": "a"}', "'question' is empty"),
    ('{"question": 4, "answer": "a"}', "'question' must be text"),
    ('{"instruction": "", "output": "a"}', "'instruction' is empty"),
    ('{"prompt": "q", "response": "a"}', "has no question"),
    ('{"turns": [{"role": "assistant", "text": "a"}]}', "turn 1: 'role' must be 'user'"),
    ('{"turns": [{"role": "user", "text": "a"}]}', "must end with an answer"),
    ('{"turns": []}', "must end with an answer"),
    ('{"turns": [3]}', "turn 1 must be an object"),
    ("[1]", "must be an object"),
    ('{"question": "q", "answer"', "not valid JSON"),
]


@pytest.mark.parametrize("line, complaint", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    with pytest.raises(UserError) as error:
        read(tmp_path / "x.jsonl", f"{GOOD}\n{line}\n")
    one_line(error, "x.jsonl, line 2", complaint)


def test_a_bad_record_of_a_list_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path / "x.json", f'[{GOOD}, {{"question": "q"}}]')
    one_line(error, "x.json, record 2", "'answer' is missing")


@pytest.mark.parametrize(
    "question, complaint",
    [
        ({"question": "q", "answers": []}, "'answers' is empty"),
        ({"question": "", "answers": [{"text": "a"}]}, "'question' is empty"),
        ({"question": "q", "answers": [{"text": ""}]}, "'text' is empty"),
        ("q", "must be an object"),
    ],
)
def test_a_bad_squad_question_is_named(tmp_path, question, complaint):
    good = {"question": "q", "answers": [{"text": "a"}]}
    with pytest.raises(UserError) as error:
        read(tmp_path / "s.json", squad(good, question))
    one_line(error, "s.json, record 1, paragraph 1, question 2", complaint)


@pytest.mark.parametrize("broken", [{"context": ""}, {"paragraphs": 3}, {"qas": None}])
def test_a_squad_article_without_its_parts_is_named(tmp_path, broken):
    paragraph = {"context": "p", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}
    article = {"paragraphs": [{**paragraph, **broken}]} | {k: v for k, v in broken.items() if k == "paragraphs"}
    with pytest.raises(UserError) as error:
        read(tmp_path / "s.json", {"data": [article]})
    one_line(error, "s.json, record 1", repr(next(iter(broken))))


@pytest.mark.parametrize("content", ["", "  \n", "[]", "{}", '{"data": []}', '{"data": 3}', '{"x": 1,\n "y": 2}'])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_file_without_questions_is_refused(tmp_path, content, name):
    with pytest.raises(UserError) as error:
        read(tmp_path / name, content)
    one_line(error, name)


def test_a_list_cut_short_says_how_far_it_was_good(tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path / "x.json", f"[{GOOD}, {GOOD}, ")
    one_line(error, "x.json", "not valid JSON")
    assert "right here" not in str(error.value)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_absurdly_nested_json_is_one_line_too(tmp_path, name):
    with pytest.raises(UserError) as error:
        read(tmp_path / name, '{"question": ' + "[" * 5_000)
    one_line(error, name)


@pytest.mark.parametrize("name", ["nothing.json", "folder.json"])
def test_a_path_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError) as error:
        list(qa.read_qa(tmp_path / name))
    one_line(error, "cannot read", name)


def test_a_damaged_gz_file_is_named(tmp_path):
    packed = gzip.compress(json.dumps([json.loads(GOOD)] * 5000).encode())
    for damaged in (b"no gzip", packed[: len(packed) // 2], packed[:20] + bytes(20) + packed[40:]):
        (tmp_path / "x.json.gz").write_bytes(damaged)
        with pytest.raises(UserError) as error:
            list(qa.read_qa(tmp_path / "x.json.gz"))
        one_line(error, "x.json.gz")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("question", "answer", "answers", "context", "data", "paragraphs", "qas", "text", "turns",
                 "role", "instruction", "input", "output", "is_impossible", "id", "split")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    content=json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value, indent=1).encode())
    | st.binary(max_size=30),
    name=st.sampled_from(("f.json", "f.jsonl", "f.json.gz")),
)
def test_whatever_the_file_holds_it_gives_conversations_or_one_line(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        convs = list(qa.read_qa(path))
    except UserError as error:
        assert str(error) and "\n" not in str(error) and name in str(error)
    else:
        assert convs
        assert all(qa.render_prompt(conv, TOK)[-1] == ASSISTANT for conv in convs)


@pytest.mark.parametrize("form", ["squad", "list", "lines"])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, form):
    record = {"question": "q" * 1000, "answers": [{"text": "a" * 1000}]}
    path = tmp_path / "large.json"
    if form == "squad":
        article = {"paragraphs": [{"context": "p", "qas": [record]}]}
        save(path, {"version": "v2.0", "data": [article] * 2000})
    elif form == "list":
        save(path, [record] * 2000)
    else:
        save(path, f"{json.dumps(record)}\n" * 2000)
    tracemalloc.start()
    count = sum(1 for _ in qa.read_qa(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < path.stat().st_size / 4
