from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace

import home
import numpy as np
import pytest
import torch
from home import SETTINGS, SHAPE
from small import steps_of

from nanochat import checkpoint, devices, loading, paths
from nanochat.config import PROFILES, UserError, profile
from nanochat.data import corpus as corpus_files
from nanochat.data import questions
from nanochat.evaluation.loss import mean_loss
from nanochat.train import runfiles, stages
from nanochat.trainer import TrainSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project folder with a corpus, questions, and a run with both stages trained; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", str(folder))
        patch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
        corpus = home.prepare(folder)
        home.pretrain(corpus)
        home.finetune(folder)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of `made` for this test to change."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.setenv("NANOCHAT_HOME", str(folder))
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
    return folder


def corpus_of(project):
    return corpus_files.load_corpus(project / "data" / "stories")


def content(folder):
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder): p.read_bytes() for p in files}


# --- pretraining ---------------------------------------------------------------------------------


def test_pretraining_leaves_a_model_a_state_and_metrics_where_the_design_says(project):
    out = project / "out" / "r"
    assert {p.name for p in out.iterdir()} == {
        "r_base_model.pt", "base_model_last.pt", "base_model_last.previous.pt",
        "r_fine_tuned.pt", "fine_tuned_last.pt", "fine_tuned_last.previous.pt", "metrics.jsonl", ".lock",
    }  # fmt: skip


def test_the_model_names_what_it_was_made_from(project):
    meta = loading.load("r", "base_model", "cpu").meta
    corpus = corpus_of(project)
    assert (meta["run"], meta["stage"], meta["model_name"], meta["corpus"]) == ("r", "base_model", "nano", "stories")
    assert meta["data_fingerprint"] == corpus.meta["source_fingerprint"]
    assert meta["tokenizer_fingerprint"] == corpus.tokenizer.fingerprint
    assert meta["parent"] is None
    assert meta["step"] in (0, 2, 4, 6)


