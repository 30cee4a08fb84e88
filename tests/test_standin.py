"""The stand-in model that notebooks use until one is trained, and the exercises of notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from pathlib import Path
from typing import Any

import pytest

from nanochat import exercises, loading
from nanochat.chat.session import ChatSession
from nanochat.data import questions
from nanochat.train import standin


def _one_answer_each() -> list[questions.Conversation]:
    asked = [(conv.question, conv.context) for conv in standin.taught()]
    return [conv for conv in standin.taught() if asked.count((conv.question, conv.context)) == 1]


@pytest.mark.slow
def test_stand_in_answers_nearly_all_it_was_taught_also_in_the_middle_of_a_chat(nanochat_home: Path) -> None:
    loaded = standin.standin("nano")
    known = _one_answer_each()
    right = [said == conv.answer for said, conv in zip(loading.answer(loaded, known), known, strict=True)]
    assert sum(right) >= 0.8 * len(right)
    session = ChatSession(loaded, notice=lambda sentence: None)
    "".join(session.reply("Hello!"))
    assert "".join(session.reply("What is the capital of France?")) == "The capital of France is Paris."
    assert loaded.path.is_relative_to(nanochat_home / "out" / "nano-chat-standin")
    assert loading.load("nano-chat-standin").meta["stage"] == "fine_tuned"


def test_stand_in_is_made_once_and_again_if_its_file_is_damaged(
    nanochat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "STEPS", 1)
    first = standin.standin("nano")
    written = first.path.stat().st_mtime_ns
    assert standin.standin("nano").path.stat().st_mtime_ns == written
    first.path.write_bytes(b"torn")
    assert standin.standin("nano").meta["fingerprint"] == first.meta["fingerprint"]


def _skipping(lengths: list[int], room: int) -> int:
    kept = 0
    for length in reversed(lengths):
        if length <= room:
            room, kept = room - length, kept + 1
    return kept


def _first_hit(probs: list[float], pin: float, inclusive: bool) -> int:
    ends = [sum(probs[: i + 1]) for i in range(len(probs))]
    return next(i for i, end in enumerate(ends) if (pin <= end if inclusive else pin < end))


MISTAKES: list[tuple[str, str, Any]] = [
    ("05.pick", "border-to-the-left", lambda probs, pin: _first_hit(probs, pin, True)),
    ("05.pick", "the-likeliest", lambda probs, pin: probs.index(max(probs))),
    ("05.pick", "the-last-in-any-case", lambda probs, pin: sum(sum(probs[: i + 1]) <= pin for i in range(len(probs)))),
    ("05.pick", "the-last-exactly-added", lambda probs, pin: sum(fsum(probs[: i + 1]) <= pin for i in range(len(probs)))),
    ("05.work", "no-growth", lambda prompt, new: (prompt * new, prompt + new - 1)),
    ("05.work", "one-too-many", lambda prompt, new: (new * prompt + new * (new - 1) // 2, prompt + new)),
    ("05.remembered", "oldest-first", lambda lengths, room: sum(sum(lengths[: i + 1]) <= room for i in range(len(lengths)))),
    ("05.remembered", "with-a-hole", _skipping),
    ("05.latest", "with-zeros", lambda clicks: dict(clicks)),
    ("05.latest", "zeros-on-the-way", lambda clicks: {about: value for about, value in clicks if value}),
    ("05.latest", "sums", lambda clicks: {about: sum(v for a, v in clicks if a == about) for about, _ in clicks}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [pytest.param(name, answer, id=id) for name, id, answer in MISTAKES])
def test_usual_mistakes_are_not_accepted(name: str, answer: Callable[..., Any]) -> None:
    refused = exercises.verdict(name, answer)
    assert not refused.right
    assert "it stops with" not in refused.text
