from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import ARCHS, ids, small_model
from torch import Tensor, nn

from nanochat import devices, optim
from nanochat.optim import OPTIMIZERS, Muon, make_optimizers, orthogonalize, schedule

both = pytest.mark.parametrize("arch", ARCHS)


@pytest.fixture(autouse=True, params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def precision(request, monkeypatch) -> torch.dtype:
    """Run each test in every number format in which some device computes the iteration."""
    monkeypatch.setattr(optim, "matmul_dtype", lambda device: request.param)
    return request.param


def matrix(rows: int, columns: int, seed: int = 0, least: float = 0.1) -> Tensor:
    """A matrix with singular values spread evenly from `least` to 1."""
    draw = torch.Generator().manual_seed(seed)
    n = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, n, generator=draw)).Q
    right = torch.linalg.qr(torch.randn(columns, n, generator=draw)).Q
    return left @ torch.linspace(least, 1, n).diag() @ right.T


def parameter(*shape: int, grad: Tensor | None = None, seed: int = 0) -> nn.Parameter:
    p = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
    p.grad = matrix(*shape, seed=seed + 1) if grad is None else grad.clone()
    return p


def updated(p: nn.Parameter, **options) -> Tensor:
    """The change of p by one step of Muon at learning rate 1."""
    before = p.detach().clone()
    Muon([p], lr=1.0, **options).step()
    return p.detach() - before


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64), (96, 32), (1, 8), (8, 1)])
def test_orthogonalizing_brings_all_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.stack([matrix(*shape), matrix(*shape, seed=5)])))
    assert values.min() > 0.65
    assert values.max() < 1.25


@pytest.mark.parametrize("shape", [(3, 8, 32), (2, 48, 16)])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_short_way_for_wide_matrices_gives_what_the_long_way_gives(shape, rank):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if rank:  # the other directions are all but zero: nothing may be made of them
        u, s, v = torch.linalg.svd(g, full_matrices=False)
        s[:, rank:] *= 1e-5
        g = u * s[:, None] @ v
    # in float64 orthogonalize iterates on the matrices themselves, in float32 on x x^T
    exact, quick = orthogonalize(g, dtype=torch.float64), orthogonalize(g.float(), dtype=torch.float32)
    torch.testing.assert_close(quick.double(), exact, rtol=0, atol=2e-5)


def test_orthogonalizing_keeps_the_directions():
    left, _, right = torch.linalg.svd(g := matrix(24, 16), full_matrices=False)
    inside = left.T @ orthogonalize(g[None])[0] @ right.T
    off = inside - inside.diagonal().diag()
    assert off.abs().max() < 0.06
    assert inside.diagonal().min() > 0.65


@given(scale=st.floats(1e-4, 1e6))
def test_the_size_of_the_gradient_does_not_matter(scale):
    g = matrix(16, 8)[None]
    torch.testing.assert_close(orthogonalize(g * scale), orthogonalize(g), rtol=0.1, atol=0.05)


def test_a_gradient_of_zero_moves_nothing():
    p = parameter(8, 8, grad=torch.zeros(8, 8))
    assert not updated(p).any()


@pytest.mark.parametrize(("shape", "size"), [((32, 32), 1.0), ((64, 16), 2.0), ((16, 64), 1.0)])
def test_an_update_is_orthogonal_and_larger_only_where_outputs_outnumber_inputs(shape, size):
    values = torch.linalg.svdvals(updated(parameter(*shape))) / size
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_an_update_goes_against_the_gradient():
    p = parameter(16, 8)
    assert (updated(p) * p.grad).sum() < 0


def test_shapes_that_share_an_iteration_move_as_each_would_alone():
    shapes = [(16, 8), (8, 16), (16, 8), (8, 8), (8, 16)]
    together = [parameter(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    alone = copy.deepcopy(together)
    for p, q in zip(together, alone, strict=True):
        q.grad = p.grad.clone()
    Muon(together, lr=0.1).step()
    for p, q in zip(together, alone, strict=True):
        Muon([q], lr=0.1).step()
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)


def test_a_fused_query_key_value_matrix_moves_as_three_matrices():
    parts = [parameter(8, 8, grad=matrix(8, 8, seed=9) * size, seed=seed) for seed, size in enumerate((1, 100, 0.01))]
    fused = nn.Parameter(torch.cat([p.detach() for p in parts]))
    fused.grad = torch.cat([p.grad for p in parts])
    fused.n_split = 3
    change = updated(fused)
    torch.testing.assert_close(change, torch.cat([updated(p) for p in parts]), rtol=0, atol=2e-2)
    for part in change.chunk(3):
        assert torch.linalg.svdvals(part).min() > 0.65  # one matrix of 24 x 8 would let the large part take all


def test_momentum_is_nesterovs(precision):
    if precision == torch.bfloat16:
        pytest.skip("compares digits")
    p = parameter(8, 8)
    expected, buffer = p.detach().clone(), torch.zeros(8, 8)
    muon = Muon([p], lr=0.1, momentum=0.9)
    for step in range(3):
        p.grad = matrix(8, 8, seed=20 + step)
        muon.step()
        buffer = 0.9 * buffer + 0.1 * p.grad
        expected -= 0.1 * orthogonalize((0.9 * buffer + 0.1 * p.grad)[None])[0]
        torch.testing.assert_close(p.detach(), expected)


def test_a_parameter_without_a_gradient_is_left_alone():
    p, q = parameter(8, 8), parameter(8, 8)
    before = p.detach().clone()
    p.grad = None
    Muon([p, q], lr=0.1).step()
    assert torch.equal(p, before)


def test_decay_shrinks_a_matrix_by_the_learning_rate_times_the_decay():
    p = parameter(8, 8, grad=torch.zeros(8, 8))
    before = p.detach().clone()
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), before * 0.95)


