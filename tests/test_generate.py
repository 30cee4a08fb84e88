from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import ARCHS, BLOCK, ids, small_model
from torch import Tensor

from nanochat.config import UserError
from nanochat.generate import check_sampling, draw, generate, next_token_probs, penalize, stream

both = pytest.mark.parametrize("arch", ARCHS)
PROMPT = [3, 1, 4, 1, 5]


def logits_of(model, row: list[int]) -> Tensor:
    """(V,) next-token logits after `row`, from a plain forward pass without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([row]))[0, -1]


def uncached(model, prompt: list[int], n: int) -> list[int]:
    """Greedy continuation as generate.py describes it, with a full forward pass per token."""
    block_size = model.config.block_size
    row, new = prompt[-block_size:], []
    for _ in range(n):
        if len(row) > block_size:
            row = row[-max(1, block_size // 2) :]
        token = int(logits_of(model, row).argmax())
        row, new = [*row, token], [*new, token]
    return new


logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12).map(lambda row: torch.tensor([row]))


# --- choosing from probabilities -----------------------------------------------------------------


@given(logits=logit_rows, temperature=st.floats(0, 1e4) | st.sampled_from([0.0, 1e-300, 1e-30, 1e30]))
def test_every_temperature_gives_probabilities_that_keep_the_order(logits, temperature):
    probs = next_token_probs(logits, temperature=temperature)
    assert probs.shape == logits.shape
    assert probs.isfinite().all()
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    ranked = probs[0][logits[0].argsort(descending=True)]
    assert (ranked.diff() <= 1e-6).all()


@given(logits=logit_rows)
def test_temperature_one_is_the_softmax(logits):
    torch.testing.assert_close(next_token_probs(logits), torch.softmax(logits, dim=1), rtol=1e-4, atol=1e-6)


@given(logits=logit_rows, temperature=st.floats(0.1, 10))
def test_temperature_divides_the_logits(logits, temperature):
    probs = next_token_probs(logits, temperature=temperature)
    torch.testing.assert_close(probs, torch.softmax(logits / temperature, dim=1), rtol=1e-3, atol=1e-6)


@given(logits=logit_rows)
def test_temperature_zero_puts_everything_on_the_largest(logits):
    probs = next_token_probs(logits, temperature=0.0)
    assert probs.max() == probs.sum() == 1
    assert probs.argmax() == logits.argmax()


@given(logits=logit_rows, k=st.integers(1, 14))
def test_top_k_keeps_the_k_largest_in_proportion(logits, k):
    probs, whole = next_token_probs(logits, top_k=k)[0], next_token_probs(logits)[0].double()
    kept = probs > 0
    # equal probabilities at the border stay together
    border = whole.sort(descending=True).values[min(k, len(whole)) - 1]
    assert kept.sum() >= min(k, int((whole > 0).sum()))
    assert (whole[kept] >= border - 1e-6).all()
    expected = torch.where(kept, whole, 0)
    torch.testing.assert_close(probs.double(), expected / expected.sum(), rtol=1e-4, atol=1e-6)


@given(logits=logit_rows, p=st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(logits, p):
    probs, whole = next_token_probs(logits, top_p=p)[0], torch.softmax(logits[0].double(), dim=0)
    kept = probs > 0
    assert kept[whole.argmax()]
    mass = whole[kept].sum()
    assert mass >= p - 1e-6
    if kept.sum() > 1:
        assert mass - whole[kept].min() < p + 1e-6  # without the least likely one it would not reach p
    if not kept.all():
        assert whole[~kept].max() <= whole[kept].min() + 1e-9


@given(logits=logit_rows, p=st.floats(0.01, 1))
def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest(logits, p):
    probs, whole = next_token_probs(logits, min_p=p)[0], torch.softmax(logits[0].double(), dim=0)
    ratio = whole / whole.max()
    assert (probs[ratio > p * 1.0001] > 0).all()
    assert (probs[ratio < p * 0.9999] == 0).all()


@given(
    logits=logit_rows,
    temperature=st.floats(0.01, 5),
    k=st.none() | st.integers(1, 5),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0.01, 1),
)
def test_all_filters_together_always_leave_the_likeliest_token(logits, temperature, k, top_p, min_p):
    probs = next_token_probs(logits, temperature=temperature, top_k=k, top_p=top_p, min_p=min_p)
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    assert probs[0, logits[0].argmax()] > 0


def test_rows_are_filtered_each_on_its_own():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    for options in ({"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 0.0}):
        together = next_token_probs(logits, **options)
        apart = torch.cat([next_token_probs(row[None], **options) for row in logits])
        torch.testing.assert_close(together, apart)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"min_p": -1.0}, "min_p must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        generate(small_model(), [PROMPT], max_new_tokens=1, **settings)
    with pytest.raises(UserError, match=message):
        list(stream(small_model(), PROMPT, max_new_tokens=1, **settings))


def test_ordinary_settings_are_accepted():
    check_sampling(0.0, None, None, None)
    check_sampling(2.0, 1, 1.0, 1.0, 1.3)


def test_a_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.0]]


# --- generating ----------------------------------------------------------------------------------


@both
def test_greedy_takes_the_likeliest_token_each_time(arch):
    model = small_model(arch, seed=2)
    made = generate(model, [PROMPT], max_new_tokens=12)
    assert made == [uncached(model, PROMPT, 12)]
    assert len(set(made[0])) > 3, "a model that says one thing only would hide every mistake"


@both
@pytest.mark.parametrize("n", [BLOCK - len(PROMPT), BLOCK - len(PROMPT) + 1, 3 * BLOCK])
def test_beyond_the_context_the_window_slides_as_described(arch, n):
    model = small_model(arch)
    made = generate(model, [PROMPT], max_new_tokens=n)
    assert made == [uncached(model, PROMPT, n)]
    assert made == generate(model, [PROMPT], max_new_tokens=n)


@both
@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_of_a_long_prompt_the_newest_tokens_are_read(arch, length):
    model, prompt = small_model(arch), ids(length).tolist()
    made = generate(model, [prompt], max_new_tokens=5)
    assert made == generate(model, [prompt[-BLOCK:]], max_new_tokens=5) == [uncached(model, prompt, 5)]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_contexts_work(block_size):
    model = small_model(block_size=block_size)
    assert generate(model, [PROMPT], max_new_tokens=7) == [uncached(model, PROMPT, 7)]


@both
@given(lengths=st.lists(st.integers(1, BLOCK + 3), min_size=1, max_size=4))
def test_prompts_of_different_lengths_get_what_each_gets_alone(arch, lengths):
    model = small_model(arch)
    prompts = [ids(n, seed=i).tolist() for i, n in enumerate(lengths)]
    alone = [generate(model, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=6) == alone


@both
def test_rows_of_a_batch_slide_each_when_it_is_full_itself(arch):
    model = small_model(arch)
    prompts = [ids(n, seed=n).tolist() for n in (2, 9, BLOCK)]
    together = generate(model, prompts, max_new_tokens=2 * BLOCK)
    assert together == [uncached(model, prompt, 2 * BLOCK) for prompt in prompts]


@both
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}]
)
def test_a_stream_gives_what_generate_gives(arch, settings):
    model = small_model(arch)
    whole = generate(model, [PROMPT], max_new_tokens=BLOCK + 5, **settings)[0]
    assert list(stream(model, PROMPT, max_new_tokens=BLOCK + 5, **settings)) == whole
    stop = {whole[6]}
    until = whole[: whole.index(whole[6])]
    assert list(stream(model, PROMPT, max_new_tokens=BLOCK + 5, stop=stop, **settings)) == until
    assert generate(model, [PROMPT], max_new_tokens=BLOCK + 5, stop=stop, **settings) == [until]


def test_each_row_ends_at_its_own_stop_token_which_is_left_out():
    model = small_model()
    prompts = [PROMPT, [7], [9, 2]]
    free = generate(model, prompts, max_new_tokens=20)
    stop = {free[0][4], free[1][9]}
    expected = [row[: next((i for i, token in enumerate(row) if token in stop), 20)] for row in free]
    assert generate(model, prompts, max_new_tokens=20, stop=stop) == expected
    assert [len(row) < 20 for row in expected[:2]] == [True, True]


def test_generation_ends_when_all_rows_have_stopped():
    model = small_model()
    first = generate(model, [PROMPT], max_new_tokens=1)[0][0]
    calls = []
    model.ln_f.register_forward_hook(lambda *args: calls.append(1))
    assert generate(model, [PROMPT, PROMPT], max_new_tokens=50, stop={first}) == [[], []]
    assert len(calls) == 1


def test_each_new_token_costs_one_position_until_the_window_slides():
    model = small_model()
    read = []
    model.wte.register_forward_hook(lambda module, args, output: read.append(args[0].shape[1]))
    generate(model, [PROMPT], max_new_tokens=BLOCK)
    assert read == [5] + [1] * (BLOCK - 5) + [BLOCK // 2] + [1] * 3


def test_closing_a_stream_stops_the_work():
    model = small_model()
    calls = []
    model.ln_f.register_forward_hook(lambda *args: calls.append(1))
    tokens = stream(model, PROMPT, max_new_tokens=50)
    next(tokens), next(tokens)
    tokens.close()
    assert len(calls) == 2


def test_the_same_seed_gives_the_same_text_and_another_does_not():
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)  # so flat that no token is certain

    def text(seed: int) -> list[int]:
        return generate(model, [PROMPT], max_new_tokens=20, temperature=1.0, seed=seed)[0]

    assert text(1) == text(1)
    assert len({tuple(text(seed)) for seed in range(5)}) == 5


def test_sampling_neither_reads_nor_moves_the_random_state_of_others():
    model = small_model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate(model, [PROMPT], max_new_tokens=5, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert generate(model, [PROMPT], max_new_tokens=5, temperature=1.0) == first


def test_sampled_tokens_come_as_often_as_their_probabilities_say():
    model = small_model(vocab_size=5)
    n = 4000
    drawn = generate(model, [[1]] * n, max_new_tokens=1, temperature=2.0, top_k=3)
    expected = next_token_probs(logits_of(model, [1])[None], temperature=2.0, top_k=3)[0]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=5) / n
    assert (counts[expected == 0] == 0).all()
    assert (counts - expected).abs().max() < 4 * 0.5 / n**0.5


def test_with_a_strong_penalty_no_token_comes_twice():
    model = small_model()
    with torch.no_grad():
        for block in model.h:  # without them the last token decides alone, and what is likest to it is itself
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
    assert generate(model, [PROMPT], max_new_tokens=20) == [[PROMPT[-1]] * 20]
    made = generate(model, [PROMPT], max_new_tokens=20, repetition_penalty=1e6)[0]
    assert len(set(made)) == 20
    assert not set(made) & set(PROMPT)


def test_generation_starts_from_end_of_text_alone():
    model = small_model()
    assert generate(model, [[0]], max_new_tokens=8) == [uncached(model, [0], 8)]


@pytest.mark.parametrize("prompts", [[[]], [PROMPT, []]])
def test_an_empty_prompt_is_refused_with_what_to_do(prompts):
    with pytest.raises(UserError, match=r"empty prompt.*end-of-text"):
        generate(small_model(), prompts, max_new_tokens=3)


def test_an_empty_prompt_is_refused_by_the_stream_too():
    with pytest.raises(UserError, match="empty prompt"):
        next(stream(small_model(), [], max_new_tokens=3))


def test_no_prompts_no_answers():
    assert generate(small_model(), [], max_new_tokens=3) == []
    assert generate(small_model(), [PROMPT], max_new_tokens=0) == [[]]


def test_prompts_are_left_as_they_were():
    prompt = list(PROMPT)
    generate(small_model(), [prompt], max_new_tokens=5)
    list(stream(small_model(), prompt, max_new_tokens=5))
    assert prompt == PROMPT


def test_generating_builds_no_gradients():
    model = small_model()
    built = []
    model.ln_f.register_forward_hook(lambda module, args, output: built.append(output.requires_grad))
    generate(model, [PROMPT], max_new_tokens=3)
    list(stream(model, PROMPT, max_new_tokens=3))
    assert built == [False] * 6
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_generates_in_the_number_format_of_its_weights(arch, dtype):
    """For rows of different lengths that exceed the context: with padding, cache and a sliding window."""
    model = small_model(arch).to(dtype)
    written = generate(model, [[1, 2, 3], [4]], max_new_tokens=BLOCK + 8)
    assert [len(row) for row in written] == [BLOCK + 8] * 2
    if dtype == torch.float64:
        assert written == generate(small_model(arch), [[1, 2, 3], [4]], max_new_tokens=BLOCK + 8)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    generator = torch.Generator().manual_seed(3)
    drawn = torch.stack([draw(probs, generator) for _ in range(4000)])
    shares = torch.bincount(drawn[:, 0], minlength=6) / 4000
    torch.testing.assert_close(shares, probs[0], atol=0.025, rtol=0)  # three standard deviations of a share
    assert (shares[probs[0] == 0] == 0).all()
    assert (drawn[:, 1] == 5).all()


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(0, 2**31))
def test_nothing_of_probability_zero_is_drawn_and_nothing_beyond_the_vocabulary(seed, size, extreme):
    """Whatever uniform number comes, the least and the greatest included."""
    draws = torch.Generator().manual_seed(seed)
    probs = torch.rand(3, size, generator=draws) * (torch.rand(3, size, generator=draws) < 0.3)
    probs[:, extreme % size] += 0.1
    probs /= probs.sum(dim=1, keepdim=True)
    for uniform in (None, 0.0, 1 - 2**-53):
        fixed = mock.patch("torch.rand", lambda *shape, **_: torch.full(shape, uniform, dtype=torch.float64))  # noqa: B023
        with nullcontext() if uniform is None else fixed:
            picked = draw(probs, draws)
        assert (probs.gather(1, picked[:, None]) > 0).all()
