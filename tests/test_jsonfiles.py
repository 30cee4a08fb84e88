"""Corpora and questions are read by the same rules: suffixes, compression, BOMs, lists, lines, cut characters."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import UserError
from nanochat.data import jsonfiles
from nanochat.data.conversation import read_qa
from nanochat.data.corpus import prepare_corpus
from nanochat.data.sources import documents

RECORDS = [{"text": f"text {i}", "question": f"q{i}", "answer": f"text {i}"} for i in range(3)]
LINES = "\n".join(map(json.dumps, RECORDS))
WRAPPED = json.dumps({"version": 1, "data": RECORDS})


def corpus_texts(path: Path) -> list[str]:
    return list(documents(str(path)))


def answers(path: Path) -> list[str]:
    return [conv.answer for conv in read_qa(path)]


def put(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


@pytest.mark.parametrize("read", [corpus_texts, answers])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.JSON", json.dumps(RECORDS, indent=1)),
        ("a.json.GZ", json.dumps(RECORDS)),
        ("a.jsonl", LINES),
        ("a.JSONL", LINES.replace("\n", "\r\n\r\n")),
        ("a.NdJson.Gz", LINES),
        ("lines.json", LINES),
        ("lines.json.gz", LINES),
        ("list.jsonl", json.dumps(RECORDS)),
        ("list.jsonl", json.dumps(RECORDS, indent=1)),
        ("wrapped.json", WRAPPED),
        ("wrapped.json", json.dumps({"records": RECORDS}, indent=1)),
        ("objects.json", "\n".join(json.dumps(record, indent=1) for record in RECORDS)),
        ("my.jsonl.v2.json", json.dumps(RECORDS)),
    ],
)
def test_corpora_and_questions_are_read_by_the_same_rules(
    tmp_path: Path, read: Callable[[Path], list[str]], mark: str, name: str, content: str
) -> None:
    assert read(put(tmp_path / name, mark + content)) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("name", ["notes.json.txt", "notes.jsonl.md", "notes.json.txt.gz", "notes.gz.txt", "NOTES.TXT"])
def test_the_last_suffix_says_that_a_file_is_text(tmp_path: Path, name: str) -> None:
    assert corpus_texts(put(tmp_path / name, f"\ufeff{LINES}")) == [LINES]


@pytest.mark.parametrize("form", ["list", "lines", "wrapped"])
def test_long_first_records_are_read_as_what_they_are(tmp_path: Path, form: str) -> None:
    long = [{"text": "word " * 40_000}, {"text": "short"}]
    content = {
        "list": json.dumps(long),
        "lines": "\n".join(map(json.dumps, long)),
        "wrapped": json.dumps({"data": long}),
    }
    assert "".join(corpus_texts(put(tmp_path / "a.json", content[form]))) == "word " * 40_000 + "short"


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", "{}"), ("a.json", "{}"), ("a.json", "[{}]"), ("a.json", "[\n{}\n]")]
)
@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (r"cut \ud83d emoji", "cut ? emoji"),
        (r"cut \ude00 emoji", "cut ? emoji"),
        (r"\uD83DA", "?A"),
        (r"\ud83d\u0041", "?A"),
        (r"\ud83d\ud83d\ude00", "?\U0001f600"),
        (r"C:\\ud83d and \ud83d\ude00", "C:\\ud83d and \U0001f600"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_question_mark(
    tmp_path: Path, nanochat_home: Path, name: str, form: str, typed: str, read: str
) -> None:
    record = f'{{"text": "{typed}", "question": "{typed}", "answer": "{typed}"}}'
    path = put(tmp_path / name, form.replace("{}", record))
    assert corpus_texts(path) == [read]
    (conv,) = read_qa(path)
    assert conv.question == conv.answer == read


def test_a_corpus_with_half_a_surrogate_pair_is_prepared(tmp_path: Path, nanochat_home: Path) -> None:
    path = put(tmp_path / "cut.jsonl", '{"text": "cut \\ud83d emoji, line after line"}\n' * 40)
    shown = prepare_corpus(str(path), "bpe:300").folder / "pretrain_input.txt"
    assert shown.read_text(encoding="utf-8").count("cut ? emoji") == 40


@given(text=st.text(alphabet=st.sampled_from('a\\"\n\ud83d\ude00\U0001f600é')), block=st.integers(1, 9))
def test_wherever_blocks_end_only_half_pairs_are_changed(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfiles, "BLOCK", block)
        mended = b"".join(jsonfiles._without_lone_surrogates(io.BytesIO(json.dumps(text).encode())))
    # Written as UTF-16, two halves that stand together are one character.
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\ufffd", "?")
    assert json.loads(mended) == whole


@pytest.mark.parametrize("read", [corpus_texts, answers])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", f"{LINES}\n{{broken", "a.jsonl, line 4: not valid JSON"),
        ("a.json", f"{LINES}\n{{broken", "a.json, line 4: not valid JSON"),
        ("a.json", json.dumps(RECORDS, indent=1).replace("text 2", 'text "2'), "a.json: not valid JSON .*line 13"),
        (
            "a.json.gz",
            json.dumps(RECORDS, indent=1).replace("text 2", 'text "2'),
            "a.json.gz: not valid JSON .*line 13",
        ),
        ("a.json", json.dumps(RECORDS)[:-1], "a.json: not valid JSON"),
        ("a.jsonl", f"{LINES}\n".encode() + b'{"text": "caf\xe9"}', "a.jsonl, line 4 is not UTF-8"),
        (
            "a.json",
            b'[{"text": "a", "question": "a", "answer": "a"},\n {"text": "caf\xe9"}]',
            "a.json, line 2 is not UTF-8",
        ),
        ("a.json", json.dumps([*RECORDS, {"x": 1}]), "a.json, record 4"),
        ("a.JSONL", f"{LINES}\n{{}}", "a.JSONL, line 4"),
    ],
)
def test_an_error_names_file_and_line_or_record(
    tmp_path: Path, read: Callable[[Path], list[str]], name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(put(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_value_nested_too_deep_to_be_shown_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 1"):
        answers(put(tmp_path / "a.json", '[{"question": ' + "[" * 5000 + "]" * 5000 + "}]"))