def test_nothing_is_written_until_somebody_iterates(project):
    before = content(project)
    stages.pretrain("new", corpus_of(project), settings=SETTINGS, device="cpu", **SHAPE)
    stages.pretrain("r", corpus_of(project), settings=SETTINGS, device="cpu", **SHAPE)
    stages.finetune("r", str(project / "animals.json"), settings=SETTINGS, device="cpu")
    assert content(project) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "../x"}, "cannot be the name of a run"),
        ({"model": "nan"}, "did you mean 'nano'"),
        ({"device": "cuda:99"}, "cannot be used here"),
        ({"n_head": 3}, "multiple of n_head"),
        ({"block_size": 100_000}, "too short for windows"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(project, changes, message):
    before = content(project)
    options = {"run": "new", "device": "cpu", **SHAPE, **changes}
    with pytest.raises(UserError, match=message):
        stages.pretrain(options.pop("run"), corpus_of(project), settings=SETTINGS, **options)
    assert content(project) == before


def test_the_first_validation_knows_nothing_bits_per_byte_and_nats_agree(project):
    corpus = corpus_of(project)
    first = home.pretrain(corpus, "new", replace(SETTINGS, steps=1))[0]
    assert first.metrics["val_loss"] == pytest.approx(math.log(corpus.tokenizer.vocab_size), abs=0.1)
    _, y = corpus_files.val_windows(corpus.val, 32, 2)
    n_bytes = corpus.tokenizer.byte_lengths()[y].sum()
    assert first.metrics["val_bpb"] == pytest.approx(first.metrics["val_loss"] * y.size / math.log(2) / n_bytes)


def test_training_lowers_the_loss_and_keeps_a_readable_sample(project):
    reports = home.pretrain(corpus_of(project), "new", TrainSettings(steps=40, batch_size=4, eval_every=20))
    assert reports[-1].metrics["val_loss"] < 0.8 * reports[0].metrics["val_loss"]
    assert reports[-1].metrics["val_bpb"] < 0.8 * reports[0].metrics["val_bpb"]
    assert isinstance(reports[-1].sample, str)


def test_the_same_seed_trains_the_same_model_and_another_does_not(project):
    marks = {}
    for run, seed in (("a", 5), ("b", 5), ("c", 6)):
        reports = home.pretrain(corpus_of(project), run, replace(SETTINGS, seed=seed))
        marks[run] = (steps_of(reports), checkpoint.read_meta(paths.checkpoint_path(run, "base_model"))["fingerprint"])
    assert marks["a"] == marks["b"]
    assert marks["a"][0] != marks["c"][0]
    assert marks["a"][1] != marks["c"][1]


def test_validation_takes_the_same_windows_each_time_evenly_from_all(project, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "mean_loss", lambda m, batches, tok: seen.append(list(batches)) or {"val_loss": 1.0})
    home.pretrain(corpus_of(project), "new")
    assert len(seen) == 4
    for again in seen[1:]:
        for one, other in zip(seen[0], again, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["nano", "very_small_for_test"])
def test_both_architectures_go_through_both_stages(project, model):
    shape = {"model": model, "block_size": 32}
    reports = home.pretrain(corpus_of(project), "new", replace(SETTINGS, steps=2), **shape)
    assert loading.load("new", "base_model", "cpu").model.config.arch == ("modern" if model == "nano" else "gpt2")
    assert home.finetune(project, "new", replace(SETTINGS, steps=2))[-1].metrics["val_loss"] > 0
    assert reports[-1].step == 2


@pytest.mark.parametrize("steps", [1, 20, 100, 700, 6000])
def test_validation_is_at_most_a_twentieth_of_the_work_if_not_one_batch(steps):
    settings = TrainSettings(steps=steps, batch_size=4)
    forward = 1 / 3  # of a training step
    assert (
        stages.val_batches(settings) == 1
        or stages.val_batches(settings) * forward <= 0.05 * settings.interval + forward / 2
    )


# --- the loss that validation measures -----------------------------------------------------------


def test_mean_loss_weighs_every_target_the_same_however_batches_are_cut(project):
    loaded = loading.load("r", "base_model", "cpu")
    data = questions.load_qa(project / "data" / "animals_qa")
    with torch.inference_mode():
        results = [
            mean_loss(loaded.model, questions.qa_val_batches(data, size, 32), loaded.tokenizer) for size in (1, 3, 50)
        ]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_mean_loss_counts_answers_only(project):
    loaded = loading.load("r", "base_model", "cpu")
    data = questions.load_qa(project / "data" / "animals_qa")
    x, y, docs = next(questions.qa_val_batches(data, 2, 32))
    with torch.inference_mode():
        nats = torch.log_softmax(loaded.model(*map(torch.from_numpy, (x,)), docs=torch.from_numpy(docs)), dim=-1)
        by_hand = [-nats[r, t, y[r, t]].item() for r, t in zip(*np.nonzero(y >= 0), strict=True)]
        found = mean_loss(loaded.model, iter([(x, y, docs)]), loaded.tokenizer)
    assert found["val_loss"] == pytest.approx(np.mean(by_hand), rel=1e-4)
    lengths = loaded.tokenizer.byte_lengths()[y[y >= 0]]
    assert found["val_bpb"] == pytest.approx(np.sum(by_hand) / math.log(2) / lengths.sum(), rel=1e-4)


def test_a_model_remembers_its_questions_by_a_path_that_holds_from_everywhere(project, monkeypatch):
    monkeypatch.chdir(project)
    list(stages.finetune("r", "animals.json", settings=replace(SETTINGS, steps=1), device="cpu", say=str))
    assert checkpoint.load(paths.checkpoint_path("r", "fine_tuned")).meta["qa"] == str(project / "animals.json")


def test_mean_loss_of_nothing_is_zero(project):
    loaded = loading.load("r", "base_model", "cpu")
    assert mean_loss(loaded.model, iter([]), loaded.tokenizer) == {"val_loss": 0.0, "val_bpb": 0.0}


# --- finetuning ----------------------------------------------------------------------------------


def test_finetuning_begins_with_the_base_model_not_with_random_weights(project, monkeypatch):
    monkeypatch.setattr(devices, "matmul_dtype", lambda device: torch.float32)
    base = loading.load("r", "base_model", "cpu")
    first = home.finetune(project, settings=replace(SETTINGS, steps=1))[0]
    data = questions.load_qa(project / "data" / "animals_qa")
    with torch.inference_mode():
        expected = mean_loss(base.model, questions.qa_val_batches(data, 2, 32, 1), base.tokenizer)
    assert first.metrics["val_loss"] == expected["val_loss"]


def test_a_finetuned_model_names_its_base_model(project):
    base, tuned = (loading.load("r", stage, "cpu").meta for stage in ("base_model", "fine_tuned"))
    assert tuned["parent"] == base["fingerprint"]
    assert tuned["stage"] == "fine_tuned"
    assert tuned["tokenizer_fingerprint"] == base["tokenizer_fingerprint"]


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_base_model_finetuning_refuses_and_says_what_makes_one(project, broken):
    paths.run_dir("empty").mkdir(parents=True)
    if broken:
        paths.checkpoint_path("empty", "base_model").write_bytes(b"no model")
    before = content(project)
    message = "damaged" if broken else r"run 'empty' has no base model .*`nanochat pretrain --run empty` makes one"
    with pytest.raises(UserError, match=message):
        home.finetune(project, "empty")
    assert content(project) == before


def test_answers_learn_and_are_given_in_one_batch(project):
    home.finetune(project, settings=TrainSettings(steps=150, batch_size=8, eval_every=75))
    loaded = loading.load("r", "fine_tuned", "cpu")
    asked = [questions.ask("Who met the cat and the dog?"), questions.ask("Who met the fox and the owl?")]
    answers = loading.answer(loaded, asked, max_new_tokens=12)
    assert answers == [loading.answer(loaded, [question], max_new_tokens=12)[0] for question in asked]
    assert all(answer.startswith("The ") and answer.endswith(".") for answer in answers)
    assert "<|" not in "".join(answers)


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_have_one_strict_json_line_for_each_step_of_each_stage(project):
    lines = paths.metrics_path("r").read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=pytest.fail)
    records = runfiles.read_metrics("r")
    assert [(r["stage"], r["step"]) for r in records] == [
        (stage, step) for stage in ("base_model", "fine_tuned") for step in range(7)
    ]
    assert {"loss", "lr", "tokens", "tokens_per_s", "elapsed_s", "eta_s", "rss_mb", "gpu_mb", "mfu"} <= records[
        1
    ].keys()
    assert [r["step"] for r in records[:7] if "val_bpb" in r] == [0, 2, 4, 6]


