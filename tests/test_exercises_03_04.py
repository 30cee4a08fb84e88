"""The exercises of notebooks 03 and 04 do not accept the usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat import exercises


def _masked(ids: list[int], assistant: int, end: int, with_mark: bool, with_end: bool) -> list[bool]:
    inside, mask = False, []
    for id in ids:
        mask.append((inside and (with_end or id != end)) or (with_mark and id == assistant))
        inside = id == assistant or (inside and id != end)
    return mask


def _words(text: str) -> set[str]:
    return set(text.lower().split())


def _ramp_to_zero(step: int, steps: int, warmup: int, floor: float) -> float:
    if step < warmup:
        return step / warmup  # the first step does nothing
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


DIAGNOSIS = {"A": "rate too high", "B": "one batch", "C": "healthy", "D": "not shifted"}

MISTAKES: list[tuple[str, str, Any]] = [
    ("03.diagnose", "two-swapped", {**DIAGNOSIS, "B": "not shifted", "D": "one batch"}),
    ("03.diagnose", "one-missing", {key: DIAGNOSIS[key] for key in "ABC"}),
    ("03.diagnose", "other-words", {**DIAGNOSIS, "A": "too high"}),
    ("03.cosine", "no-step-of-warmup", _ramp_to_zero),
    ("03.cosine", "no-floor", lambda step, steps, warmup, floor: (1 + math.cos(math.pi * step / steps)) / 2),
    ("03.hours", "seconds", lambda n, tokens, rate, used: 6 * n * tokens / (rate * used)),
    ("03.hours", "forward-only", lambda n, tokens, rate, used: 2 * n * tokens / (rate * used) / 3600),
    ("03.hours", "share-forgotten", lambda n, tokens, rate, used: 6 * n * tokens / rate / 3600),
    ("03.clip", "each-by-itself", lambda gs, limit: [g * min(1.0, limit / max(g.norm().item(), 1e-9)) for g in gs]),
    ("03.clip", "always-scaled", lambda gs, limit: [g * limit / torch.cat(gs).norm().clamp(min=1e-9) for g in gs]),
    ("03.clip", "values", lambda gs, limit: [g.clamp(-limit, limit) for g in gs]),
    ("04.mask", "no-end", lambda ids, assistant, end: _masked(ids, assistant, end, False, False)),
    ("04.mask", "with-the-assistants-mark", lambda ids, assistant, end: _masked(ids, assistant, end, True, True)),
    ("04.mask", "everything-after", lambda ids, assistant, end: [assistant in ids[:i] for i in range(len(ids))]),
    (
        "04.targets",
        "mask-not-moved",
        lambda ids, mask: (ids[:-1], [i if m else -1 for i, m in zip(ids[1:], mask[:-1], strict=True)]),
    ),
    (
        "04.targets",
        "nothing-moved",
        lambda ids, mask: (ids[:-1], [i if m else -1 for i, m in zip(ids, mask, strict=True)][:-1]),
    ),
    ("04.documents", "from-one", lambda ids, eot: [ids[: i + 1].count(eot) for i in range(len(ids))]),
    ("04.documents", "one-late", lambda ids, eot: [max(0, ids[:i].count(eot) - 1) for i in range(len(ids))]),
    ("04.f1", "as-sets", lambda a, b: 2 * len(_words(a) & _words(b)) / (len(a.split()) + len(b.split()))),
    ("04.f1", "precision", lambda a, b: sum(w in b.lower().split() for w in a.lower().split()) / len(a.split())),
    ("04.f1", "capitals", lambda a, b: 1.0 if a == b else 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [pytest.param(name, answer, id=id) for name, id, answer in MISTAKES])
def test_usual_mistakes_are_not_accepted(name: str, answer: Callable[..., Any] | dict[str, str]) -> None:
    refused = exercises.verdict(name, answer)
    assert not refused.right
    assert "it stops with" not in refused.text  # refused for what it says, not because it broke


def test_the_patients_of_notebook_03_are_told_how_many_are_right() -> None:
    wrong = exercises.verdict("03.diagnose", {**DIAGNOSIS, "B": "not shifted", "D": "one batch"})
    assert "2 of 4 are right" in wrong.text
    assert exercises.verdict("03.diagnose", DIAGNOSIS).right
