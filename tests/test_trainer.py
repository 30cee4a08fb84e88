from __future__ import annotations

import json
import math
import random
import signal
import threading
from dataclasses import replace

import pytest
import torch
from small import ARCHS, counting, counting_task, small_config, small_model, steps_of

from nanochat import checkpoint, devices, trainer
from nanochat.config import UserError
from nanochat.model import GPT
from nanochat.optim import OPTIMIZERS
from nanochat.state import load_state, previous_state
from nanochat.trainer import TrainSettings, check_state, state_settings, train

SETTINGS = TrainSettings(steps=10, batch_size=4, seed=5, eval_every=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Keep the measured matrix rate of the machine between tests."""
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)


def fresh(arch: str = "modern", seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    return GPT(small_config(arch, block_size=16, **changes))


def run(folder, model: GPT | None = None, settings: TrainSettings = SETTINGS, *, take: int | None = None, **options):
    """The reports of a training in `folder`; with `take`, only the first so many."""
    changes = options.pop("task", {})
    said: list[str] = []
    if options.pop("resume", False):
        options["state"] = load_state(folder / "state.pt")
    reports = train(
        fresh() if model is None else model, counting_task(folder, **changes), settings, say=said.append, **options
    )
    if take is None:
        return list(reports)
    got = [next(reports) for _ in range(take)]
    reports.close()
    return got


def weights(folder):
    return torch.load(folder / "state.pt", weights_only=True)["model"]


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, -1, 1.5, True, "10"]),
        ("batch_size", [0, 2.0]),
        ("tokens", [-1, 0.5, True]),
        ("minutes", [-1, math.inf, math.nan]),
        ("seed", [-1, 1.5, 2**63, True]),
        ("warmup", [-1, 0.5]),
        ("eval_every", [-1, 2.5]),
        ("lr_scale", [0, -1.0, math.inf, math.nan]),
        ("grad_clip", [0, math.nan]),
        ("weight_decay", [-0.1, math.nan]),
        ("decay_from", [-0.1, 1.1, math.nan]),
        ("optimizer", ["", "sgd", "Muon", None]),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(UserError, match=name) as error:
            TrainSettings(**{"steps": 10, "batch_size": 4, name: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (9, 1), (10, 1), (11, 2), (800, 80)])
def test_validation_comes_ten_times_a_run_unless_told_otherwise(steps, interval):
    assert TrainSettings(steps=steps, batch_size=1).interval == interval
    assert TrainSettings(steps=steps, batch_size=1, eval_every=7).interval == 7


# --- what a run reports --------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_run_learns(tmp_path, arch, optimizer):
    scale = 1.0 if optimizer == "muon" else 10.0  # sixty steps are few for AdamW at its usual rate
    reports = run(tmp_path, fresh(arch), replace(SETTINGS, steps=60, optimizer=optimizer, lr_scale=scale))
    assert reports[-1].metrics["val_loss"] < 0.6 * reports[0].metrics["val_loss"]


def test_there_is_a_report_before_the_first_step_and_one_after_each(tmp_path):
    reports = run(tmp_path)
    assert [r.step for r in reports] == list(range(11))
    assert {r.total for r in reports} == {10}
    assert [r.tokens for r in reports] == [64 * step for step in range(11)]
    assert reports[0].metrics["val_loss"] == pytest.approx(math.log(61), abs=0.1)
    assert math.isnan(reports[0].loss)
    assert all(r.loss > 0 and r.tokens_per_s > 0 and r.mfu > 0 and r.rss_mb > 0 for r in reports[1:])
    assert [r.elapsed_s for r in reports] == sorted(r.elapsed_s for r in reports)
    assert reports[-1].eta_s == 0
    assert all(r.eta_s > 0 for r in reports[1:-1])


def test_the_first_training_loss_is_that_of_the_model_as_it_came(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "matmul_dtype", lambda device: torch.float32)
    model = small_model(block_size=16)
    expected = model(*counting(0)).item()
    assert run(tmp_path, model)[1].loss == pytest.approx(expected, rel=1e-5)


def test_validation_comes_at_the_interval_and_after_the_last_step(tmp_path):
    assert [r.step for r in run(tmp_path) if r.metrics] == [0, 4, 8, 10]


def test_with_fewer_steps_than_the_interval_the_last_is_still_validated_and_saved(tmp_path):
    reports = run(tmp_path, settings=TrainSettings(steps=3, batch_size=4, eval_every=100))
    assert [r.step for r in reports if r.metrics] == [0, 3]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 3


def test_rates_follow_the_schedule(tmp_path):
    settings = replace(SETTINGS, warmup=1, decay_from=0.5, lr_scale=0.5)
    assert [r.lr for r in run(tmp_path, settings=settings)] == pytest.approx(
        [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


def test_a_step_follows_the_gradient_of_its_own_batch_alone(tmp_path, monkeypatch):
    """With constant batch and weights, the gradient is the same each time: nothing remains of the step before."""
    model, seen = small_model(block_size=16), []

    def note(parameters, limit):
        seen.append([p.grad.clone() for p in parameters])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    run(tmp_path, model, replace(SETTINGS, steps=3, lr_scale=1e-12), task={"batch": lambda step: counting(0)})
    assert len(seen) == 3
    for first, later in zip(seen[0] * 2, seen[1] + seen[2], strict=True):
        torch.testing.assert_close(later, first)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_in_parts_with_uneven_targets_has_the_gradient_of_the_whole(tmp_path, monkeypatch, parts):
    """Each target counts once, in whatever part it stands: the mean of the parts' means would be another loss."""
    monkeypatch.setattr(devices, "matmul_dtype", lambda device: torch.float32)
    grads: list[list[torch.Tensor]] = []
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda ps, _limit: grads.append([p.grad.clone() for p in ps])
    )

    def uneven(step):
        x, y = counting(step)
        y = y.clone()
        y[0, 1:], y[1] = -1, -1  # one target in the first row, none in the second
        return x, y

    settings, losses = replace(SETTINGS, steps=1), []
    for grad_accum in (1, parts):
        model = small_model(block_size=16)
        reports = run(tmp_path, model, replace(settings, grad_accum=grad_accum), task={"batch": uneven})
        losses.append(reports[1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] == pytest.approx(small_model(block_size=16)(*uneven(0)).item(), rel=1e-5)
    for whole, split in zip(*grads, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


def test_the_task_names_the_metric_that_chooses_the_best_weights_and_may_measure_more(tmp_path):
    measured = iter([{"val_loss": 3.0, "error": 0.5}, {"val_loss": 2.0, "error": 0.6}, {"val_loss": 4.0, "error": 0.1}])
    task = {"validate": lambda model: next(measured), "best_by": "error"}
    reports = run(tmp_path, settings=replace(SETTINGS, steps=2, eval_every=1), task=task)
    assert [r.best for r in reports] == [True, False, True]
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 2
    assert (reports[2].record()["error"], reports[2].record()["val_loss"]) == (0.1, 4.0)


def test_a_record_is_strict_json_without_what_was_not_measured(tmp_path):
    first, second = (report.record() for report in run(tmp_path, take=2))
    for record in (first, second):
        assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert "loss" not in first and first["val_loss"] > 0
    assert "val_loss" not in second and second["loss"] > 0


def test_samples_are_drawn_at_validations_only(tmp_path):
    reports = run(tmp_path, task={"sample": lambda model: "once upon"})
    assert [r.sample for r in reports if r.metrics] == ["once upon"] * 4
    assert {r.sample for r in reports if not r.metrics} == {None}


# --- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_seed_gives_the_same_losses_to_the_last_bit(tmp_path, dropout):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = (run(tmp_path / name, fresh(dropout=dropout)) for name in "ab")
    assert steps_of(one) == steps_of(other)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_another_seed_does_not(tmp_path):
    settings = replace(SETTINGS, seed=6)
    one = run(tmp_path, fresh(dropout=0.2))
    assert steps_of(one) != steps_of(run(tmp_path, fresh(dropout=0.2), settings))
    assert steps_of(one) != steps_of(run(tmp_path, fresh(dropout=0.2, seed=1)))


def test_what_others_do_with_the_random_state_meanwhile_changes_nothing_without_dropout(tmp_path):
    expected = steps_of(run(tmp_path))
    got = []
    for report in train(fresh(), counting_task(tmp_path), SETTINGS):
        torch.manual_seed(report.step)
        random.random()
        got.append(report)
    assert steps_of(got) == expected


def test_validation_builds_no_gradients_and_leaves_random_state_and_mode_alone(tmp_path):
    seen = []

    def validate(model):
        seen.append((torch.is_grad_enabled(), model.training, model(*counting(-1)).requires_grad))
        torch.rand(10)
        return {"val_loss": 1.0}

    model = fresh(dropout=0.2)
    looking = run(
        tmp_path, model, replace(SETTINGS, eval_every=1), task={"validate": validate, "sample": validate_less}
    )
    assert seen == [(False, False, False)] * 11
    assert model.training
    rarely = run(tmp_path, fresh(dropout=0.2), replace(SETTINGS, eval_every=100))
    assert [r.loss for r in looking[1:]] == [r.loss for r in rarely[1:]]


def validate_less(model) -> str:
    torch.rand(3)
    return ""


# --- the best weights ----------------------------------------------------------------------------


def scripted(values):
    """A validation that returns these losses in turn."""
    coming = iter(values)
    return lambda model: {"val_loss": next(coming)}


def test_the_best_weights_are_those_of_the_lowest_validation_loss_not_the_last(tmp_path):
    reports = run(tmp_path, task={"validate": scripted([4.0, 2.0, 3.0, 2.0])})
    assert [r.best for r in reports if r.metrics] == [True, True, False, False]
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["step"] == 4
    assert not equal(best["weights"], weights(tmp_path))


def test_the_best_survives_a_resume_and_a_worse_result_does_not_overwrite_it(tmp_path):
    run(tmp_path, task={"validate": scripted([4.0, 1.0])}, take=6)  # validated at 0 and 4, then crashed
    before = (tmp_path / "best.pt").read_bytes()
    run(tmp_path, resume=True, task={"validate": scripted([3.0, 2.0])})
    assert (tmp_path / "best.pt").read_bytes() == before
    run(tmp_path, settings=replace(SETTINGS, steps=14), resume=True, task={"validate": scripted([0.5, 0.7])})
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 12


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("crash", [1, 4, 5, 7, 9, 10])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, arch, crash):
    for name in "ab":
        (tmp_path / name).mkdir()
    settings = replace(SETTINGS, weight_decay=0.1, warmup=2)
    whole = run(tmp_path / "a", fresh(arch, dropout=0.1), settings)
    before = run(tmp_path / "b", fresh(arch, dropout=0.1), settings, take=crash)
    after = run(tmp_path / "b", fresh(arch, dropout=0.1, seed=9), settings, resume=True)
    assert after[0].step == crash
    assert steps_of(before[: after[0].step]) + steps_of(after) == steps_of(whole)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    best = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in "ab"]
    assert best[0]["step"] == best[1]["step"]
    assert equal(best[0]["weights"], best[1]["weights"])