def test_a_torn_last_line_is_left_out_and_mended_by_going_on(project):
    path = paths.metrics_path("r")
    whole = runfiles.read_metrics("r")
    with path.open("a") as file:
        file.write('{"stage": "base_model", "sample": "an odd }')
    assert runfiles.read_metrics("r") == whole
    home.finetune(project, settings=replace(SETTINGS, steps=7), resume=True)
    assert [r["step"] for r in runfiles.read_metrics("r")] == [*range(7), *range(8)]
    assert path.read_text().endswith("}\n")


def test_a_run_without_metrics_has_none(nanochat_home):
    assert runfiles.read_metrics("r") == []


# --- starting over and going on ------------------------------------------------------------------


def test_going_on_with_a_run_that_is_done_says_so_and_changes_nothing(project):
    before = content(project)
    said: list[str] = []
    assert home.finetune(project, resume=True, say=said.append) == []
    assert said == ["fine_tuned of 'r' has already been trained for 6 steps; give more steps to continue."]
    assert content(project) == before


def test_a_finished_run_can_be_made_longer(project):
    reports = home.pretrain(corpus_of(project), settings=replace(SETTINGS, steps=9), resume=True)
    assert [r.step for r in reports] == [7, 8, 9]
    home.pretrain(corpus_of(project), "alone")
    home.pretrain(corpus_of(project), "alone", settings=replace(SETTINGS, steps=9), resume=True)
    assert not list(paths.run_dir("alone").glob("earlier-*"))