# --- the two together ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@both
def test_every_parameter_has_exactly_one_optimizer_a_tied_one_too(arch, name):
    model = small_model(arch)
    held = [id(p) for group in make_optimizers(model, optimizer=name).groups() for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}


@both
def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(arch):
    model = small_model(arch)
    muon, adamw = make_optimizers(model).members
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert held == {
        f"h.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert isinstance(adamw, torch.optim.AdamW)
    assert {getattr(p, "n_split", 1) for n, p in model.named_parameters() if n.endswith("c_attn.weight")} == {3}
    assert {getattr(p, "n_split", 1) for n, p in model.named_parameters() if not n.endswith("c_attn.weight")} == {1}


@both
def test_decay_touches_the_matrices_only(arch):
    model = small_model(arch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers = make_optimizers(model, weight_decay=0.1)
    optimizers.step()
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert shrunk == {name for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2}
    assert all(p.norm() < before[name].norm() for name, p in model.named_parameters() if name in shrunk)


@both
def test_a_scale_multiplies_every_learning_rate(arch):
    whole = [group["lr"] for group in make_optimizers(small_model(arch)).groups()]
    half = make_optimizers(small_model(arch), scale=0.5)
    assert [group["lr"] for group in half.groups()] == [lr / 2 for lr in whole]
    half.set_scale(0.1)
    half.set_scale(0.2)
    assert [group["lr"] for group in half.groups()] == pytest.approx([lr / 10 for lr in whole])


@both
def test_matrices_of_the_blocks_have_one_rate_and_all_else_another(arch):
    model = small_model(arch)
    rates = {id(p): group["lr"] for group in make_optimizers(model).groups() for p in group["params"]}
    assert rates[id(model.wte.weight)] == optim.RATES[model.config.arch][1]
    assert rates[id(model.h[0].mlp.c_fc.weight)] == optim.RATES[model.config.arch][0]


@both
def test_saved_and_loaded_optimizers_go_on_as_if_nothing_had_happened(arch):
    def steps(model, optimizers, seeds):
        for seed in seeds:
            model(ids(2, 16, seed=seed), ids(2, 16, seed=seed + 50)).backward()
            optimizers.set_scale(1 / (seed + 1))
            optimizers.step()
            optimizers.zero_grad()

    whole = small_model(arch)
    steps(whole, make_optimizers(whole), range(6))
    first, second = small_model(arch), small_model(arch, seed=1)
    begun = make_optimizers(first)
    steps(first, begun, range(3))
    second.load_state_dict(first.state_dict())
    resumed = make_optimizers(second)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    steps(second, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


@both
def test_a_few_steps_learn_a_batch_by_heart(arch):
    torch.manual_seed(0)
    model = small_model(arch)
    optimizers = make_optimizers(model)
    x, y = ids(2, 16), ids(2, 16, seed=1)
    losses = []
    for _ in range(30):
        losses.append(loss := model(x, y))
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


# --- the schedule --------------------------------------------------------------------------------


def test_without_warmup_the_first_step_has_the_full_rate():
    assert schedule(0, 100) == 1.0


def test_warmup_rises_in_equal_steps_and_never_starts_at_zero():
    assert [schedule(step, 100, warmup=4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_rate_is_flat_until_the_decay_and_then_falls_in_a_line_to_its_last_step():
    rates = [schedule(step, 10, decay_from=0.5) for step in range(10)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_a_run_of_one_step_still_moves():
    assert schedule(0, 1) == 1.0
    assert schedule(0, 1, warmup=1) == 0.5


@given(steps=st.integers(1, 300), warmup=st.integers(0, 50), decay_from=st.floats(0, 1))
def test_every_step_moves_and_none_more_than_fully(steps, warmup, decay_from):
    rates = [schedule(step, steps, warmup, decay_from) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)


def test_the_iteration_is_computed_in_the_format_in_which_the_device_multiplies(monkeypatch, precision):
    monkeypatch.undo()
    g = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(0))
    formats = (torch.float32, torch.bfloat16)
    for dtype, other in (formats, formats[::-1]):
        monkeypatch.setattr(devices, "_matmul_dtype", lambda kind, dtype=dtype: dtype)
        assert torch.equal(orthogonalize(g), orthogonalize(g, dtype=dtype))
        assert not torch.equal(orthogonalize(g), orthogonalize(g, dtype=other))
