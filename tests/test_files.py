"""Every file is written through one door: whatever fails, the old one or the new one is whole under its name."""

from __future__ import annotations

import ast
import errno
import io
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import requests
from small import small_config
from test_feedback import record

from nanochat import checkpoint, files, paths, state
from nanochat.chat import feedback, session
from nanochat.config import UserError, profile
from nanochat.course import committed, report
from nanochat.data import corpus, download
from nanochat.files import append_line, atomic_write, flush_folder, make_folder
from nanochat.model import GPT
from nanochat.tokenizer import train_bpe
from nanochat.train import runfiles

ROOT = Path(__file__).resolve().parent.parent


# --- the verbs ----------------------------------------------------------------------------------


def test_a_written_file_appears_whole_and_alone(tmp_path):
    with atomic_write(tmp_path / "new" / "a.bin") as file:
        file.write(b"abc")
        assert not (tmp_path / "new" / "a.bin").exists()
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"abc"
    assert os.listdir(tmp_path / "new") == ["a.bin"]


def test_text_is_utf8_with_unix_line_ends_on_every_system(tmp_path):
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("é\n👋\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n👋\n".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error, before):
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert os.listdir(tmp_path) == ([] if before is None else ["a.bin"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("function", ["replace", "fsync", "chmod"])
def test_a_disk_that_fails_at_the_end_leaves_what_was_there(tmp_path, monkeypatch, function):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="no space left"), atomic_write(path) as file:
        file.write(b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def flushed(fd: int) -> None:
        found = os.fstat(fd)
        order.append("folder" if stat.S_ISDIR(found.st_mode) else f"file of {found.st_size}")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b)))
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"abc")
    assert order == ["file of 3", "name", *(["folder"] if os.name == "posix" else [])]


def test_a_folder_that_the_system_cannot_open_or_flush_is_passed_over_and_a_broken_disk_is_not(tmp_path, monkeypatch):
    flush_folder(tmp_path / "none")

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    code = errno.EINVAL
    flush_folder(tmp_path)
    if os.name == "posix":
        code = errno.EIO
        with pytest.raises(OSError, match=os.strerror(code)):
            flush_folder(tmp_path)


def test_a_line_after_a_torn_one_begins_anew(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"whole\nto")
    append_line(path, "é")
    assert path.read_bytes() == "whole\nto\né\n".encode()


