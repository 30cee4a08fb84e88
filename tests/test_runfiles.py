"""The files of a run: one writer at a time, and starting over loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import home
import pytest
from home import SETTINGS, SHAPE
from small import steps_of

from nanochat import checkpoint, devices, files, paths
from nanochat.cli import parser as cli
from nanochat.config import UserError
from nanochat.data import corpus
from nanochat.train import runfiles, stages

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with a corpus and questions, in which both stages of run r are trained."""
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
    home.pretrain(home.prepare(tmp_path))
    home.finetune(tmp_path)
    return tmp_path


def corpus_of(project):
    return corpus.load_corpus(project / "data" / "stories")


def kept(folder):
    """The content of a run's folder, without the lock and the files set aside by other trainings."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.startswith(".lock")}


# --- one writer ----------------------------------------------------------------------------------


def test_a_second_training_of_the_run_in_the_same_process_is_refused_and_the_first_goes_on(project):
    reports = stages.pretrain("new", corpus_of(project), settings=SETTINGS, device="cpu", say=str, **SHAPE)
    first = [next(reports), next(reports)]
    with pytest.raises(UserError, match=r"run 'new' is in use by this very process; close\(\)"):
        home.pretrain(corpus_of(project), "new")
    assert steps_of([*first, *reports]) == steps_of(home.pretrain(corpus_of(project), "new"))


def test_a_training_that_was_left_unlocks_its_run(project):
    reports = stages.pretrain("new", corpus_of(project), settings=SETTINGS, device="cpu", say=str, **SHAPE)
    next(reports)
    closing = threading.Thread(target=reports.close)  # as garbage collection may, in any thread
    closing.start()
    closing.join()
    assert len(home.pretrain(corpus_of(project), "new", resume=True)) == 6


PROGRAM = """
import sys
from home import SHAPE
from nanochat.cli import parser as cli
from nanochat import config, devices
from nanochat.data import corpus

config.MODEL_PRESETS["tiny"] = {**config.MODEL_PRESETS["nano"], **{k: v for k, v in SHAPE.items() if k != "model"}}
devices.matrix_rate = lambda kind, dtype: 1e9
original = corpus.batch

def batch(*args, **options):
    if options["step"] == 3:
        print("waiting", flush=True)
        sys.stdin.readline()
    return original(*args, **options)

corpus.batch = batch
sys.exit(cli.main(sys.argv[1:]))
"""


def nanochat(*words):
    """A separate process that runs a command and, in a training, waits for a line of input before the fourth step."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], text=True, env=environment, **pipes)


@pytest.fixture
def other(project):
    """A process that trains run `new` and waits after its third step."""
    words = ("--corpus", str(project / "stories.txt"), "--model", "tiny", "--steps", "6", "--batch-size", "2")
    with nanochat("pretrain", "--run", "new", *words) as process:
        assert process.stdout.readline() == "waiting\n"
        yield process
        process.kill()


def test_of_two_processes_one_trains_and_the_other_is_refused_in_one_sentence(project, other):
    before = kept(paths.run_dir("new"))
    with nanochat(*other.args[3:]) as second:
        out, err = second.communicate()
    assert (second.returncode, out, err.count("\n")) == (2, "", 1)
    assert f"run 'new' is in use by process {other.pid} (pretraining since " in err
    assert kept(paths.run_dir("new")) == before
    _, err = other.communicate("\n")
    assert other.returncode == 0, err
    assert [r["step"] for r in runfiles.read_metrics("new")] == list(range(7))


