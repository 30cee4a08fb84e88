from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import ids
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat import loss as loss_module
from nanochat.loss import head_loss

caps = pytest.mark.parametrize("softcap", [None, 15.0])
# of ten positions only those with a target are computed, of forty some others are taken along (see loss.rows_scored)
sizes = pytest.mark.parametrize("rows", [10, 40])


def problem(rows: int, width: int, vocab: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=draw) * scale).requires_grad_()
    weight = torch.randn(vocab, width, generator=draw).requires_grad_()
    return x, weight, ids(rows, seed=seed, vocab=vocab)


def plain(x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = x @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-1)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 6),
    vocab=st.integers(1, 30),
    chunk=st.integers(1, 700),
    softcap=st.sampled_from([None, 15.0, 2.0]),
    ignored=st.integers(0, 19),
)
def test_value_and_gradients_are_those_of_cross_entropy_in_chunks_of_any_size(
    rows, width, vocab, chunk, softcap, ignored
):
    x, weight, targets = problem(rows, width, vocab, seed=rows)
    targets[: min(ignored, rows - 1)] = -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "_CHUNK_ELEMENTS", chunk)
        ours = head_loss(x, weight, targets, softcap)
        found = torch.autograd.grad(ours, (x, weight))
    expected = plain(x, weight, targets, softcap)
    same(ours, expected)
    for a, b in zip(found, torch.autograd.grad(expected, (x, weight)), strict=True):
        same(a, b)


@caps
def test_rows_and_positions_may_have_any_shape(softcap):
    x, weight, targets = problem(12, 4, 9)
    same(head_loss(x.view(3, 4, 4), weight, targets.view(3, 4), softcap), plain(x, weight, targets, softcap))


@caps
@sizes
def test_a_target_of_minus_one_carries_neither_loss_nor_gradient(rows, softcap):
    x, weight, targets = problem(rows, 4, 9)
    targets[[0, 3, 9]] = -1
    value = head_loss(x, weight, targets, softcap)
    value.backward()
    assert not x.grad[[0, 3, 9]].any()
    assert x.grad[[1, 2, 4]].any(dim=1).all()
    with torch.no_grad():
        x[[0, 3, 9]] = 100.0
    assert head_loss(x, weight, targets, softcap).item() == value.item()


def test_a_batch_without_any_target_has_loss_zero_and_gradients_zero():
    x, weight, targets = problem(5, 4, 9)
    value = head_loss(x, weight, torch.full_like(targets, -1))
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


@sizes
def test_the_mean_is_over_targets_not_over_positions(rows):
    x, weight, targets = problem(rows, 4, 9)
    alone = head_loss(x[:2], weight, targets[:2])
    targets[2:] = -1
    same(head_loss(x, weight, targets), alone)


def test_gradients_scale_with_what_comes_after():
    x, weight, targets = problem(6, 4, 9)
    once = torch.autograd.grad(head_loss(x, weight, targets), (x, weight))
    thrice = torch.autograd.grad(3 * head_loss(x, weight, targets), (x, weight))
    for a, b in zip(once, thrice, strict=True):
        same(3 * a, b)


def test_a_frozen_head_or_a_frozen_trunk_still_trains_the_other():
    x, weight, targets = problem(6, 4, 9)
    expected = torch.autograd.grad(plain(x, weight, targets, 15.0), (x, weight))
    same(torch.autograd.grad(head_loss(x, weight.detach(), targets, 15.0), x)[0], expected[0])
    same(torch.autograd.grad(head_loss(x.detach(), weight, targets, 15.0), weight)[0], expected[1])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_validation_builds_no_gradients(context):
    x, weight, targets = problem(6, 4, 9)
    expected = head_loss(x, weight, targets).item()
    with context():
        value = head_loss(x, weight, targets)
    assert not value.requires_grad
    assert value.item() == expected


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_huge_logits_stay_finite(scale):
    x, weight, targets = problem(6, 4, 9, scale=scale)
    for softcap in (None, 15.0):
        value = head_loss(x, weight, targets, softcap)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (x, weight)))


def test_a_target_outside_the_vocabulary_is_an_error_not_a_number():
    x, weight, targets = problem(6, 4, 9)
    targets[2] = 9
    with pytest.raises((RuntimeError, IndexError)):
        head_loss(x, weight, targets)


@caps
def test_in_bfloat16_the_loss_is_summed_in_float32_and_gradients_keep_their_types(softcap):
    x, weight, targets = problem(64, 16, 50, scale=1.0)
    half = x.detach().bfloat16().requires_grad_()
    value = head_loss(half, weight, targets, softcap)
    value.backward()
    assert (value.dtype, half.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert value.item() == pytest.approx(plain(x, weight, targets, softcap).item(), rel=0.02)
    exact = torch.autograd.grad(plain(x, weight, targets, softcap), weight)[0]
    assert F.cosine_similarity(weight.grad.flatten(), exact.flatten(), dim=0) > 0.999


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor created by any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@caps
def test_the_logits_never_exist_whole(softcap, monkeypatch):
    rows, width, vocab = 256, 4, 1000
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 8 * vocab)
    x, weight, targets = problem(rows, width, vocab)
    with Largest() as largest:
        head_loss(x, weight, targets, softcap).backward()
    assert largest.numel == 8 * vocab
    with Largest() as largest:
        plain(x, weight, targets, softcap).backward()
    assert largest.numel == rows * vocab


def test_a_second_derivative_is_refused_and_not_left_out():
    x, weight, targets = torch.randn(1, 6, 8, requires_grad=True), torch.randn(11, 8), torch.randint(11, (1, 6))
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        torch.autograd.grad(head_loss(x, weight, targets), x, create_graph=True)
