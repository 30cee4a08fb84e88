"""User feedback on answers: an append-only JSON Lines file, and the labels and preference pairs derived from it.

Lines of data/feedback/<run>.jsonl are never rewritten. To change an opinion, a later record about the same answer is
appended; `current` works out which records still apply. Each line is one write to a file opened in append mode, so
several notebooks can share the file, and a line cut short by a crash or a full disk loses only that line.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from ..config import UserError, unknown, whole_text
from ..data.conversation import Conversation, Role, Turn
from ..files import append_line
from ..paths import safe_name, stage_name

SCHEMA = 1
# The kinds of feedback: those with an integer value, and the values allowed; then those with a text
VALUES = {"thumb": (1, -1), "rating": (1, 2, 3, 4, 5), "choice": (0, 1)}
TEXTS = ("comment", "correction")
KINDS = (*VALUES, *TEXTS, "retract")


def new_id() -> str:
    """A random unique id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def now() -> str:
    """The current time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Record:
    """One line of feedback. Raises UserError for invalid values.

    `conversation` is what the model answered, so it ends with a user turn. `responses` holds the answer that was rated,
    or both answers of a "choice". `value` is the thumb (+1 or -1), the rating (1 to 5) or the index of the chosen
    response; `text` is the comment or the corrected answer. "retract" withdraws the kind named in `text`, or, if that
    is empty, everything about the answer.
    """

    kind: str
    about: str  # id of the answer or of the comparison
    run: str
    stage: str
    conversation: Conversation
    responses: tuple[str, ...]
    value: int | None = None
    text: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()  # one per response
    checkpoint: str = ""  # fingerprint of the model's weights
    tokenizer: str = ""  # fingerprint of its tokenizer
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)  # UTC, ISO 8601

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of feedback", self.kind, KINDS)
        safe_name(self.run)
        stage_name(self.stage)
        datetime.fromisoformat(self.time.removesuffix("Z"))
        if not self.id or not self.about:
            raise UserError("feedback needs an id, and the id of the answer it is about")
        allowed = VALUES.get(self.kind)
        if allowed and (isinstance(self.value, bool) or self.value not in allowed):
            one_of = ", ".join(map(str, allowed))
            raise UserError(f"a {self.kind} is one of {one_of}, not {self.value!r}; nothing was recorded, try again")
        if self.kind in TEXTS and not self.text.strip():
            raise UserError(f"the {self.kind} is empty; type one")
        if self.kind == "retract" and self.text not in ("", *KINDS[:-1]):
            raise unknown("kind of feedback", self.text, KINDS[:-1])
        if len(self.responses) != (2 if self.kind == "choice" else 1):
            raise UserError(f"a {self.kind} is about {2 if self.kind == 'choice' else 1} answer(s)")
        if not self.conversation.turns or self.conversation.answered:
            raise UserError("the conversation of a feedback record must end with a user turn")


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON-compatible values: one line of the file."""
    conversation = {
        "turns": [{"role": turn.role, "text": turn.text} for turn in record.conversation.turns],
        "context": record.conversation.context,
    }
    return {"schema": SCHEMA, **vars(record), "conversation": conversation}