def test_a_run_with_adamw_alone_resumes_bit_for_bit_and_with_no_other_optimizer(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    settings = replace(SETTINGS, optimizer="adamw", weight_decay=0.1)
    whole = run(tmp_path / "a", settings=settings)
    before = run(tmp_path / "b", settings=settings, take=6)
    with pytest.raises(UserError, match="began with optimizer 'adamw', now it is 'muon'"):
        run(tmp_path / "b", settings=replace(settings, optimizer="muon"), resume=True)
    after = run(tmp_path / "b", fresh(seed=9), settings, resume=True)
    assert steps_of([*before, *after]) == steps_of(whole)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_resume_goes_on_counting_time(tmp_path):
    before = run(tmp_path, take=6)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert 0 < before[-1].elapsed_s <= state["elapsed_s"]
    assert run(tmp_path, resume=True, take=1)[0].elapsed_s > state["elapsed_s"]


def test_a_run_may_be_made_longer(tmp_path):
    run(tmp_path)
    longer = run(tmp_path, resume=True, settings=replace(SETTINGS, steps=13))
    assert [r.step for r in longer] == [11, 12, 13]


def test_nothing_is_left_to_do_for_a_run_that_is_done(tmp_path):
    run(tmp_path)
    assert run(tmp_path, resume=True) == []


def test_a_resume_without_a_state_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint state\.pt"):
        run(tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "task", "sides"),
    [
        ({"seed": 6}, {}, "seed 5, now it is 6"),
        ({"batch_size": 8}, {}, "batch_size 4, now it is 8"),
        ({"lr_scale": 0.5}, {}, "lr_scale 1.0, now it is 0.5"),
        ({}, {"identity": {"data": "other"}}, "data 'counting', now it is 'other'"),
        ({}, {"identity": {"data": "counting", "more": 1}}, "more None, now it is 1"),
        ({}, {"stage": "aligned"}, "stage 'base_model', now it is 'aligned'"),
    ],
)
def test_going_on_with_something_else_is_refused_naming_both_sides(tmp_path, settings, task, sides):
    run(tmp_path, take=1)
    before = (tmp_path / "state.pt").read_bytes()
    changed = replace(SETTINGS, **settings)
    with pytest.raises(UserError, match=f"the saved training began with {sides}") as error:
        run(tmp_path, settings=changed, resume=True, task=task)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=sides):
        check_state(counting_task(tmp_path, **task), changed, load_state(tmp_path / "state.pt"))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_what_does_not_change_the_result_may_be_changed_on_the_way(tmp_path):
    expected = steps_of(run(tmp_path))[-1]
    run(tmp_path, take=6)
    changed = replace(SETTINGS, eval_every=3, minutes=5.0)
    state = load_state(tmp_path / "state.pt")
    check_state(counting_task(tmp_path), changed, state)
    assert (state["step"], state_settings(state)) == (5, SETTINGS)
    assert steps_of(run(tmp_path, settings=changed, resume=True))[-1][:3] == expected[:3]


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged or not a nanochat checkpoint"):
        run(tmp_path, resume=True)


