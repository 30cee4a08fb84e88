from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small import counting_task, small_config, steps_of

from nanochat import devices
from nanochat.config import PROFILES, StageBudget, UserError
from nanochat.model import GPT
from nanochat.train import budget
from nanochat.train.budget import UNLIMITED, plan, try_out
from nanochat.trainer import TrainSettings, train

SETTINGS = TrainSettings(steps=12, batch_size=4, seed=5, eval_every=6)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Keep the measured matrix rate of the machine between tests."""
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)


@pytest.fixture
def tried(monkeypatch):
    """A machine that takes half a second per step; the list records each time it is timed."""
    calls = []
    monkeypatch.setattr(budget, "try_out", lambda *args: calls.append(args) or 0.5)
    return calls


def never() -> bool:
    return False


def fresh(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(small_config(block_size=16, **changes))


def planned(folder, **changes) -> tuple[TrainSettings, str]:
    said: list[str] = []
    settings = plan(fresh(), counting_task(folder), replace(SETTINGS, **changes), said.append)
    return settings, " ".join(said)


def test_a_few_steps_are_not_tried_out_first(tmp_path, tried):
    assert planned(tmp_path) == (SETTINGS, "")
    assert tried == []


def test_many_steps_are_estimated_and_stay_as_many(tmp_path, tried):
    settings, said = planned(tmp_path, steps=1000)
    assert settings == replace(SETTINGS, steps=1000)
    assert said == f"{fresh().n_params():,} parameters, 1,000 steps of 64 tokens at 0.50 s: about 8 min 50 s."


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (64, 1), (65, 2), (640, 10), (10**9, 12)]
)  # a task of 64 tokens a step
def test_tokens_allow_as_many_steps_as_read_them(tmp_path, tried, tokens, steps):
    assert planned(tmp_path, tokens=tokens)[0] == replace(SETTINGS, steps=steps)


def test_minutes_allow_the_steps_that_fit_with_their_validations(tmp_path, tried):
    settings, said = planned(tmp_path, steps=1000, minutes=1.0)
    assert settings == replace(SETTINGS, steps=113)  # 60 / 0.53
    assert said.startswith("1 minutes are enough for 113 of 1,000 steps on this machine.")


def test_more_minutes_than_needed_allow_no_more_steps(tmp_path, tried):
    settings, said = planned(tmp_path, minutes=60.0)
    assert settings == SETTINGS and "enough" not in said
    assert len(tried) == 1


def test_of_steps_tokens_and_minutes_the_shortest_counts(tmp_path, tried):
    endless = {"steps": UNLIMITED, "minutes": 1.0}
    assert planned(tmp_path, **endless)[0].steps == 113
    assert planned(tmp_path, **endless, tokens=6400)[0].steps == 100
    assert planned(tmp_path, **endless, tokens=64000)[0].steps == 113


def test_too_few_minutes_for_anything_are_one_step(tmp_path, tried):
    assert planned(tmp_path, minutes=0.01)[0].steps == 1


def test_a_training_without_an_end_is_refused(tmp_path, tried):
    with pytest.raises(UserError, match="give steps, tokens or minutes"):
        planned(tmp_path, steps=UNLIMITED)


def test_what_is_planned_has_nothing_left_to_plan(tmp_path, tried):
    settings, _ = planned(tmp_path, steps=UNLIMITED, tokens=6400, minutes=1.0)
    assert (settings.tokens, settings.minutes) == (0, 0.0)
    assert plan(fresh(), counting_task(tmp_path), settings, str) == settings


@pytest.mark.parametrize(
    ("name", "seconds", "said"),
    [
        (
            "default",
            0.1,
            "The trainings of the profile 'default', 2,400 steps, will take this machine about 4 min 14 s.",
        ),
        ("default", 1.0, "about 42 min 24 s. The profile 'short' takes about 13 min 15 s, and makes an assistant that"),
        ("short", 10.0, "The trainings of the profile 'short', 750 steps, will take this machine about 2 h 12 min."),
        ("long", 1.0, "The trainings of the profile 'long', 7,000 steps, will take this machine about 2 h 03 min."),
    ],
)
def test_before_anything_is_trained_a_learner_hears_how_long_it_will_take(monkeypatch, name, seconds, said):
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e12)
    monkeypatch.setattr(budget, "try_out", lambda *args: seconds)
    forecast = budget.forecast(replace(PROFILES[name], device="cpu"))
    assert said in forecast and ("short" in forecast) == ("short" in said)


def test_a_forecast_trains_nothing_where_a_step_takes_many_seconds(monkeypatch):
    monkeypatch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
    monkeypatch.setattr(budget, "try_out", lambda *args: pytest.fail("a step was tried"))
    assert " h " in budget.forecast(replace(PROFILES["gpu"], device="cpu"))


def test_a_forecast_counts_real_steps_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert "20 steps" in budget.forecast(
        replace(PROFILES["smoke"], stages={"base_model": StageBudget(20)}, batch_size=1)
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("compile", [False, True])
def test_trying_out_changes_nothing(tmp_path, compile):
    """Neither the weights, nor the training afterwards, nor any file; dropout draws from the random state."""
    settings = replace(SETTINGS, compile=compile)
    expected = list(train(fresh(dropout=0.1), counting_task(tmp_path), settings, say=str))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = fresh(dropout=0.1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0 < try_out(model, counting_task(tmp_path), settings, str, never) < math.inf
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    got = list(train(model, counting_task(tmp_path), settings, say=str))
    assert steps_of(got) == steps_of(expected)


def test_what_was_compiled_to_try_is_not_compiled_again(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self) or _as_compiled(self))
    model, settings = fresh(), replace(SETTINGS, compile=True)
    try_out(model, counting_task(tmp_path), settings, str, never)
    list(train(model, counting_task(tmp_path), settings, say=str))
    assert len(compiled) == len(model.h)


def test_a_compiler_that_fails_is_tried_and_announced_once(tmp_path, monkeypatch):
    tries, said = [], []

    def broken(self):
        tries.append(self)
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    model = fresh()
    planned = plan(model, counting_task(tmp_path), replace(SETTINGS, steps=200, compile=True), said.append)
    assert not planned.compile
    list(train(model, counting_task(tmp_path), replace(planned, steps=3), say=said.append))
    assert len(tries) == 1
    assert len([sentence for sentence in said if "torch.compile does not work" in sentence]) == 1


def _as_compiled(block):
    block._compiled_call_impl = block._call_impl


def test_the_seconds_of_a_step_are_those_of_a_step_after_the_first(tmp_path, monkeypatch):
    """The first step includes compilation and must not enter the estimate for the others."""
    clock = [0.0]

    def batch(step):
        clock[0] += 100.0 if step == 0 else 2.0
        return counting_task(tmp_path).batch(step)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert try_out(fresh(), counting_task(tmp_path, batch=batch), SETTINGS, str, never) == 2.0


def test_quick_steps_are_tried_until_they_have_found_their_pace(tmp_path, monkeypatch):
    clock = [0.0]

    def batch(step):
        clock[0] += 10.0 if step == 0 else 0.5 if step < 8 else 0.125
        return counting_task(tmp_path).batch(step)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert try_out(fresh(), counting_task(tmp_path, batch=batch), SETTINGS, str, never) == 0.125
    assert clock[0] <= 10.0 + budget.TRY_S + 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "12 steps of 4 rows"),
        ({"minutes": 5.5}, "12 steps of 4 rows, at most 5.5 minutes"),
        ({"steps": UNLIMITED, "minutes": 3.0}, "3 minutes"),
        ({"steps": UNLIMITED, "tokens": 10_000}, "10,000 tokens"),
    ],
)
def test_how_long_is_said_for_people(changes, words):
    assert budget.wording(replace(SETTINGS, **changes)) == words