def from_json(values: Any) -> Record:
    """The record of one parsed line. Raises UserError for missing fields, wrong types or another schema version."""
    try:
        values = dict(values)
        if values.pop("schema") != SCHEMA:
            raise UserError(f"feedback with another schema than version {SCHEMA}; update nanochat")
        stored = values.pop("conversation")
        turns = tuple(Turn(turn["role"], _text(turn["text"])) for turn in stored["turns"])
        roles = get_args(Role)
        if any(turn.role != roles[i % 2] for i, turn in enumerate(turns)):
            raise UserError("user and assistant must alternate in a conversation")
        conversation = Conversation(turns, _text(stored["context"]))
        responses = tuple(_text(response) for response in values.pop("responses"))
        seeds = tuple(int(seed) for seed in values.pop("seeds"))
        for name in ("kind", "about", "run", "stage", "text", "checkpoint", "tokenizer", "id", "time"):
            values[name] = _text(values[name])
        return Record(
            conversation=conversation,
            responses=responses,
            seeds=seeds,
            sampling=dict(values.pop("sampling")),
            **values,
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a feedback record ({type(error).__name__}: {error})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {str(value)[:40]!r}")
    return whole_text(value)


def append(path: Path, record: Record) -> None:
    """Append one line durably. Raises OSError if the write fails."""
    append_line(path, whole_text(json.dumps(to_json(record), ensure_ascii=False)))


def read(path: Path, say: Callable[[str], None] = print) -> list[Record]:
    """All records of the file, in order; unreadable lines are skipped, and `say` receives a sentence with their number.

    A missing file has no records.
    """
    found: dict[str, Record] = {}  # by id, since a write that failed after the line was complete is repeated
    skipped = 0
    if not path.is_file():
        return []
    with path.open("rb") as file:
        for line in file:  # splits at b"\n" only; str.splitlines would also split at U+2028
            if not line.strip():
                continue
            try:
                record = from_json(json.loads(line))
                found.setdefault(record.id, record)
            except (ValueError, RecursionError):
                skipped += 1
    if skipped:
        say(f"{skipped} unreadable line{'s' * (skipped > 1)} of {path.name} passed over; the rest is used.")
    return list(found.values())


class Store:
    """The feedback file of one run, with the records that could not be written yet."""

    def __init__(self, path: Path):
        self.path = path
        self.pending: list[Record] = []

    def add(self, record: Record) -> str:
        """Write the record, after any that are still pending. Returns "", or a sentence saying why the write failed; the
        record then stays in memory until the next `add` or `retry`."""
        self.pending.append(record)
        return self.retry()

    def retry(self) -> str:
        """Write the pending records; returns "", or a sentence saying why the write failed."""
        while self.pending:
            try:
                append(self.path, self.pending[0])
            except OSError as error:
                return (
                    f"Feedback not saved yet ({error.strerror or error}): {len(self.pending)} kept in memory, "
                    "to be retried with the next one."
                )
            self.pending.pop(0)
        return ""

    def records(self, say: Callable[[str], None] = print) -> list[Record]:
        """All records, including those pending in memory."""
        return [*read(self.path, say), *self.pending]


@dataclass
class Opinion:
    """The feedback now in force for one answer (or comparison). `record` is the latest record about it."""

    record: Record
    thumb: int | None = None
    rating: int | None = None
    choice: int | None = None
    comment: str = ""
    correction: str = ""

    @property
    def good(self) -> bool | None:
        """True if liked (thumb up, rating 4 or 5), False if disliked (thumb down, rating 1 or 2), otherwise None."""
        if self.thumb is not None:
            return self.thumb > 0
        return None if self.rating in (None, 3) else self.rating > 3

    @property
    def empty(self) -> bool:
        """Whether all feedback on the answer was withdrawn."""
        return self.thumb is self.rating is self.choice is None and not self.comment and not self.correction


def current(records: Iterable[Record]) -> list[Opinion]:
    """The feedback now in force: one opinion per answer that has any, in the order of each answer's first record.

    A later record replaces an earlier one of the same kind; a thumb and a rating replace each other.
    """
    opinions: dict[str, Opinion] = {}
    for record in records:
        opinion = opinions.setdefault(record.about, Opinion(record))
        opinion.record = record
        withdrawn: tuple[str, ...] = {"thumb": ("rating",), "rating": ("thumb",)}.get(record.kind, ())
        if record.kind == "retract":
            withdrawn = (record.text,) if record.text else KINDS[:-1]
        for kind in withdrawn:
            setattr(opinion, kind, None if kind in VALUES else "")
        if record.kind != "retract":
            setattr(opinion, record.kind, record.value if record.kind in VALUES else record.text)
    return [opinion for opinion in opinions.values() if not opinion.empty]


def labels(records: Iterable[Record]) -> Iterator[tuple[Conversation, str, bool]]:
    """(conversation, answer, liked) for each answer with a clear verdict: the unpaired labels that KTO learns from
    (Ethayarajh et al. 2024, arXiv:2402.01306).
    """
    for opinion in current(records):
        if opinion.good is not None:
            yield opinion.record.conversation, opinion.record.responses[0], opinion.good


def pairs(records: Iterable[Record]) -> Iterator[tuple[Conversation, str, str]]:
    """(conversation, preferred answer, rejected answer), each once: the preference pairs that DPO learns from (Rafailov
    et al. 2023, arXiv:2305.18290).

    They come from choices, from corrections (preferred over the answer corrected), and from conversations with both a
    liked and a disliked answer.
    """
    opinions = current(records)
    found: dict[tuple[Conversation, str, str], None] = {}
    by_prompt: dict[Conversation, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for opinion in opinions:
        prompt, responses = opinion.record.conversation, opinion.record.responses
        if opinion.choice is not None:
            found[prompt, responses[opinion.choice], responses[1 - opinion.choice]] = None
        if opinion.correction:
            found[prompt, opinion.correction.strip(), responses[0]] = None
        if opinion.good is not None:
            by_prompt[prompt][opinion.good].append(responses[0])
    for prompt, answers in by_prompt.items():
        found |= {(prompt, liked, disliked): None for liked in answers[True] for disliked in answers[False]}
    return ((prompt, better, worse) for prompt, better, worse in found if better != worse)


def export_preferences(records: Iterable[Record]) -> Iterator[dict[str, list[dict[str, str]]]]:
    """`pairs` in the usual preference format, {prompt, chosen, rejected}: each a list of {role, content} messages.

    A passage becomes the system message.
    """
    for prompt, better, worse in pairs(records):
        passage = [{"role": "system", "content": prompt.context}] if prompt.context else []
        yield {
            "prompt": [*passage, *({"role": turn.role, "content": turn.text} for turn in prompt.turns)],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