def test_a_file_that_is_no_state_is_refused(tmp_path):
    checkpoint.save_file(tmp_path / "state.pt", {"model": {}})
    with pytest.raises(UserError, match="is not a training state of this version"):
        run(tmp_path, resume=True)


def test_each_report_is_logged_after_the_best_weights_and_before_the_state(tmp_path, monkeypatch):
    order = []
    save_file = checkpoint.save_file

    def save(path, content):
        order.append(("state", content["step"]))
        save_file(path, content)

    monkeypatch.setattr(checkpoint, "save_file", save)
    task = {
        "log": lambda report: order.append(("log", report.step)),
        "save_best": lambda model, report: order.append(("best", report.step)),
        "validate": scripted([3.0, 2.0]),
    }
    run(tmp_path, settings=TrainSettings(steps=2, batch_size=4, eval_every=2), task=task)
    assert order == [
        ("best", 0), ("log", 0), ("state", 0), ("log", 1), ("best", 2), ("log", 2), ("state", 2)
    ]  # fmt: skip


# --- endings -------------------------------------------------------------------------------------


def test_asked_to_stop_it_ends_after_the_step_in_progress_with_everything_saved(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = steps_of(run(whole))
    steps = iter([False] * 5 + [True])
    reports = run(tmp_path, stop=lambda: next(steps))
    assert reports[-1].step == 6
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6
    assert steps_of(reports) + steps_of(run(tmp_path, resume=True)) == expected


def interrupting(step: int, times: int = 1):
    """Batches, in one of which Ctrl-C is pressed."""

    def batch(at: int):
        if at == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return counting(at)

    return batch


def test_ctrl_c_waits_for_the_step_in_progress_saves_and_raises(tmp_path):
    reports = train(fresh(), counting_task(tmp_path, batch=interrupting(5)), SETTINGS)
    got = [next(reports) for _ in range(6)]
    with pytest.raises(KeyboardInterrupt):
        next(reports)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6
    assert steps_of([*got, *run(tmp_path, resume=True)][6:]) == steps_of(run(tmp_path))[7:]


@pytest.mark.parametrize("first", [0, 9])
def test_ctrl_c_during_the_first_validation_or_the_last_step_is_not_lost(tmp_path, first):
    task = {"batch": interrupting(9)} if first else {"sample": lambda model: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=task)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == (10 if first else 0)


def test_sigterm_waits_for_the_step_in_progress_saves_and_then_acts(tmp_path):
    """Batch systems and containers end processes by SIGTERM."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(saved_step(tmp_path)))
    try:
        terminating = lambda at: (at == 5 and signal.raise_signal(signal.SIGTERM), counting(at))[1]  # noqa: E731
        run(tmp_path, task={"batch": terminating})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [6]


def saved_step(folder):
    return torch.load(folder / "state.pt", weights_only=True)["step"]


def test_between_two_steps_ctrl_c_is_the_callers(tmp_path):
    """A loop left with `break` while the training is still referenced must not swallow the next Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    reports = train(fresh(), counting_task(tmp_path), SETTINGS)
    for _ in range(3):
        next(reports)
        assert signal.getsignal(signal.SIGINT) is before
    (tmp_path / "other").mkdir()
    other = train(fresh(), counting_task(tmp_path / "other"), SETTINGS)
    next(other)
    reports.close()
    next(other)
    other.close()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("taken", [1, 3, 6, 10])
def test_a_training_that_is_left_saves_where_it_was(tmp_path, taken):
    run(tmp_path, take=taken)
    assert saved_step(tmp_path) == taken - 1


def test_the_state_is_written_by_the_clock_as_well(tmp_path, monkeypatch):
    """With steps of 25 s, the state is saved at the latest after the third step since the last save."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    saved = []

    def batch(at):
        saved.append(saved_step(tmp_path))
        now[0] += 25.0
        return counting(at)

    run(tmp_path, settings=replace(SETTINGS, steps=9, eval_every=9), task={"batch": batch})
    assert saved == [0, 0, 0, 3, 3, 3, 6, 6, 6]


# --- two generations of the state ----------------------------------------------------------------


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_when_the_newest_state_is_lost_the_one_before_is_resumed(tmp_path, fault):
    expected = steps_of(run(tmp_path))
    assert load_state(previous_state(tmp_path / "state.pt"))["step"] == 8
    if fault == "flipped":
        flip_a_bit(tmp_path / "state.pt")
    else:
        (tmp_path / "state.pt").unlink()
    said = []
    state = load_state(tmp_path / "state.pt", said.append)
    assert state["step"] == 8
    assert len(said) == 1 and "resuming from the previous state, after 8 steps" in said[0]
    got = list(train(fresh(), counting_task(tmp_path), SETTINGS, state=state))
    assert steps_of(got) == expected[9:]


def test_ctrl_c_twice_ends_at_once_and_saves_no_half_made_update(tmp_path):
    reports = train(fresh(), counting_task(tmp_path, batch=interrupting(5, times=2)), SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        list(reports)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


def test_after_a_run_ctrl_c_means_what_it_meant_before(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    run(tmp_path, take=3)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(UserError):
        run(tmp_path, task={"loss": lambda model, x, y: (model(x, y) * math.nan, 1)})
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_training_works_and_takes_no_signals(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    got = []
    thread = threading.Thread(target=lambda: got.extend(run(tmp_path)))
    thread.start()
    thread.join()
    assert len(got) == 11
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_loss_ends_the_run_and_keeps_what_was_good(tmp_path, bad):
    calls = []

    def loss(model, x, y):
        calls.append(1)
        return model(x, y) * (bad if len(calls) == 7 else 1.0), 1

    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step 7: the training has diverged; start over"):
        run(tmp_path, task={"loss": loss})
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_weights_that_diverged_in_the_last_update_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="the validation's val_loss became nan at step 8"):
        run(tmp_path, task={"validate": scripted([3.0, 2.0, math.nan])})
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


def test_a_failing_disk_leaves_the_state_before(tmp_path, monkeypatch):
    run(tmp_path, take=1)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())

    def fail(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path, resume=True, task={"save_best": lambda model, report: None})
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


# --- compiling -----------------------------------------------------------------------------------


def test_where_nothing_can_be_compiled_it_says_so_and_trains_the_same(tmp_path, monkeypatch):
    expected = steps_of(run(tmp_path))

    def no_compiler(self, *args, **kwargs):
        raise RuntimeError("no working C++ compiler")

    said = []
    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    got = list(train(fresh(), counting_task(tmp_path), replace(SETTINGS, compile=True), say=said.append))
    assert said == ["torch.compile does not work here (RuntimeError); training continues uncompiled, more slowly"]
    assert steps_of(got) == expected


def test_a_compiler_that_fails_when_first_used_is_given_up_too(tmp_path, monkeypatch):
    def broken(self, *args, **kwargs):
        def call(*inputs):
            raise RuntimeError("cannot find -lm")

        self._compiled_call_impl = call

    expected = steps_of(run(tmp_path))
    said = []
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    got = list(train(fresh(), counting_task(tmp_path), replace(SETTINGS, compile=True), say=said.append))
    assert len(said) == 1
    assert steps_of(got) == expected


def test_a_lack_of_memory_is_not_blamed_on_the_compiler(tmp_path, monkeypatch):
    def too_large(self, *args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 6442450944 bytes")

    said = []
    monkeypatch.setattr(torch.nn.Module, "compile", too_large)
    with pytest.raises(RuntimeError, match="allocate memory"):
        list(train(fresh(), counting_task(tmp_path), replace(SETTINGS, compile=True), say=said.append))
    assert said == []


@pytest.mark.filterwarnings("ignore")  # torch hides its own warnings while it compiles; errors it cannot hide
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_compiled_training_is_eager_training_up_to_rounding(tmp_path, monkeypatch, arch):
    monkeypatch.setattr(devices, "matmul_dtype", lambda device: torch.float32)
    monkeypatch.setattr(trainer, "make_optimizers", lambda *args, optimizer: make_plain(*args))
    said = []
    eager = run(tmp_path, fresh(arch))
    compiled = list(train(fresh(arch), counting_task(tmp_path), replace(SETTINGS, compile=True), say=said.append))
    assert said == []
    assert [r.metrics["val_loss"] for r in compiled if r.metrics] == pytest.approx(
        [r.metrics["val_loss"] for r in eager if r.metrics], rel=1e-3
    )
    assert [r.loss for r in compiled[1:]] == pytest.approx([r.loss for r in eager[1:]], rel=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_on_a_machine_without_a_compiler_it_trains_the_same_and_says_so(tmp_path, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing compiled before helps out
    torch._dynamo.reset()
    expected = steps_of(run(tmp_path, fresh(dropout=0.1)))
    said = []
    settings = replace(SETTINGS, compile=True)
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        got = list(train(fresh(dropout=0.1), counting_task(tmp_path), settings, say=said.append))
    assert len(said) == 1
    assert "torch.compile does not work here" in said[0]
    assert steps_of(got) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_compiled_run_that_is_left_and_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    settings = replace(SETTINGS, compile=True)
    whole = run(tmp_path / "a", fresh("nano"), settings)
    before = run(tmp_path / "b", fresh("nano"), settings, take=6)
    after = run(tmp_path / "b", fresh("nano", seed=9), settings, resume=True)
    assert steps_of([*before, *after]) == steps_of(whole)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def make_plain(model, lr_scale, weight_decay):
    """Plain gradient descent, which unlike Adam and Muon does not amplify rounding errors of tiny gradients."""
    from nanochat.optim import Optimizers

    return Optimizers([torch.optim.SGD(model.parameters(), lr=0.1 * lr_scale)])


def test_the_time_left_counts_the_validations_to_come(tmp_path, monkeypatch):
    """With a clock that advances by 1 s per step and 10 s per validation."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def validate(model):
        now[0] += 10.0
        return {"val_loss": 1.0}

    def batch(step):
        now[0] += 1.0
        return counting(step)

    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
    task = counting_task(tmp_path, validate=validate, batch=batch)
    reports = list(train(fresh(), task, replace(SETTINGS, steps=5, eval_every=2)))
    # after step 1: four steps of 1 s, and validations after steps 2, 4 and 5
    assert [report.eta_s for report in reports[1:]] == pytest.approx([34.0, 23.0, 22.0, 11.0, 0.0])


def test_the_share_of_the_machine_that_is_used_counts_the_head_only_where_it_is_computed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def batch(step):
        now[0] += 1.0
        return counting(step)

    model = fresh()
    used = [run(tmp_path, fresh(), task={"batch": batch, "head_share": share})[-1].mfu for share in (1.0, 0.25)]
    assert used[1] / used[0] == pytest.approx(model.flops_per_token(0.25) / model.flops_per_token())