@pytest.mark.skipif(os.name != "posix", reason="this system cannot flush folders")
def test_a_new_folder_is_on_the_disk_in_each_folder_above_it(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush_folder", flushed.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]


# --- a disk that fails, at any moment, for every kind of file -----------------------------------


class Disk:
    """Stands between nanochat and the disk, counts what is done, and fails from the n-th `operation` on, or once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operation, self.number, self.error, self.stays = "", 0, 0, False
        self.done = 0
        self.write, self.fsync, self.replace = os.write, os.fsync, os.replace
        self.scratch = tempfile.TemporaryFile
        monkeypatch.setattr(os, "write", self._write)
        monkeypatch.setattr(os, "fsync", lambda fd: self._fails("fsync") or self.fsync(fd))
        monkeypatch.setattr(os, "replace", lambda old, new: self._fails("replace") or self.replace(old, new))
        monkeypatch.setattr(os, "fdopen", self._opened)
        monkeypatch.setattr(tempfile, "TemporaryFile", self._scratch)

    def breaks(self, operation: str, number: int, error: int, stays: bool) -> None:
        self.operation, self.number, self.error, self.stays, self.done = operation, number, error, stays, 0

    def mended(self) -> bool:
        """Let everything work again; returns whether anything had failed."""
        self.operation = ""
        return self.done >= self.number

    def _fails(self, operation: str) -> None:
        if operation == self.operation:
            self.done += 1
            if self.done == self.number or (self.stays and self.done > self.number):
                raise OSError(self.error, os.strerror(self.error))

    def _write(self, fd: int, content: bytes) -> int:
        try:
            self._fails("write")
        except OSError:
            self.write(fd, content[: len(content) // 2])
            raise
        return self.write(fd, content)

    def _scratch(self, **options: Any) -> Any:
        with self.scratch(**options) as file:
            return self._opened(os.dup(file.fileno()), "w+b")

    def _opened(self, fd: int, mode: str, **text: Any) -> Any:
        raw = _Raw(fd, mode.replace("b", ""), self._write)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **text)


class _Raw(io.FileIO):
    def __init__(self, fd: int, mode: str, write: Callable[[int, bytes], int]) -> None:
        super().__init__(fd, mode)
        self._write = write

    def write(self, content: Any) -> int:
        return self._write(self.fileno(), bytes(content))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


BOOK = "".join(f"The {a} met the {b}.\n" for a in ("cat", "dog", "owl") for b in ("cow", "hen", "pig"))
TOKENIZERS = {version: train_bpe([BOOK * version], 260 + version) for version in (1, 2)}


def write_corpus(home: Path, version: int) -> None:
    (home / "book.txt").write_text(BOOK * version)
    corpus.prepare_corpus(str(home / "book.txt"), "bpe:262")


def write_questions(home: Path, version: int) -> None:
    asked = [{"question": f"{version} and {number}?", "answer": str(version + number)} for number in range(20)]
    (home / "sums.json").write_text(json.dumps(asked))
    corpus.prepare_qa(str(home / "sums.json"), TOKENIZERS[1], 64)


def write_tokenizer(home: Path, version: int) -> None:
    TOKENIZERS[version].save(home / "data" / "book")


def write_checkpoint(home: Path, version: int) -> None:
    model = GPT(small_config(vocab_size=TOKENIZERS[1].vocab_size))
    for weights in model.parameters():
        weights.data.fill_(version)
    checkpoint.save(paths.checkpoint_path("r", "base_model"), model, TOKENIZERS[1], {"run": "r", "stage": "base_model"})


def write_state(home: Path, version: int) -> None:
    state.save_state(paths.last_path("r", "base_model"), {"step": version, "settings": {}})


def write_metrics(home: Path, version: int) -> None:
    log = runfiles.metrics_logger("r", "base_model", version - 1)
    log(SimpleNamespace(record=lambda: {"stage": "base_model", "step": version}))


def write_lock(home: Path, version: int) -> None:
    with runfiles.locked("r", f"testing {version}"):
        pass


def write_feedback(home: Path, version: int) -> None:
    feedback.append(paths.feedback_path("r"), record(id=str(version), time="2026-01-01T00:00:00Z"))


def write_chat(home: Path, version: int) -> None:
    chat = SimpleNamespace(exchanges=[session.Exchange(f"question {version}", "", [])])
    session.ChatSession.save(chat, paths.run_dir("r") / "chats" / "chat.json")


def write_card(home: Path, version: int) -> None:
    report.save_card("r", "base_model", {"version": version})


def write_report(home: Path, version: int) -> None:
    report.write(profile("smoke"), [{"notebook": "01", "seconds": version, "peak_mb": 1.0}])


def write_notebook(home: Path, version: int) -> None:
    (home / "executed.ipynb").write_text(
        nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {version}", id="a")]))
    )
    committed.commit(home / "executed.ipynb", home / "notebooks" / "01.ipynb")


def write_download(home: Path, version: int) -> None:
    download.fetch("http://127.0.0.1/text", paths.data_dir("downloads"), f"text{version}")


class Response:
    """The little of an answer that a download looks at."""

    status_code = 200

    def __init__(self, *args: Any, **options: Any) -> None:
        self.headers = {"ETag": '"same"', "Content-Length": "40"}

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *failure: Any) -> None: ...

    def raise_for_status(self) -> None: ...

    def iter_content(self, size: int) -> Iterator[bytes]:
        yield from [b"twenty characters...", b"and twenty more....."]


@dataclass(frozen=True)
class Kind:
    """How a kind of file is written; which of its files may be missing after a failure, and which kept to go on from."""

    write: Callable[[Path, int], None]
    missing: str = "nothing"
    unfinished: str = "nothing"
    error: type[Exception] = OSError


# Without meta.json a folder counts as not prepared. A state is missing only while the one before it is there.
KINDS = {
    "corpus": Kind(write_corpus, missing=r"meta\.json"),
    "questions": Kind(write_questions, missing=r"meta\.json"),
    "tokenizer": Kind(write_tokenizer),
    "checkpoint": Kind(write_checkpoint),
    "state": Kind(write_state, missing="base_model_last.pt", unfinished=r".*\.next"),
    "metrics": Kind(write_metrics),
    "lock": Kind(write_lock, unfinished=r"\.lock"),
    "feedback": Kind(write_feedback),
    "chat": Kind(write_chat),
    "card": Kind(write_card),
    "report": Kind(write_report),
    "notebook": Kind(write_notebook),
    "download": Kind(write_download, unfinished=r"\.text2\.(part|etag|lock)", error=UserError),
}
APPENDED = ("metrics", "feedback")


def tree(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def whole_lines(content: bytes) -> bytes:
    return b"".join(line for line in content.splitlines(keepends=True) if line.endswith(b"}\n"))


@pytest.mark.parametrize(
    ("operation", "error", "stays"),
    [
        ("write", errno.ENOSPC, True),
        ("write", errno.EIO, False),
        ("fsync", errno.EIO, False),
        ("replace", errno.EIO, False),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_fails_the_old_file_or_the_new_one_is_whole_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, kind: str, operation: str, error: int, stays: bool
) -> None:
    monkeypatch.setattr(requests, "get", Response)
    about = KINDS[kind]

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("NANOCHAT_HOME", str(home))
    about.write(home, 1)
    shutil.copytree(home, tmp_path / "old")
    old = tree(home)
    about.write(home, 2)
    new = tree(home)
    shutil.rmtree(home)
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "old", home)
        disk.breaks(operation, number, error, stays)
        try:
            about.write(home, 2)
        except about.error as failure:
            assert os.strerror(error) in str(failure) and "\n" not in str(failure)
            assert disk.mended()
        else:
            assert not disk.mended(), "a failure was not told"
            break
        there = tree(home)
        for name, content in there.items():
            base = Path(name).name
            if re.fullmatch(about.unfinished, base) or name in ("book.txt", "sums.json", "executed.ipynb"):
                continue
            if kind in APPENDED:
                content = whole_lines(content)
            assert content in (old.get(name), new.get(name)), f"{name} after {operation} {number}"
        lost = [name for name in old.keys() - there.keys() if not re.fullmatch(about.missing, Path(name).name)]
        assert not lost, f"after {operation} {number}"
        about.write(home, 2)  # and once the disk works again, so does everything
        if kind not in APPENDED:
            assert tree(home).items() >= {n: c for n, c in new.items() if not n.endswith("_last.previous.pt")}.items()
        shutil.rmtree(home)
    assert number > 1 or operation == "replace", "nothing was written"


# --- and nobody goes past the door --------------------------------------------------------------


WRITING = {"write_text", "write_bytes", "mkstemp", "TemporaryFile", "NamedTemporaryFile", "fsync", "rename", "renames"}


def writes(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, or gives one its name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Name) and owner.id == "os" and name in ("replace", "write", "truncate"):
        return True
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return name in WRITING or (
        name in ("open", "fdopen") and any(re.fullmatch("[rwaxbt+]*[wax+][bt+]*", m) for m in modes)
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(path, 'w')", True), ("path.open(mode='ab')", True), ("open(path, 'r+b')", True), ("os.replace(a, b)", True),
        ("path.write_text('x')", True), ("path.open('rb')", False), ("open(path)", False), ("text.replace('a', 'b')", False),
    ],
)  # fmt: skip
def test_a_call_that_writes_is_recognized(code: str, found: bool) -> None:
    [statement] = ast.parse(code).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    assert writes(statement.value) == found


def test_no_module_but_this_one_opens_a_file_to_write() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "nanochat").rglob("*.py"))
        if path != ROOT / "nanochat" / "files.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    ]
    assert found == [], "write through nanochat/files.py"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_are_as_private_as_their_user_wants(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with files.atomic_write(tmp_path / "whole") as file:
            file.write(b"x")
        files.append_line(tmp_path / "lines", "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