def test_going_on_without_a_state_is_refused_and_nothing_is_written(project):
    before = content(project)
    with pytest.raises(UserError, match="run 'new' has no pretraining to resume"):
        home.pretrain(corpus_of(project), "new", resume=True)
    assert content(project) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 1}, r"began with model .*n_layer=2.*, now it is .*n_layer=1"),
        ({"settings": replace(SETTINGS, seed=9, steps=20)}, "began with seed 5, now it is 9"),
    ],
)
def test_going_on_with_other_settings_is_refused_and_nothing_is_written(project, changes, message):
    before = content(project)
    with pytest.raises(UserError, match=message):
        home.pretrain(corpus_of(project), resume=True, **changes)
    assert content(project) == before


def test_going_on_with_other_text_is_refused_naming_both_fingerprints(project):
    old = corpus_of(project).meta["fingerprint"]
    (project / "stories.txt").write_text("Once there was a goat.\n" * 300, encoding="utf-8")
    corpus = corpus_files.prepare_corpus(str(project / "stories.txt"), "bpe:300")
    with pytest.raises(UserError, match=f"data '{old}', now it is '{corpus.meta['fingerprint']}'"):
        home.pretrain(corpus, settings=replace(SETTINGS, steps=20), resume=True)


def test_going_on_finetuning_after_the_base_model_changed_is_refused(project):
    old = checkpoint.read_meta(paths.checkpoint_path("r", "base_model"))["fingerprint"]
    home.replace_base_model(project)
    with pytest.raises(UserError, match=f"base model '{old}', now it is"):
        home.finetune(project, settings=replace(SETTINGS, steps=20), resume=True)


def test_a_run_made_longer_is_validated_on_the_same_rows(project, monkeypatch):
    """A new run of this length might validate on more rows, but the best result so far was measured on these."""
    seen = []
    original = stages.mean_loss

    def noting(model, batches, tokenizer):
        batches = list(batches)
        seen.append([batch[0].tobytes() for batch in batches])
        return original(model, iter(batches), tokenizer)

    monkeypatch.setattr(stages, "mean_loss", noting)
    settings = TrainSettings(steps=10, batch_size=2)
    home.pretrain(corpus_of(project), "new", settings)
    longer = replace(settings, steps=400)
    assert stages.val_batches(longer) > stages.val_batches(settings)
    reports = stages.pretrain(
        "new", corpus_of(project), settings=longer, device="cpu", say=str, resume=True, stop=lambda: True, **SHAPE
    )
    list(reports)
    home.pretrain(corpus_of(project), "new", replace(settings, steps=12), resume=True)
    assert len(seen) > 11 and all(rows == seen[0] for rows in seen)


def test_a_training_that_is_stopped_while_it_is_tried_out_changes_nothing(project, monkeypatch):
    monkeypatch.setattr(stages.budget, "_WORTH_TRYING", 1)
    before = content(project)
    tries = []
    stop = lambda: bool(tries.append(1)) or len(tries) >= 2  # noqa: E731
    options = {"settings": SETTINGS, "device": "cpu", "say": str, **SHAPE}
    assert list(stages.pretrain("r", corpus_of(project), stop=stop, **options)) == []
    assert content(project) == before
    assert len(tries) == 3, "two steps were tried, then it was asked once more"


def test_what_a_killed_process_half_wrote_is_swept_away(project):
    out = paths.run_dir("r")
    torn = [out / ".r_fine_tuned.pt.abc.tmp", out / ".fine_tuned_last.pt.x1_.tmp", out / ".metrics.jsonl.abc.tmp"]
    others = [out / ".report.md.abc.tmp", out / ".notes.tmp"]
    for path in (*torn, *others):
        path.write_bytes(b"half")
    home.finetune(project)
    assert [path.exists() for path in (*torn, *others)] == [False, False, False, True, True]


