from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import paths
from nanochat.config import UserError
from nanochat.paths import atomic_write, flush_folder, safe_name


def test_home_is_the_checkout_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.delenv("NANOCHAT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.home() == Path(paths.__file__).resolve().parent.parent


def test_home_can_be_chosen_and_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_HOME", "elsewhere")
    assert paths.home() == tmp_path.resolve() / "elsewhere"


def test_everything_lies_where_the_design_says(nanochat_home):
    assert paths.data_dir("almanac") == nanochat_home / "data/almanac"
    assert paths.run_dir("nano") == nanochat_home / "out/nano"
    assert paths.checkpoint_path("nano", "base_model") == nanochat_home / "out/nano/nano_base_model.pt"
    assert paths.last_path("nano", "fine_tuned") == nanochat_home / "out/nano/fine_tuned_last.pt"
    assert paths.metrics_path("nano") == nanochat_home / "out/nano/metrics.jsonl"
    assert paths.feedback_path("nano") == nanochat_home / "data/feedback/nano.jsonl"


def test_asking_where_something_is_creates_nothing(nanochat_home):
    paths.checkpoint_path("nano", "aligned"), paths.feedback_path("nano"), paths.data_dir("almanac")
    assert list(nanochat_home.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc", " ", "a b", "a\n", "a\0", "-rf", ".hidden", "a.", "é", "x" * 101],
)
def test_names_that_could_leave_the_folder_or_trouble_a_system_are_refused(name):
    with pytest.raises(UserError, match="cannot be the name"):
        safe_name(name)


@pytest.mark.parametrize("name", ["con", "LPT1", "nul.txt"])
def test_names_that_windows_keeps_for_itself_are_refused(name):
    with pytest.raises(UserError, match="Windows"):
        safe_name(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=120) | st.from_regex(r"[\w.\-/\\]{1,110}", fullmatch=True))
def test_a_name_is_either_refused_or_one_folder_directly_under_out(nanochat_home, name):
    try:
        folder = paths.run_dir(name)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert folder.resolve() == nanochat_home.resolve() / "out" / name
    assert folder.parent.name == "out"


def test_an_unknown_stage_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fine_tuned'"):
        paths.checkpoint_path("nano", "finetuned")


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


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, nanochat, nanochat.config, nanochat.paths; print({'torch', 'numpy', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
