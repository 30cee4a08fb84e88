"""Mutation tests: classic mistakes of the field, made one at a time in a copy of the package.

Each mutation replaces one piece of source text, and the tests named with it must fail by an assertion, not by a crash. A
mutation that survives is a gap in the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork; a process for each takes too long"),
]

# For each line of JSON, {"folder": …, "arguments": […]}: run pytest with the package of that folder, and answer with its
# exit status. Everything large is imported once; each run is a fork, so that none sees what another did.
RUNNER = """
import json, os, sys, traceback
from pathlib import Path

import hypothesis, matplotlib, numpy, pytest, torch, torch._dynamo

class Quick:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self):  # a failure is enough: nobody reads its smallest example
        settings, Phase = hypothesis.settings, hypothesis.Phase
        settings.register_profile("first", phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
        settings.load_profile("first")

def run(folder, arguments):
    sys.path.insert(0, folder)
    os.chdir(folder)
    os.dup2(os.open("log", os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1, 2)
    import nanochat
    assert Path(nanochat.__file__).parent == Path(folder) / "nanochat", nanochat.__file__
    return pytest.main(arguments, plugins=[Quick()])

for line in sys.stdin:
    child = os.fork()
    if not child:
        status = 99
        try:
            status = int(run(**json.loads(line)))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Mutation:
    """A replacement in a module, and the tests (of test_<file>.py) that must detect it."""

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutation(name: str, module: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, module, old, new, tests)


FUTURE = "model::test_future_tokens_change_nothing_and_past_ones_do"
ALONE = "model::test_documents_in_one_row_are_as_if_each_ran_alone"
PIECES = "model::test_reading_in_pieces_with_a_cache_gives_the_logits_of_reading_at_once"
PADDED = "model::test_rows_padded_on_the_left_give_what_each_gives_alone"
GPT2_BY_HAND = "model::test_the_gpt2_architecture_equals_a_reference_written_out_by_hand"
MODERN_BY_HAND = "model::test_the_modern_architecture_equals_a_reference_written_out_by_hand"
GREEDY = "generate::test_greedy_takes_the_likeliest_token_each_time"
ROW = "packing::test_a_packed_row_is_pinned_token_by_token"
MASK = "packing::test_the_mask_is_pinned_token_by_token_over_several_conversations"
STEP = "decode::test_each_token_gets_the_logits_that_the_model_gives_and_leaves_the_same_in_the_cache"
DECAYED = "optim::test_decay_touches_the_matrices_only"

MUTATIONS = [
    # the causal mask, wherever it is made
    mutation("no-mask", "model", ".tril(keys - T)", "", FUTURE, MODERN_BY_HAND, GPT2_BY_HAND),
    mutation(
        "no-mask-in-the-fused-kernel",
        "model",
        "is_causal=mask is None and T > 1",
        "is_causal=False",
        "model::test_short_and_long_texts_take_different_kernels_to_the_same_result",
    ),
    mutation(
        "no-mask-within-documents",
        "model",
        "return same & torch.ones(T, T, dtype=torch.bool, device=device).tril()",
        "return same",
        ALONE,
    ),
    mutation("documents-see-each-other", "model", "return same & ", "return (same | ~same) & ", ALONE),
    mutation("one-too-far-with-a-cache", "model", "<= queries[:, None])", "<= queries[:, None] + 1)", PIECES),
    mutation(
        "padding-is-seen",
        "model",
        "keys[None] >= cache.start[:, None]",
        "keys[None] >= 0 * cache.start[:, None]",
        PADDED,
    ),
    # the token before
    mutation(
        "smears-across-documents",
        "model",
        "F.pad(docs[:, 1:] != docs[:, :-1]",
        "F.pad(docs[:, 1:] != docs[:, 1:]",
        ALONE,
    ),
    mutation(
        "no-values-of-the-first-layer",
        "model",
        "share.to(v.dtype) * (values - v)",
        "share.to(v.dtype) * (v - v)",
        "model::test_the_modern_architecture_equals_a_reference_written_out_by_hand",
    ),
    mutation("forgets-the-token-before", "model", "if last is None else last", "if True else last", PIECES),
    mutation("smears-padding", "model", "<= cache.start[:, None]", "< cache.start[:, None]", PADDED),
    mutation(
        "begins-without-looking-back",
        "model",
        "k[self.copying] = q[self.copying]",
        "k[self.copying] = -q[self.copying]",
        "model::test_smeared_heads_copy_before_anything_is_learned",
    ),
    # the target shift
    mutation(
        "targets-are-the-inputs",
        "data/corpus",
        "return rows[:, :-1], rows[:, 1:]",
        "return rows[:, :-1], rows[:, :-1]",
        "corpus::test_targets_are_the_next_tokens",
    ),
    mutation("answers-are-not-shifted", "data/packing", "ids, IGNORE)[:, 1:]", "ids, IGNORE)[:, :-1]", ROW),
    # the loss mask
    mutation(
        "questions-carry-loss",
        "data/packing",
        "return inside & (~special | (ids == marks.end))",
        "return ~special | (ids == marks.end)",
        MASK,
        ROW,
    ),
    mutation("the-end-carries-none", "data/packing", "(~special | (ids == marks.end))", "~special", MASK, ROW),
    mutation(
        "the-mark-after-an-answer-carries-loss",
        "data/packing",
        "(~special | (ids == marks.end))",
        "(ids >= 0)",
        "packing::test_an_answer_without_end_stops_at_the_next_mark",
    ),
    mutation(
        "ignored-targets-count",
        "loss",
        "counts = (targets >= 0).to(torch.float32)",
        "counts = (targets >= -1).to(torch.float32)",
        "loss::test_a_target_of_minus_one_carries_neither_loss_nor_gradient",
    ),
    mutation(
        "the-mean-is-over-positions",
        "loss",
        "nats / max(count, 1)",
        "nats / targets.numel()",
        "loss::test_the_mean_is_over_targets_not_over_positions",
    ),
    mutation(
        "the-loss-has-no-cap",
        "loss",
        "logits.mul_(1 / softcap).tanh_()",
        "logits.mul_(1 / softcap)",
        "loss::test_rows_and_positions_may_have_any_shape",
    ),
    mutation(
        "the-cap-has-no-slope",
        "loss",
        "d.addcmul_(d, capped.square_(), value=-1)",
        "d",
        "loss::test_a_frozen_head_or_a_frozen_trunk_still_trains_the_other",
    ),
    # the position encoding
    mutation(
        "no-rotation",
        "model",
        "rms_norm(rotate(q, *rotary)), rms_norm(rotate(k, *rotary))",
        "rms_norm(q), rms_norm(k)",
        MODERN_BY_HAND,
    ),
    mutation("keys-are-not-rotated", "model", "rms_norm(rotate(k, *rotary))", "rms_norm(k)", MODERN_BY_HAND),
    mutation(
        "no-position-table",
        "model",
        "x + self.wpe(self._positions(T, docs, cache, idx.device))",
        "x",
        GPT2_BY_HAND,
    ),
    mutation(
        "positions-go-on-in-the-next-document",
        "model",
        "return at - torch.where(first, at, 0).cummax(dim=1).values",
        "return at",
        ALONE,
    ),
    mutation(
        "padding-counts-as-position",
        "model",
        "at[None] - cache.start[:, None]",
        "at[None] - 0 * cache.start[:, None]",
        PADDED,
    ),
    # the cache
    mutation(
        "keys-are-written-over",
        "model",
        "self.keys[layer, :, :, self.length : end] = k",
        "self.keys[layer, :, :, : k.size(2)] = k",
        PIECES,
    ),
    mutation(
        "values-of-another-layer",
        "model",
        "self.values[layer, :, :, :end]",
        "self.values[0, :, :, :end]",
        PIECES,
        GREEDY,
    ),
    mutation(
        "angles-stand-still",
        "model",
        "self.cos[seen : seen + T], self.sin[seen : seen + T]",
        "self.cos[:T], self.sin[:T]",
        PIECES,
    ),
    mutation("places-stand-still", "model", "at = at + cache.length", "at = at + 0", PIECES),
    mutation("the-cache-does-not-grow", "model", "cache.length += T", "cache.length += 0", PIECES),
    # the optimizer: what is decayed, what Muon gets, the schedule
    mutation(
        "everything-is-decayed",
        "optim",
        "weight_decay=0.0, fused=True",
        "weight_decay=weight_decay, fused=True",
        DECAYED,
    ),
    mutation("nothing-is-decayed", "optim", 'weight.mul_(1 - group["lr"] * group["weight_decay"])', "pass", DECAYED),
    mutation(
        "muon-gets-attention-only",
        "optim",
        'if name.startswith("h.") and p.dim() == 2',
        'if name.startswith("h.") and "attn" in name and p.dim() == 2',
        "optim::test_muon_has_the_matrices_of_the_blocks_and_nothing_else",
    ),
    mutation(
        "the-schedule-is-one-late",
        "optim",
        "(steps - step) / (steps - decay_start)",
        "(steps - step - 1) / (steps - decay_start)",
        "optim::test_the_rate_is_flat_until_the_decay_and_then_falls_in_a_line_to_its_last_step",
    ),
    mutation(
        "warmup-starts-at-zero",
        "optim",
        "(step + 1) / (warmup + 1)",
        "step / (warmup + 1)",
        "optim::test_warmup_rises_in_equal_steps_and_never_starts_at_zero",
    ),
    mutation(
        "the-schedule-is-one-ahead",
        "trainer",
        "schedule(step, settings.steps",
        "schedule(step + 1, settings.steps",
        "trainer::test_rates_follow_the_schedule",
    ),
    mutation(
        "gradients-pile-up",
        "trainer",
        "self.optimizers.step()\n        self.optimizers.zero_grad()",
        "self.optimizers.step()",
        "trainer::test_a_step_follows_the_gradient_of_its_own_batch_alone",
    ),
    mutation(
        "resumed-without-momentum",
        "trainer",
        'self.optimizers.load_state_dict(state["optimizers"])',
        "pass",
        "trainer::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit[5-modern]",
    ),
    # the template
    mutation(
        "answers-never-end",
        "data/questions",
        "[tok.assistant, *next(encoded), tok.end]",
        "[tok.assistant, *next(encoded)]",
        "questions::test_rendering_is_pinned_token_by_token",
    ),
    mutation(
        "prompts-lack-the-mark",
        "data/questions",
        "return [*render(asked, tok), tok.assistant]",
        "return render(asked, tok)",
        "questions::test_a_prompt_ends_with_the_assistant_mark_whether_or_not_the_answer_is_known",
    ),
    # generation
    mutation(
        "temperature-the-wrong-way",
        "generate",
        "keepdim=True)) / temperature",
        "keepdim=True)) * temperature",
        "generate::test_temperature_divides_the_logits",
    ),
    mutation("decodes-with-padding", "decode", "hidden, float", "hidden & ~hidden, float", STEP),
    mutation("decodes-one-position-behind", "decode", "cos[at], sin[at]", "cos[at - 1], sin[at - 1]", STEP),
    mutation(
        "decodes-with-a-smeared-key-before", "decode", "= cache.last[layer], k.clone()", "= cache.last[layer], k", STEP
    ),
    mutation("decodes-with-its-own-values-only", "decode", "torch.lerp(v, first, ", "torch.lerp(v, v, ", STEP),
    mutation(
        "the-stop-token-is-said",
        "generate",
        "if i in open_rows:\n                open_rows.discard(i)",
        "if i in open_rows:\n                open_rows.discard(i) or answers[i].append(token)",
        "generate::test_each_row_ends_at_its_own_stop_token_which_is_left_out",
    ),
]

ASSERTED = ("AssertionError", "Failed: DID NOT RAISE")
ALL_TESTS = tuple(dict.fromkeys(test for entry in MUTATIONS for test in entry.tests))


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(ROOT / "nanochat", folder / "nanochat", ignore=shutil.ignore_patterns("__pycache__", "box"))
    return folder


Outcomes = dict[str, list[str]]
OPTIONS = ("-q", "-p", "no:cacheprovider", "--assert=plain")  # what is imported already cannot be rewritten


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Callable[[Path, tuple[str, ...]], Outcomes]]:
    """A function that runs tests with the package in a folder, and returns the failures of each test."""
    command, pipes = [sys.executable, "-c", RUNNER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer to import than the tests to run
    with subprocess.Popen(command, **pipes, text=True, env=environment) as runner:

        def run(folder: Path, tests: tuple[str, ...]) -> Outcomes:
            paths = [f"{ROOT}/tests/test_{file}.py::{name}" for file, name in (test.split("::") for test in tests)]
            options = [*OPTIONS, "-c", f"{ROOT}/pyproject.toml", f"--rootdir={ROOT}"]
            arguments = [*options, f"--basetemp={folder}/temporary", f"--junitxml={folder}/report.xml", *paths]
            print(json.dumps({"folder": str(folder), "arguments": arguments}), file=runner.stdin, flush=True)
            status = int(runner.stdout.readline())
            assert status in (0, 1), (folder / "log").read_text(encoding="utf-8")[-3000:]
            return read(folder / "report.xml")

        yield run
        runner.stdin.close()


def read(report: Path) -> Outcomes:
    found: Outcomes = {}
    for case in xml.parse(report).iter("testcase"):
        assert case.find("error") is None, case.find("error").text
        name = f"{case.get('classname').rpartition('test_')[2]}::{case.get('name')}"
        name = name if name in ALL_TESTS else name.partition("[")[0]
        found.setdefault(name, []).extend(failure.get("message") for failure in case.findall("failure"))
    return found


def test_without_a_mutation_all_of_them_pass(outcomes, tmp_path: Path):
    assert outcomes(copy_of_the_package(tmp_path), ALL_TESTS) == {test: [] for test in ALL_TESTS}


@pytest.mark.parametrize("entry", MUTATIONS, ids=lambda entry: entry.name)
def test_a_mutation_turns_its_tests_red(entry: Mutation, outcomes, tmp_path: Path):
    module = copy_of_the_package(tmp_path) / "nanochat" / f"{entry.module}.py"
    text = module.read_text(encoding="utf-8")
    assert text.count(entry.old) == 1, (
        f"{entry.module}.py has changed: this mutation changes nothing, or more than one place"
    )
    module.write_text(text.replace(entry.old, entry.new), encoding="utf-8")
    found = outcomes(tmp_path, entry.tests)
    assert found.keys() == set(entry.tests)
    for test, messages in found.items():
        assert messages, f"{test} does not notice"
        assert all(message.startswith(ASSERTED) for message in messages), messages