# --- small things --------------------------------------------------------------------------------


def test_loading_takes_the_latest_stage_of_the_newest_run(project):
    assert loading.load(device="cpu").meta["stage"] == "fine_tuned"
    assert loading.load("r", "base_model", "cpu").meta["stage"] == "base_model"
    os.utime(paths.checkpoint_path("r", "fine_tuned"), (1, 1))
    assert loading.load("r", device="cpu").meta["stage"] == "fine_tuned"


def test_a_model_whose_base_model_changed_is_not_used_without_a_word(project):
    said = []
    loading.load("r", device="cpu", say=said.append)
    assert said == []
    parent = checkpoint.read_meta(paths.checkpoint_path("r", "fine_tuned"))["parent"]
    home.replace_base_model(project)
    loading.load("r", device="cpu", say=said.append)
    now = checkpoint.read_meta(paths.checkpoint_path("r", "base_model"))["fingerprint"]
    [sentence] = said
    assert "r_fine_tuned.pt was trained from" in sentence and parent in sentence and now in sentence
    paths.checkpoint_path("r", "base_model").unlink()
    loading.load("r", device="cpu", say=said.append)
    assert "no earlier stage is there" in said[-1]


def test_finetuning_counts_the_head_for_the_positions_with_a_target_rounded_up_to_an_eighth(project, monkeypatch):
    tasks = []
    monkeypatch.setattr(stages, "train", lambda model, task, settings, **options: tasks.append(task) or iter(()))
    home.finetune(project)
    home.pretrain(corpus_of(project))
    counted = questions.load_qa(project / "data" / "animals_qa").meta["train"]
    share = counted["supervised"] / counted["tokens"]
    assert share <= tasks[0].head_share <= share + 1 / 8 < 1
    assert tasks[1].head_share == 1


def test_a_standin_is_used_only_by_its_name(project):
    home.pretrain(corpus_of(project), "late", standin=True)
    home.finetune(project, "late")
    assert checkpoint.find() == paths.checkpoint_path("r", "fine_tuned")
    assert checkpoint.find("late") == paths.checkpoint_path("late", "fine_tuned")
    assert [run for run, _, _ in checkpoint.available() if run != "box"][-2:] == ["late", "late"]


@pytest.mark.parametrize("stage", ["base_model", "fine_tuned"])
@pytest.mark.parametrize("name", PROFILES)
def test_profiles_say_how_to_train_and_what_is_given_wins(name, stage):
    chosen = profile(name)
    settings, planned = stages.settings_for(chosen, stage), chosen.stages[stage]
    for what in ("steps", "lr_scale", "decay_from", "optimizer"):
        assert getattr(settings, what) == getattr(planned, what)
    assert settings.batch_size == chosen.batch_size
    assert settings.minutes == settings.tokens == 0  # which would train another model on another machine
    given = stages.settings_for(chosen, stage, steps=3, batch_size=2, seed=0)
    assert (given.steps, given.minutes, given.batch_size, given.seed) == (3, 0.0, 2, 0)
    with pytest.raises(UserError, match="steps"):
        stages.settings_for(chosen, stage, steps=0)


@pytest.mark.parametrize(
    ("device", "given", "compiled"),
    [
        ("cpu", {}, False), ("cpu", {"steps": 4999}, False), ("cpu", {"steps": 5000}, True),
        ("cpu", {"minutes": 9.0}, False), ("cpu", {"minutes": 10.0}, True), ("cpu", {"minutes": 10.0, "steps": 9}, False),
        ("cuda:1", {}, True), ("cuda", {"steps": 199}, False), ("mps", {"steps": 10**6}, False),
    ],
)  # fmt: skip
def test_a_training_is_compiled_only_where_that_is_soon_earned_back(device, given, compiled):
    """So never in the default on a CPU, where a cold compiler would make the first training another than the second."""
    chosen = replace(profile("default"), device=device)
    assert stages.settings_for(chosen, "base_model", **given).compile == compiled
