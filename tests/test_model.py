from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import ARCHS, BLOCK, VOCAB, ids, small_config, small_model
from torch import Tensor

from nanochat.config import UserError, model_config
from nanochat.model import GPT, Cache, attend, count_params, rms_norm, rotary_table, rotate

both = pytest.mark.parametrize("arch", ARCHS)


def same(a: Tensor, b: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("GPT2-Small", 124_439_808),
        ("GPT2-Medium", 354_823_168),
        ("GPT2-Large", 774_030_080),
        ("GPT2-XL", 1_557_611_200),
    ],
)
def test_gpt2_sizes_have_the_published_number_of_parameters(name, parameters):
    assert count_params(model_config(name)) == parameters


@both
def test_counting_without_allocating_agrees_with_the_model(arch):
    model = small_model(arch)
    assert count_params(model.config) == model.n_params() == sum(p.numel() for p in model.parameters())


def test_parameter_names_are_those_of_the_published_gpt2():
    block = {
        f"h.{layer}.{name}.{kind}"
        for layer in range(2)
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    }
    named = {name for name, _ in small_model("gpt2").named_parameters()}
    assert named == block | {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"}


def test_flops_per_token_are_six_a_weight_and_twelve_an_attended_number():
    # GPT-2 small, by hand: 12 layers of 12 * 768^2 weights and a head of 50257 * 768; attention over 1024 positions
    with torch.device("meta"):
        model = GPT(model_config("GPT2-Small"))
    assert model.flops_per_token() == 6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 768 * 1024
    assert model.flops_per_token(0.25) == model.flops_per_token() - 6 * 0.75 * 50257 * 768


# --- how it starts -------------------------------------------------------------------------------


def test_the_modern_model_starts_knowing_nothing_its_loss_is_about_log_v():
    torch.manual_seed(0)
    loss = GPT(small_config("modern"))(ids(4, BLOCK), ids(4, BLOCK, seed=1))
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.1)


def test_gpt2_starts_near_log_v():
    torch.manual_seed(0)
    loss = GPT(small_config("gpt2"))(ids(4, BLOCK), ids(4, BLOCK, seed=1))
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.05)


def test_gpt2_starts_with_gpt2s_scales():
    torch.manual_seed(0)
    model = GPT(small_config("gpt2", n_layer=8, n_embd=128))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[3].attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.h[0].ln_1.weight.min() == 1
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_modern_blocks_start_as_identity():
    model = GPT(small_config("modern"))
    x = ids(2, 8)
    same(model.trunk(x), rms_norm(rms_norm(model.wte(x))))


def test_smeared_heads_copy_before_anything_is_learned():
    torch.manual_seed(0)
    once = torch.randint(256, (8, 24))
    x = torch.cat((once, once), dim=1)

    def right(smear: bool) -> float:
        """How often the likeliest next token, other than the token itself, is the one that followed it before."""
        torch.manual_seed(1)
        model = GPT(model_config("nano-long", 256, n_layer=2, smear=smear))
        guess = model(x).scatter(2, x[..., None], -math.inf).argmax(dim=2)
        return (guess[:, 24:-1] == x[:, 25:]).float().mean().item()  # chance: 1 / 256

    assert right(True) > 0.2 > 0.02 > right(False)


