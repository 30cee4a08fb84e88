from __future__ import annotations

import ctypes
import sys
from unittest.mock import create_autospec

import pytest
import torch

from nanochat import devices
from nanochat.config import UserError
from nanochat.devices import matmul_dtype, pick_device


@pytest.fixture(autouse=True)
def fresh_answers():
    """Clear the caches of what is measured once per process."""
    caches = (devices._matmul_dtype, devices.matrix_rate)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_prefers_a_gpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected


def test_a_device_can_be_named():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "meta", "cpu:x", "CPU", None])
def test_a_device_this_machine_cannot_compute_on_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="cannot be used here; try device 'auto' or 'cpu'") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "amx_tile": True, "amx_bf16": True}, torch.bfloat16),
        (
            {"architecture": "x86_64", "avx512_f": True, "avx_vnni": True},
            torch.float32,
        ),  # VNNI multiplies integers only
        ({"architecture": "x86_64", "avx2": True}, torch.float32),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, torch.float32),
        ({"architecture": "riscv64"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_multiplies_bfloat16_only_where_it_has_the_instructions(monkeypatch, processor, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    assert matmul_dtype(torch.device("cpu")) == dtype


def test_a_pytorch_that_cannot_tell_the_instructions_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert matmul_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_format_can_be_chosen(monkeypatch, name, dtype, device):
    monkeypatch.setenv("NANOCHAT_DTYPE", name)
    assert matmul_dtype(torch.device(device)) == dtype


def test_a_format_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "bf16")
    with pytest.raises(UserError, match="unknown number format in NANOCHAT_DTYPE 'bf16'; did you mean 'bfloat16'"):
        matmul_dtype(torch.device("cpu"))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_multiplies_bfloat16_only_where_it_is_not_emulated(monkeypatch, native, dtype):
    """A T4 or V100 emulates it, and PyTorch by default counts emulation as support."""
    supported = create_autospec(torch.cuda.is_bf16_supported, side_effect=lambda including_emulation=True: (
        native or including_emulation
    ))  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert matmul_dtype(torch.device("cuda:1")) == dtype


def test_a_gpu_is_allowed_tf32(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    devices.prepare_device(torch.device("cpu"))
    assert asked == []
    devices.prepare_device(torch.device("cuda"))
    assert asked == ["high"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_the_format_of_the_device(monkeypatch, dtype):
    monkeypatch.setattr(devices, "matmul_dtype", lambda device: dtype)
    with devices.autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_apples_gpu_computes_in_float32():
    assert matmul_dtype(torch.device("mps")) == torch.float32


def test_the_matrix_rate_counts_two_operations_for_each_of_n_cubed(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "_seconds", lambda device, dtype, size: asked.append(size) or 0.5)
    assert devices.matrix_rate("cpu") == 2 * asked[0] ** 3 / 0.5
    devices.matrix_rate("cpu")
    assert len(asked) == 1  # measured once
    devices.matrix_rate("cpu", torch.bfloat16)
    assert len(asked) == 2


def test_the_stopwatch_gives_the_best_of_its_rounds(monkeypatch):
    """With a clock that advances only during matrix products, of which the first are slow."""
    now, products = [0.0], iter([9.0, 9.0, 2.0, 3.0, 3.0, 3.0])

    class Matrix:
        def __matmul__(self, other):
            now[0] += next(products)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "ones", lambda *shape, **options: Matrix())
    assert devices._seconds(torch.device("cpu"), torch.float32, 4) == 2.0


def test_memory_of_this_process_is_plausible_and_no_gpu_counts_none():
    rss, gpu = devices.memory_mb(torch.device("cpu"))
    assert 20 < rss < 100_000
    assert gpu == 0


@pytest.mark.parametrize("taken", [1, 0])
def test_glibc_is_asked_to_keep_large_blocks(monkeypatch, taken):
    asked = {}

    class Library:
        def mallopt(self, number, value):
            asked[number] = value
            return taken

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert devices.keep_large_blocks() is bool(taken)
    assert asked[-4] == 0  # M_MMAP_MAX in malloc.h


@pytest.mark.parametrize("failure", [OSError("no such library"), AttributeError("mallopt")])
def test_another_c_library_is_left_as_it_is(monkeypatch, failure):
    def missing(name):
        raise failure

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert devices.keep_large_blocks() is False


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_not_asked(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert devices.keep_large_blocks() is False
