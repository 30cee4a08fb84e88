"""Training that is really killed, repeatedly, ends exactly like an undisturbed one: see killed.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import home
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which this system has not"),
]
COPIES = {"random": 2, "rename": 10, "interrupt": 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project ready for both stages: corpus, questions and a base model."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", str(folder))
        home.pretrain(home.prepare(folder), dropout=0.1)
    return folder


@pytest.fixture(scope="module", params=["base_model", "fine_tuned"])
def results(request, prepared, tmp_path_factory) -> dict:
    """The results of trainings disturbed in each way, and of an undisturbed one."""
    projects = tmp_path_factory.mktemp("projects")
    for name in ("whole", *(f"{kind}-{number:02}" for kind, copies in COPIES.items() for number in range(copies))):
        shutil.copytree(prepared, projects / name)
        if request.param == "base_model":
            shutil.rmtree(projects / name / "out")
    worker = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(worker), str(projects), request.param]
    environment = {**os.environ, "PYTHONPATH": str(worker.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_an_undisturbed_run_leaves_its_state_every_report_and_no_leftovers(results):
    whole = results["whole"]
    assert whole["step"] == 6
    assert [record["step"] for record in whole["metrics"]] == list(range(7))
    assert not [name for name in whole["files"] if name.endswith(".tmp")]


def test_a_run_killed_at_random_moments_ends_bit_for_bit_where_the_undisturbed_one_does(results):
    killed = results["random"]
    assert killed["ends"] == [results["whole"]] * COPIES["random"]
    assert set(killed["statuses"]) <= {0, -signal.SIGKILL}
    assert killed["statuses"].count(-signal.SIGKILL) >= 5
    assert len(set(killed["steps"])) >= 2  # not all in one place


def test_a_run_killed_right_before_or_after_any_file_gets_its_name_does_too(results):
    killed = results["rename"]
    assert killed["ends"] == [results["whole"]] * COPIES["rename"]
    assert set(killed["statuses"]) == {-signal.SIGKILL}


def test_ctrl_c_saves_the_step_in_progress_ends_by_keyboard_interrupt_and_the_run_goes_on(results):
    interrupted = results["interrupt"]
    assert interrupted["ends"] == [results["whole"]] * COPIES["interrupt"]
    assert interrupted["statuses"] == [130] * 3
    assert interrupted["steps"] == [2, 4, 6]
