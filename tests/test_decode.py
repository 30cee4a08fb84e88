"""The quick way to one more token against the model's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ARCHS, BLOCK, ids, small_model
from torch import Tensor
from torch.testing import assert_close

from nanochat.decode import decoder
from nanochat.model import GPT, Cache

each = pytest.mark.parametrize("arch", [*ARCHS, "bfloat16"])


def read(model: GPT, rows: Tensor, start: Tensor | None, capacity: int = BLOCK) -> Cache:
    """A cache in which `rows` are."""
    cache = Cache(model.config, len(rows), capacity, rows.device, start, model.wte.weight.dtype)
    model(rows, cache=cache)
    return cache


@each
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), more=st.integers(1, BLOCK - 12))
@settings(max_examples=25)
@torch.inference_mode()
def test_each_token_gets_the_logits_that_the_model_gives_and_leaves_the_same_in_the_cache(arch, lengths, more):
    """For rows with padding and without; afterwards the model can go on where the decoder stopped."""
    low = arch == "bfloat16"
    model = small_model("nano" if low else arch).to(torch.bfloat16 if low else torch.float32)
    close = {"rtol": 0.05, "atol": 0.3} if low else {"rtol": 1e-4, "atol": 1e-4}
    width = max(lengths)
    rows = ids(len(lengths), width + more, seed=more)
    start = torch.tensor([width - n for n in lengths])
    start = start if start.any() else None
    expected, cache = (read(model, rows[:, :width], start, width + more) for _ in range(2))
    step = decoder(model, cache)
    for token in rows[:, width : width + more].unbind(1):
        assert_close(step(token), model(token[:, None], cache=expected)[:, 0], **close)
    assert cache.length == expected.length == width + more
    assert_close(cache.keys, expected.keys, **close)
    assert_close(cache.values, expected.values, **close)
    for one, other in zip(cache.last, expected.last, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, **close)