def test_a_process_that_was_killed_leaves_no_lock(project, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with nanochat("pretrain", "--run", "new", "--resume") as second:
        _, err = second.communicate("\n")
    assert second.returncode == 0, err
    assert [r["step"] for r in runfiles.read_metrics("new")] == list(range(7))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to wait for")
def test_a_process_that_is_terminated_saves_the_step_in_progress(project, other):
    other.send_signal(signal.SIGTERM)
    other.communicate("\n")
    assert other.returncode == -signal.SIGTERM
    assert checkpoint.load_file(paths.last_path("new", "base_model"))["step"] == 4


# --- starting over, and back ---------------------------------------------------------------------


def test_interrupted_started_over_by_mistake_restored_and_resumed_is_the_uninterrupted_run(project):
    whole = home.pretrain(corpus_of(project), "whole", replace(SETTINGS, eval_every=4))
    reports = stages.pretrain(
        "new", corpus_of(project), settings=replace(SETTINGS, eval_every=4), device="cpu", say=str, **SHAPE
    )
    before = [next(reports) for _ in range(4)]
    reports.close()
    said = []
    home.pretrain(corpus_of(project), "new", replace(SETTINGS, seed=9, steps=2), say=said.append)
    [sentence] = said
    command = sentence.partition("`nanochat ")[2].partition("`")[0].split()
    assert command == ["restore", "--run", "new", "earlier-1"]
    assert cli.main(command) == 0
    after = home.pretrain(corpus_of(project), "new", replace(SETTINGS, eval_every=4), resume=True)
    assert steps_of([*before, *after]) == steps_of(whole)
    states = [checkpoint.load_file(paths.last_path(run, "base_model"))["model"] for run in ("whole", "new")]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    marks = [checkpoint.read_meta(paths.checkpoint_path(run, "base_model"))["fingerprint"] for run in ("whole", "new")]
    assert marks[0] == marks[1]
    assert [r["step"] for r in runfiles.read_metrics("new")] == list(range(7))


def test_starting_over_sets_aside_all_of_the_stage_and_what_was_trained_from_it(project):
    before = kept(paths.run_dir("r"))
    said = []
    home.pretrain(corpus_of(project), settings=replace(SETTINGS, seed=1), say=said.append)
    assert said == [
        "The previous pretraining and finetuning of run 'r' moved to earlier-1; "
        "`nanochat restore --run r earlier-1` brings back what was there."
    ]
    assert kept(paths.run_dir("r") / "earlier-1") == before
    assert {r["stage"] for r in runfiles.read_metrics("r")} == {"base_model"}
    assert [(run, stage) for run, stage, _ in checkpoint.available() if run == "r"] == [("r", "base_model")]


def test_starting_a_later_stage_over_leaves_the_earlier_one_alone(project):
    base = paths.checkpoint_path("r", "base_model").read_bytes()
    home.finetune(project, settings=replace(SETTINGS, seed=1))
    home.finetune(project, settings=replace(SETTINGS, seed=2))
    assert paths.checkpoint_path("r", "base_model").read_bytes() == base
    for name in ("earlier-1", "earlier-2"):
        assert {r["stage"] for r in runfiles._records(paths.run_dir("r") / name / "metrics.jsonl")} == {"fine_tuned"}
    assert [r["stage"] for r in runfiles.read_metrics("r")] == ["base_model"] * 7 + ["fine_tuned"] * 7


def test_restoring_sets_the_present_aside_so_that_it_can_be_undone(project):
    first = kept(paths.run_dir("r"))
    home.pretrain(corpus_of(project), settings=replace(SETTINGS, seed=1))
    second = kept(paths.run_dir("r"))
    said = []
    runfiles.restore("r", "earlier-1", said.append)
    assert kept(paths.run_dir("r")) == first
    assert kept(paths.run_dir("r") / "earlier-2") == second
    assert said[-1] == "run 'r' has its earlier pretraining and finetuning again"
    runfiles.restore("r", "earlier-2", str)
    assert kept(paths.run_dir("r")) == second


@pytest.mark.parametrize("name", ["earlier-7", "../r", "metrics.jsonl"])
def test_what_was_not_set_aside_cannot_be_restored(project, name, capsys):
    home.finetune(project, settings=replace(SETTINGS, seed=1))
    before = kept(paths.run_dir("r"))
    assert cli.main(["restore", "--run", "r", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert kept(paths.run_dir("r")) == before


def test_a_model_that_was_never_trained_is_not_kept(project):
    said: list[str] = []
    reports = stages.pretrain("new", corpus_of(project), settings=SETTINGS, device="cpu", say=said.append, **SHAPE)
    next(reports)
    reports.close()
    assert checkpoint.read_meta(paths.checkpoint_path("new", "base_model"))["step"] == 0
    home.pretrain(corpus_of(project), "new", say=said.append)
    assert said == []
    assert not list(paths.run_dir("new").glob("earlier-*"))


def test_a_training_that_never_got_better_than_its_start_is_kept_all_the_same(project):
    """Its best weights are those of step 0, but the state contains the training done."""
    reports = stages.pretrain("new", corpus_of(project), settings=SETTINGS, device="cpu", say=str, **SHAPE)
    next(reports), next(reports)
    reports.close()
    assert checkpoint.read_meta(paths.checkpoint_path("new", "base_model"))["step"] == 0
    home.pretrain(corpus_of(project), "new")
    state = checkpoint.load_file(paths.run_dir("new") / "earlier-1" / "base_model_last.pt")
    assert state["step"] == 1


def test_the_lock_names_its_holder_only_while_it_is_held(project):
    with runfiles.locked("r", "testing"):
        held = json.loads((paths.run_dir("r") / ".lock.json").read_text())
    assert (held["pid"], held["doing"]) == (os.getpid(), "testing")
    assert not (paths.run_dir("r") / ".lock.json").exists()


# --- backups of what was renamed, killed or trained further ---------------------------------------------------------------


def test_a_base_model_trained_further_takes_nothing_from_the_assistant_made_of_it(project):
    before = kept(paths.run_dir("r"))
    said = []
    longer = replace(SETTINGS, steps=12, eval_every=1)
    reports = home.pretrain(corpus_of(project), settings=longer, resume=True, say=said.append)
    assert [r.step for r in reports] == list(range(7, 13))
    assert any("nanochat restore --run r earlier-1" in sentence for sentence in said)
    assert not paths.checkpoint_path("r", "fine_tuned").exists()
    assert kept(paths.run_dir("r") / "earlier-1") == before
    runfiles.restore("r", "earlier-1", said.append)
    assert kept(paths.run_dir("r")) == before


def test_a_backup_of_a_run_that_was_renamed_comes_back_under_its_new_name(project):
    before = kept(paths.run_dir("r"))
    home.pretrain(corpus_of(project), settings=replace(SETTINGS, seed=1))
    out = paths.run_dir("r").rename(paths.run_dir("r").with_name("mine"))
    (out / "r_base_model.pt").rename(out / "mine_base_model.pt")
    runfiles.restore("mine", "earlier-1", str)
    back = {name.replace("mine_", "r_"): content for name, content in kept(out).items()}
    assert back == before


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["metrics.jsonl"]])
def test_a_backup_without_a_training_is_refused_and_nothing_is_lost(project, content):
    folder = paths.run_dir("r") / "earlier-7"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("{}")
    before = kept(paths.run_dir("r"))
    with pytest.raises(UserError, match="earlier-7 holds no files of a training"):
        runfiles.restore("r", "earlier-7", str)
    assert kept(paths.run_dir("r")) == before
    assert sorted(path.name for path in folder.iterdir()) == content


@pytest.mark.parametrize("moves", range(1, 9))
def test_killed_while_it_sets_aside_it_still_keeps_everything_together(project, monkeypatch, moves):
    before, real, done = kept(paths.run_dir("r")), files.move, []

    def dying(source, target):
        done.append(target)
        if len(done) == moves:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(files, "move", dying)
    with contextlib.suppress(SystemExit):
        home.pretrain(corpus_of(project), settings=replace(SETTINGS, seed=1))
    monkeypatch.setattr(files, "move", real)
    home.pretrain(corpus_of(project), settings=replace(SETTINGS, seed=2))
    assert kept(paths.run_dir("r") / "earlier-1") == before
