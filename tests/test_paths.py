from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import paths
from nanochat.config import UserError
from nanochat.paths import safe_name


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


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, nanochat, nanochat.config, nanochat.paths; print({'torch', 'numpy', 'IPython'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_newest_is_what_was_changed_last_and_of_the_same_moment_the_first_by_path(tmp_path):
    times = {"a/x": 100, "b/x": 300, "c/x": 200, "d/x": 200}
    for name, time in times.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    wanted = [tmp_path / name for name in ("b/x", "c/x", "d/x", "a/x")]
    for files in itertools.permutations([*wanted, tmp_path / "e" / "x", tmp_path / "a" / "x" / "y"]):
        assert paths.newest_first(files) == wanted
