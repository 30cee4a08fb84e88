"""Sources of text: names, paths, file formats, licenses."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import UserError
from nanochat.data import sources, textfiles
from nanochat.data.sources import CORPORA, QA_SETS, Kind, documents, resolve
from nanochat.data.textfiles import strip_gutenberg
from nanochat.tokenizer import train_bpe


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "almanac"])
def test_a_file_put_there_by_hand_is_used_without_a_network(name: str, nanochat_home: Path) -> None:
    path = nanochat_home / "data" / "downloads" / CORPORA[name].file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"by hand\n") if path.suffix == ".gz" else b"by hand\n")
    assert [text.strip() for text in documents(name)] == ["by hand"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", [name for name in QA_SETS if name != "almanac"])
def test_a_question_set_put_there_by_hand_is_found(name: str, nanochat_home: Path) -> None:
    path = nanochat_home / "data" / "downloads" / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert resolve(name, "qa").path == path


def test_other_protocols_are_refused(nanochat_home: Path) -> None:
    with pytest.raises(UserError, match="only http and https"):
        list(documents("ftp://example.org/text.txt"))


# --- names and paths ---


def test_the_almanac_is_the_first_corpus_and_needs_no_file(nanochat_home: Path) -> None:
    assert next(iter(CORPORA)) == next(iter(QA_SETS)) == "almanac"
    assert resolve("almanac").path is resolve("almanac", "qa").path is None
    assert sum(1 for _ in documents("almanac", size="smoke")) > 10


def test_a_misspelt_name_is_answered_with_the_nearest(nanochat_home: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tiny_shakespeare'"):
        list(documents("tiny_shakespear"))
    with pytest.raises(UserError, match="did you mean 'squad_v2'"):
        resolve("squadv2", "qa")


def test_a_missing_path_is_named(nanochat_home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file '.*/nowhere\.txt'"):
        list(documents(str(tmp_path / "nowhere.txt")))
    with pytest.raises(UserError, match="is a folder"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my_book.txt", "my_book"),
        ("book.txt.gz", "book"),
        ("Talk-2.JSONL.GZ", "Talk-2"),
        (".hidden.txt", "hidden"),
        ("notes.v1.txt", "notes.v1"),
        ("my notes (2).txt", "my_notes_2_[0-9a-f]{8}"),
        ("北京.txt", "corpus_[0-9a-f]{8}"),
        ("x" * 90 + ".txt", "x" * 60 + "_[0-9a-f]{8}"),
        ("dracula.txt", "dracula_file"),
        ("Dracula.txt", "Dracula_file"),
        ("almanac_qa.txt", "almanac_qa_file"),
        ("feedback.jsonl", "feedback_file"),
    ],
)
def test_a_path_has_a_safe_folder_name_of_its_own(tmp_path: Path, nanochat_home: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("text")
    assert re.fullmatch(name, resolve(str(tmp_path / file)).name)


@pytest.mark.parametrize("kind", ["corpus", "qa"])
def test_names_that_differ_only_in_what_a_folder_cannot_hold_stay_apart(
    tmp_path: Path, nanochat_home: Path, kind: Kind
) -> None:
    files = ["红楼.txt", "西游.txt", "notes.v1.txt", "notes.v2.txt", "my notes.txt", "my_notes.txt", "my-notes!.txt",
             "x" * 70 + "a.txt", "x" * 70 + "b.txt"]  # fmt: skip
    for file in files:
        (tmp_path / file).write_text(file, encoding="utf-8")
    assert len({resolve(str(tmp_path / file), kind).name.casefold() for file in files}) == len(files)


def test_registered_names_are_their_own_folders() -> None:
    assert [resolve(name).name for name in CORPORA] == list(CORPORA)


def test_a_source_is_resolved_once_and_then_holds_from_everywhere(
    tmp_path: Path, nanochat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "book.txt").write_text("one\n<|endoftext|>\ntwo")
    monkeypatch.chdir(tmp_path / "in")
    source = resolve("book.txt")
    monkeypatch.chdir(tmp_path)
    assert resolve(source) is source
    assert list(documents(source)) == list(source.documents()) == ["one", "two"]
    assert (source.name, source.origin, source.path) == ("book", str(source.path), tmp_path / "in" / "book.txt")
    assert source.fingerprint == hashlib.sha256(source.path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("spec", ["dracula", "https://example.org/some/book.txt"])
def test_what_is_to_be_downloaded_is_not_downloaded_before_it_is_needed(
    nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setattr(sources, "fetch", lambda url, folder, name, **expected: Path(url, name))
    source = resolve(spec)
    assert list(nanochat_home.iterdir()) == []
    assert source.folder.parent == nanochat_home / "data"
    assert source.path == Path(source.url, source.file.name)


def test_a_file_of_questions_and_a_corpus_of_one_name_have_folders_of_their_own(
    tmp_path: Path, nanochat_home: Path
) -> None:
    (tmp_path / "notes.jsonl").write_text("{}")
    folders = [resolve(str(tmp_path / "notes.jsonl"), kind).folder.name for kind in ("corpus", "qa")]
    assert folders == ["notes", "notes_qa"]
    assert [resolve(name, "qa").folder.name for name in ("almanac", "squad_v2")] == ["almanac_qa", "squad_v2"]


def test_the_almanac_is_another_for_each_size_and_seed() -> None:
    made = [resolve("almanac", size=size, seed=seed) for size in ("smoke", "full") for seed in (0, 1)]
    assert len({source.fingerprint for source in made}) == 4


# --- files ---


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, content: str | bytes) -> str:
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(tmp_path / name)

    return write


Put = Callable[[str, "str | bytes"], str]


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".md", ""])
def test_a_text_without_separators_is_one_document_kept_as_it_is(put: Put, ending: str) -> None:
    assert list(documents(put(f"a{ending}", "\n one\n\n  two \n"))) == ["\n one\n\n  two \n"]


def test_separators_stand_alone_on_a_line(put: Put) -> None:
    text = (
        "one\nmore\n\n<|endoftext|>\n\ntwo <|endoftext|> x\n<|endoftext|> \n<|endoftext|>\n  \n<|endoftext|>\nthree\n"
    )
    assert list(documents(put("a.txt", text))) == ["one\nmore", "two <|endoftext|> x", "three\n"]


def test_line_ends_of_other_systems_and_a_byte_order_mark_are_understood(put: Put) -> None:
    assert list(documents(put("a.txt", "\ufeffone\r\n<|endoftext|>\r\ntwo\r\n"))) == ["one", "two\n"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".ndjson"])
def test_json_lines_give_a_document_each(put: Put, ending: str) -> None:
    lines = [json.dumps({"text": "one\n<|endoftext|>\nmore"}), "", '{"text": "  "}', '{"text": "two", "id": 7}']
    assert list(documents(put(f"a{ending}", "\n".join(lines)))) == ["one\n<|endoftext|>\nmore", "two"]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_json_list_gives_a_document_for_each_record(put: Put, ending: str) -> None:
    assert list(documents(put(f"a{ending}", '[{"text": "one"}, {"text": "two"},\n "three"]'))) == [
        "one",
        "two",
        "three",
    ]


def test_subtitles_are_grouped_by_a_hundred_lines(nanochat_home: Path) -> None:
    path = nanochat_home / "data" / "downloads" / CORPORA["OpenSubtitles2018"].file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("".join(f"line {i}\n" for i in range(250)).encode()))
    found = list(documents("OpenSubtitles2018"))
    assert [len(document.split("\n")) for document in found] == [100, 100, 50]
    assert found[1].startswith("line 100\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no text in it"),
        ("a.txt", "<|endoftext|>\n\n<|endoftext|>", "no text in it"),
        ("a.jsonl", '{"text": ""}', "no text in it"),
        ("a.json", "[]", "no text in it"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', 'line 2: there is no "text"'),
        ("a.jsonl", '{"text": 5}', 'line 1: there is no "text"'),
        ("a.json", '[{"text": "a"},\n{"text": "b"},\n{"text" "c"}]', "not valid JSON .*line 3 column 9"),
        ("a.json", '[{"text": "a"}', "not valid JSON .*line 1"),
        ("a.json", '[{"text": "a"}, {}]', 'record 2: there is no "text"'),
        ("a.txt", b"first\nsecond\n" + b"caf\xe9", "is not UTF-8.*iconv"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "is not UTF-8"),
    ],
)
def test_a_bad_file_is_one_error_that_says_where(put: Put, name: str, content: str | bytes, message: str) -> None:
    path = put(name, content)
    with pytest.raises(UserError, match=message) as caught:
        list(documents(path))
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_gzip_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    with pytest.raises(UserError, match="cannot read"):
        list(documents(str(tmp_path / "a.txt.gz")))
    (tmp_path / "b.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot read"):
        list(documents(str(tmp_path / "b.txt.gz")))


# --- pieces ---

words = st.text(alphabet="abé'1北.", min_size=1, max_size=8)
prose = st.lists(st.tuples(words, st.sampled_from([" ", "\n", "  ", "\n\n", "\n \t", " \u2003"])), min_size=1).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


def in_small_pieces(folder: Path, text: str) -> tuple[list[textfiles.Piece], list[object]]:
    """The pieces, of 16 characters, and the documents read from a file with this text."""
    path = folder / "a.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "PIECE", 16)
        return list(resolve(str(path)).pieces()), list(documents(str(path)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


@given(prose)
def test_the_pieces_of_prose_have_the_ids_of_the_whole(folder: Path, text: str) -> None:
    tok = train_bpe([text * 3], 300)
    found, whole = in_small_pieces(folder, text)
    assert "".join(piece.text for piece in found) == text
    assert whole == [text]
    assert [id for piece in found for id in tok.encode(piece.text)] == tok.encode(text)
    assert [piece.first for piece in found] == [True] + [False] * (len(found) - 1)
    assert all(len(piece.text) <= 2 * 16 for piece in found)
    assert found[-1].done == len(text.encode())


@given(st.text(alphabet="a \n\t<|北", min_size=1))
def test_pieces_put_together_are_the_text_whatever_it_is(folder: Path, text: str) -> None:
    assert in_small_pieces(folder, "x" + text)[1] == ["x" + text]


@given(st.lists(st.tuples(words, prose).map(lambda pair: " ".join(pair).strip()), min_size=1))
def test_separators_are_found_wherever_pieces_end(folder: Path, texts: list[str]) -> None:
    assert in_small_pieces(folder, "\n<|endoftext|>\n".join(texts))[1] == texts


# --- Project Gutenberg ---

HEAD = "The Project Gutenberg eBook of A Tale\n\nThis ebook is for the use of anyone\n\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***\n"
END = "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***\n"
FOOT = "\nSection 1. General Terms of Use of Project Gutenberg works\nlicence\n"
BOOK = "CHAPTER I\n\nIt was a dark night.\n\n  He wrote of Project Gutenberg."


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (START, END),
        (START.replace("THE PROJECT", "THIS PROJECT"), "End of Project Gutenberg's A Tale, by Nobody\n\n" + END),
        ("***START OF THE PROJECT GUTENBERG EBOOK, A TALE***\n", "End of the Project Gutenberg EBook of A Tale\n"),
        ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n", "End of The Project Gutenberg Etext\n"),
    ],
)
def test_the_licence_is_stripped_and_counted(start: str, end: str) -> None:
    text = f"{HEAD}{start}\n\n{BOOK}\n\n{end}{FOOT}"
    kept, removed = strip_gutenberg(text)
    assert kept == BOOK
    assert removed == len(text.encode()) - len(BOOK.encode())


def test_several_books_in_one_file_are_all_kept() -> None:
    other = "CHAPTER I\n\nAnother one."
    text = f"{HEAD}{START}{BOOK}\n{END}{FOOT}{HEAD}{START}{other}\n{END}{FOOT}"
    assert strip_gutenberg(text)[0] == f"{BOOK}\n\n{other}"


@given(st.text(alphabet="*ab \nEND OF"))
def test_text_without_the_licence_stays_as_it_is(text: str) -> None:
    assert strip_gutenberg(text) == (text, 0)


def test_the_licence_is_stripped_from_files_piece_by_piece(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "\n".join(f"Line {i} of the tale." for i in range(500))
    text = f"{HEAD}{START}\n{long}\n\n{END}{FOOT * 100}"
    monkeypatch.setattr(textfiles, "PIECE", 1000)
    found = list(resolve(put("a.txt", text)).pieces())
    kept = "".join(piece.text for piece in found)
    assert kept.strip() == long
    assert sum(piece.stripped for piece in found) == len(text) - len(kept)
    assert [piece.first for piece in found].count(True) == 1 and found[0].first


def test_each_document_of_a_file_may_have_its_licence(put: Put) -> None:
    book = f"{HEAD}{START}{BOOK}\n{END}{FOOT}"
    assert list(documents(put("a.txt", f"{book}\n<|endoftext|>\n{book}\n<|endoftext|>\nplain"))) == [
        BOOK,
        BOOK,
        "plain",
    ]