@both
def test_the_same_seed_gives_the_same_weights_and_another_does_not(arch):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(GPT(small_config(arch)).wte.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@both
def test_the_head_is_the_embedding_table(arch):
    model = small_model(arch)
    assert model.lm_head.weight is model.wte.weight


@both
def test_every_parameter_learns(arch):
    model = small_model(arch).train()
    model(ids(4, BLOCK), ids(4, BLOCK, seed=1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- what a position sees ------------------------------------------------------------------------


@both
def test_future_tokens_change_nothing_and_past_ones_do(arch):
    model, x = small_model(arch), ids(2, BLOCK)
    with torch.inference_mode():
        logits = model(x)
        for at in (1, 7, BLOCK - 1):
            changed = x.clone()
            changed[:, at] = (changed[:, at] + 1) % VOCAB
            other = model(changed)
            same(other[:, :at], logits[:, :at], atol=1e-6)
            assert not torch.allclose(other[:, at], logits[:, at], atol=1e-3)
            if at + 1 < BLOCK:
                assert not torch.allclose(other[:, -1], logits[:, -1], atol=1e-4)


@both
def test_no_gradient_flows_from_a_position_to_a_later_token(arch):
    model = small_model(arch)
    seen = {}
    model.wte.register_forward_hook(lambda module, args, output: seen.update(x=output) or output.retain_grad())
    model(ids(1, 12))[0, 5].sum().backward()
    assert seen["x"].grad[0, :6].any(dim=1).all()
    assert not seen["x"].grad[0, 6:].any()


@both
def test_rows_of_a_batch_do_not_see_each_other(arch):
    model, x = small_model(arch), ids(3, 10)
    with torch.inference_mode():
        same(model(x), torch.cat([model(row[None]) for row in x]))


@both
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5).filter(lambda ns: sum(ns) <= BLOCK))
def test_documents_in_one_row_are_as_if_each_ran_alone(arch, lengths):
    model = small_model(arch)
    x = ids(1, sum(lengths), seed=len(lengths))
    docs = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    with torch.inference_mode():
        together = model(x, docs=docs)
        apart = torch.cat([model(piece) for piece in x.split(lengths, dim=1)], dim=1)
    same(together, apart)


@both
def test_each_row_has_documents_of_its_own(arch):
    model, x = small_model(arch), ids(2, 10)
    docs = torch.tensor([[0] * 3 + [1] * 7, [4] * 6 + [5] * 4])
    with torch.inference_mode():
        together = model(x, docs=docs)
        for row, cut in ((0, 3), (1, 6)):
            same(together[row, :cut], model(x[row : row + 1, :cut])[0])
            same(together[row, cut:], model(x[row : row + 1, cut:])[0])


@both
def test_the_loss_with_documents_is_that_of_its_logits(arch):
    model, x, y = small_model(arch), ids(2, 10), ids(2, 10, seed=1)
    docs = torch.tensor([[0] * 3 + [1] * 7, [4] * 6 + [5] * 4])
    y[0, :4] = -1
    expected = F.cross_entropy(model(x, docs=docs).flatten(0, 1), y.flatten(), ignore_index=-1)
    same(model(x, y, docs), expected)


@pytest.mark.parametrize("keys", [5, 512, 513, 600])
def test_short_and_long_texts_take_different_kernels_to_the_same_result(keys):
    q, k, v = torch.randn(3, 2, 2, keys, 8, generator=torch.Generator().manual_seed(0))
    same(attend(q, k, v, None), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    mask = (torch.rand(2, 1, keys, keys, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(keys).bool()
    same(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_a_text_longer_than_the_context_is_refused():
    model = small_model()
    with pytest.raises(UserError, match=f"{BLOCK + 1} tokens do not fit the model's context of {BLOCK}"):
        model(ids(1, BLOCK + 1))


# --- the cache -----------------------------------------------------------------------------------


@both
@given(pieces=st.lists(st.integers(1, BLOCK), min_size=1, max_size=8).filter(lambda ns: sum(ns) <= BLOCK))
def test_reading_in_pieces_with_a_cache_gives_the_logits_of_reading_at_once(arch, pieces):
    model = small_model(arch)
    x = ids(2, sum(pieces), seed=sum(pieces))
    cache = Cache(model.config, 2, BLOCK, x.device)
    with torch.inference_mode():
        in_pieces = torch.cat([model(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
        same(in_pieces, model(x))
    assert cache.length == sum(pieces)


@both
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), more=st.integers(0, 6), junk=st.integers(0, VOCAB - 1)
)
def test_rows_padded_on_the_left_give_what_each_gives_alone(arch, lengths, more, junk):
    model = small_model(arch)
    width = max(lengths)
    rows = ids(len(lengths), width + more, seed=more)
    start = torch.tensor([width - n for n in lengths])
    rows[torch.arange(width + more)[None] < start[:, None]] = junk
    cache = Cache(model.config, len(lengths), BLOCK, rows.device, start)
    with torch.inference_mode():
        logits = [model(rows[:, :width], cache=cache)]
        logits += [model(rows[:, at : at + 1], cache=cache) for at in range(width, width + more)]
        together = torch.cat(logits, dim=1)
        assert together.isfinite().all()
        for row, at in enumerate(start.tolist()):
            same(together[row, at:], model(rows[row : row + 1, at:])[0])


@both
def test_a_cache_cannot_grow_beyond_the_context(arch):
    model = small_model(arch)
    cache = Cache(model.config, 1, BLOCK, torch.device("cpu"))
    model(ids(1, BLOCK), cache=cache)
    with pytest.raises(UserError, match="do not fit"):
        model(ids(1, 1), cache=cache)
    assert cache.length == BLOCK


def test_the_cache_is_allocated_once():
    model = small_model()
    cache = Cache(model.config, 1, BLOCK, torch.device("cpu"))
    before = cache.keys.data_ptr(), cache.values.data_ptr()
    with torch.inference_mode():
        for at in range(5):
            model(ids(1, 1, seed=at), cache=cache)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == before


# --- the parts -----------------------------------------------------------------------------------


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_only():
    cos, sin = rotary_table(BLOCK, 8)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned_q = rotate(q.expand(1, 1, BLOCK, 8), cos, sin)[0, 0]
    turned_k = rotate(k.expand(1, 1, BLOCK, 8), cos, sin)[0, 0]
    same(turned_q.norm(dim=1), q.norm().expand(BLOCK))
    products = turned_q @ turned_k.T
    for distance in (-5, 0, 3):
        along = products.diagonal(distance)
        same(along, along[:1].expand_as(along))
    assert not torch.allclose(products.diagonal(0)[0], products.diagonal(3)[0])


def test_position_zero_is_not_turned_and_the_first_pair_turns_one_radian_a_position():
    cos, sin = rotary_table(4, 8)
    assert torch.equal(cos[0], torch.ones(4))
    assert cos[1, 0].item() == pytest.approx(math.cos(1))
    assert sin[2, 1].item() == pytest.approx(math.sin(2 * 10000 ** (-2 / 8)))


def test_rms_norm_is_the_formula():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    same(rms_norm(x), x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo().eps).sqrt())


def test_modern_logits_never_exceed_the_cap():
    model = small_model("modern")
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    assert model(ids(2, 8)).abs().max() <= 15


@both
def test_logits_and_loss_are_float32_in_mixed_precision_too(arch):
    model, x = small_model(arch), ids(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float32
        assert model(x, x).dtype == torch.float32
    with torch.no_grad():
        exact = model(x, x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, x)
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


@both
def test_dropout_acts_in_training_only(arch):
    model, x = small_model(arch, dropout=0.5), ids(1, 8)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        same(model(x), small_model(arch)(x))
        model.train()
        assert not torch.allclose(model(x), model(x))


# --- against other implementations ---------------------------------------------------------------


def gpt2_reference(weights: dict[str, Tensor], x: Tensor, n_layer: int, n_head: int) -> Tensor:
    """GPT-2 written out from its paper and published shapes: one row of ids (T,) → logits (T, V)."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    T = len(x)
    hidden = weights["wte.weight"][x] + weights["wpe.weight"][:T]
    for layer in range(n_layer):
        q, k, v = linear(norm(hidden, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").chunk(3, dim=1)
        heads = []
        for q_h, k_h, v_h in zip(q.chunk(n_head, 1), k.chunk(n_head, 1), v.chunk(n_head, 1), strict=True):
            scores = q_h @ k_h.T / math.sqrt(q_h.shape[1])
            for i in range(T):
                scores[i, i + 1 :] = -torch.inf
            heads.append(torch.softmax(scores, dim=1) @ v_h)
        hidden = hidden + linear(torch.cat(heads, dim=1), f"h.{layer}.attn.c_proj")
        a = linear(norm(hidden, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        a = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        hidden = hidden + linear(a, f"h.{layer}.mlp.c_proj")
    return norm(hidden, "ln_f") @ weights["wte.weight"].T


def test_the_gpt2_architecture_equals_a_reference_written_out_by_hand():
    model, x = small_model("gpt2"), ids(1, BLOCK)
    with torch.no_grad():
        same(model(x)[0], gpt2_reference(model.state_dict(), x[0], 2, 2), atol=2e-4)


def test_the_gpt2_architecture_equals_hugging_faces():
    transformers = pytest.importorskip("transformers")
    model, x = small_model("gpt2"), ids(2, BLOCK)
    shape = {"vocab_size": VOCAB, "n_positions": BLOCK, "n_embd": 32, "n_layer": 2, "n_head": 2}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # theirs are (in, out)
    weights = {
        f"transformer.{name}": value.T if name.endswith(turned) else value
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    peer.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight})
    with torch.no_grad():
        same(model(x), peer(x).logits, atol=2e-4)


def modern_reference(weights: dict[str, Tensor], x: Tensor, n_layer: int, n_head: int) -> Tensor:
    """The modern architecture as model.py describes it, position by position: one row of ids (T,) → logits (T, V).

    With smear and value residual if there are weights for them.
    """

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo().eps).sqrt()

    def turn(x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        turned = torch.empty_like(x)
        for t in range(x.shape[0]):
            for i in range(half):
                angle = t * 10000 ** (-i / half)
                a, b = x[t, i], x[t, i + half]
                turned[t, i] = a * math.cos(angle) - b * math.sin(angle)
                turned[t, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return turned

    hidden = norm(weights["wte.weight"][x])
    of_first = (norm(hidden) @ weights["h.0.attn.c_attn.weight"].T).chunk(3, dim=1)[2]
    for layer in range(n_layer):
        q, k, v = (norm(hidden) @ weights[f"h.{layer}.attn.c_attn.weight"].T).chunk(3, dim=1)
        if (shares := weights.get("value_shares")) is not None:
            v = (1 - shares[layer]) * v + shares[layer] * of_first
        heads = []
        for q_h, k_h, v_h in zip(q.chunk(n_head, 1), k.chunk(n_head, 1), v.chunk(n_head, 1), strict=True):
            if (share := weights.get(f"h.{layer}.attn.smear")) is not None:
                before = torch.stack([0 * k_h[0], *k_h[:-1]])
                k_h = k_h + share[len(heads)] * (before - k_h)
            scores = norm(turn(q_h)) @ norm(turn(k_h)).T / math.sqrt(q_h.shape[1])
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
            heads.append(torch.softmax(scores, dim=1) @ v_h)
        hidden = hidden + torch.cat(heads, dim=1) @ weights[f"h.{layer}.attn.c_proj.weight"].T
        a = norm(hidden) @ weights[f"h.{layer}.mlp.c_fc.weight"].T
        hidden = hidden + a.clamp(min=0) ** 2 @ weights[f"h.{layer}.mlp.c_proj.weight"].T
    return 15 * torch.tanh(norm(hidden) @ weights["lm_head.weight"].T / 15)


@pytest.mark.parametrize("arch", ["modern", "nano"])
def test_the_modern_architecture_equals_a_reference_written_out_by_hand(arch):
    model, x = small_model(arch), ids(1, 12)
    with torch.no_grad():
        same(model(x)[0], modern_reference(model.state_dict(), x[0], 2, 2), atol=2e-4)
