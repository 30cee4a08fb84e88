from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.cli import _resolve_type

from nanochat import config
from nanochat.config import MODEL_PRESETS, PROFILES, ModelConfig, UserError, model_config, positive, profile, unknown
from nanochat.tokenizer import parse_spec

SHAPE = {"vocab_size": 64, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 32}


def test_presets_keep_the_originals_names_and_ours_are_beside_them():
    assert set(MODEL_PRESETS) == {
        "nano", "nano-long",
        "very_small_for_test", "nanoGPT", "miniGPT", "GPT2-Small", "GPT2-Medium", "GPT2-Large", "GPT2-XL",
    }  # fmt: skip


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_every_preset_is_a_shape_that_can_be_built(name):
    made = model_config(name, 1000)
    assert made.vocab_size == 1000
    assert made.n_embd % made.n_head == 0


def test_gpt2_presets_have_gpt2s_vocabulary_unless_the_tokenizer_has_another():
    assert model_config("GPT2-Small").vocab_size == 50257
    assert model_config("GPT2-Small", 50261).vocab_size == 50261


def test_our_preset_takes_its_vocabulary_from_the_tokenizer():
    with pytest.raises(UserError, match="vocab_size"):
        model_config("nano")


def test_overrides_win_over_the_preset():
    shape = ModelConfig(300, 16, 1, 2, 128, smear=True, value_residual=True)
    assert model_config("nano", 300, n_layer=1, block_size=16) == shape


def test_a_mistyped_override_is_answered_with_the_nearest_known_one():
    with pytest.raises(UserError, match="did you mean 'n_layer'"):
        model_config("nano", 300, n_layers=2)


@pytest.mark.parametrize(
    ("typed", "meant"), [("gpt2-small", "GPT2-Small"), ("nanogpt", "nanoGPT"), ("GPT2-Smal", "GPT2-Small")]
)
def test_an_unknown_model_is_answered_with_the_nearest_known_one(typed, meant):
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        model_config(typed, 100)


def test_an_unknown_name_lists_what_is_known_even_if_nothing_is_near():
    message = str(unknown("model", "zzz", ["nano", "GPT2-XL"]))
    assert "did you mean" not in message
    assert "nano, GPT2-XL" in message
    assert "\n" not in message


@given(st.text())
def test_unknown_takes_any_text(name):
    assert isinstance(unknown("model", name, MODEL_PRESETS), UserError)


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_a_shape_of_anything_but_positive_whole_numbers_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name):
        ModelConfig(**{**SHAPE, name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gpt3"}, "did you mean 'gpt2'"),
        ({"n_head": 3}, "multiple of n_head"),
        ({"n_head": 32, "arch": "modern"}, "even head size"),
        ({"arch": "gpt2", "smear": True}, "smear needs arch 'modern'"),
        ({"arch": "gpt2", "value_residual": True}, "value_residual needs arch 'modern'"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
    ],
)
def test_a_shape_that_cannot_work_is_refused_with_the_reason(changes, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**{**SHAPE, **changes})


def test_gpt2_may_have_odd_head_sizes():
    assert ModelConfig(**{**SHAPE, "n_head": 32, "arch": "gpt2"}).n_head == 32


def test_configs_cannot_be_changed_once_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SHAPE).n_layer = 0


@given(st.integers())
def test_positive_takes_exactly_the_whole_numbers_above_zero(value):
    if value >= 1:
        assert positive("steps", value) == value
    else:
        with pytest.raises(UserError, match="steps"):
            positive("steps", value)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_names_a_model_a_tokenizer_and_positive_amounts(name):
    chosen = profile(name)
    assert chosen.name == name
    assert chosen.model in MODEL_PRESETS
    parse_spec(chosen.tokenizer)
    for amount in ("batch_size", "eval_questions"):
        positive(amount, getattr(chosen, amount))
    for planned in chosen.stages.values():
        positive("steps", planned.steps)


def test_the_four_profiles_exist_and_a_mistyped_one_is_named():
    assert set(PROFILES) == {"smoke", "short", "default", "long", "gpu"}
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        profile("smok")


@pytest.mark.parametrize("name", ["run", "corpus", "qa", "tokenizer", "device"])
@pytest.mark.parametrize("typed", ["2024", "0", "19.5", "1e5", "True", "inf", "None", "moby"])
def test_a_parameter_is_text_whatever_papermill_makes_of_it(name: str, typed: str) -> None:
    value = _resolve_type(typed)
    chosen = config.choose("smoke", **{name: value})
    want = getattr(profile("smoke"), name) if typed == "None" else str(value)
    assert getattr(chosen, name) == want and isinstance(getattr(chosen, name), str)


def test_a_number_is_an_unknown_model_or_profile() -> None:
    with pytest.raises(UserError, match="unknown model '1024'"):
        config.choose(model=1024)
    with pytest.raises(UserError, match="unknown profile '0'"):
        config.choose(0)
    assert config.choose("smoke", model="nano-long").run == "nano-long"
    assert config.choose("smoke", model="nano-long", run=7).run == "7"


def test_a_user_error_is_a_value_error_so_that_libraries_can_catch_it():
    assert issubclass(config.UserError, ValueError)
