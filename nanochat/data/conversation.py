"""Conversations, and how they are read from files of questions and answers."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import UserError, whole_text
from . import jsonfiles

IDK = "I don't know."
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What the user or the assistant says at one time."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """The turns of a conversation in order, perhaps about a passage (`context`, "" if there is none)."""

    turns: tuple[Turn, ...]
    context: str = ""
    answers: tuple[str, ...] = ()  # all accepted answers to the last question; the first is trained on
    skill: str = ""
    split: str = "train"
    id: str = ""

    def _last(self, role: Role) -> str:
        return next((turn.text for turn in reversed(self.turns) if turn.role == role), "")

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return self._last("user")

    @property
    def answer(self) -> str:
        """The last thing the assistant said, "" if it has not said anything yet."""
        return self._last("assistant")

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.turns) and self.turns[-1].role == "assistant"


def ask(question: str, context: str = "", history: Iterable[Turn] = ()) -> Conversation:
    """A conversation without its last answer: the turns of `history`, then the question.

    Raises UserError for an empty question.
    """
    if not question.strip():
        raise UserError("the question is empty; type one")
    return Conversation((*history, Turn("user", question)), context)


def read_qa(path: Path) -> Iterator[Conversation]:
    """The conversations of a file, read one at a time, so files may be of any size; `.gz` files are decompressed.

    Reads SQuAD v1.1 and v2.0 (Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822; unanswerable questions
    get the answer `IDK`), and JSON lists or JSON lines of the records that `from_record` takes. Raises UserError, naming
    the file and the record or line, for anything else, and for a file without questions.
    """
    path = Path(path)
    conv = None
    with jsonfiles.opened(path) as (stream, _):
        for where, record in jsonfiles.records(stream, path):
            if isinstance(record, dict) and "paragraphs" in record:
                convs = _article(record, where)
            else:
                convs = iter([from_record(record, where)])
            for conv in convs:
                yield conv
    if conv is None:
        raise UserError(f"{path} has no questions in it; give a list of questions and answers, or SQuAD's JSON")


def _article(record: dict[str, Any], where: str) -> Iterator[Conversation]:
    """The questions of one SQuAD article."""
    for p, paragraph in enumerate(_list(record, "paragraphs", where), 1):
        place = f"{where}, paragraph {p}"
        passage = _text(paragraph, "context", place)
        for q, question in enumerate(_list(paragraph, "qas", place), 1):
            if isinstance(question, dict):
                question = {"skill": "reading", **question, "context": passage}
            yield from_record(question, f"{place}, question {q}")


def from_record(record: Any, where: str = "the record") -> Conversation:
    """The conversation in one JSON object. Each of these forms may also have the keys skill, split and id:

    - {question, answer [, context]}; instead of `answer` it may have `answers`, a list of texts or of SQuAD's {text: …},
      whose duplicates are removed. With `is_impossible` the answer is `IDK`.
    - {instruction, output [, input]}, Alpaca's. A record without output, as 28 of Stanford's, is not `answered`.
    - {turns: [{role, text}, …] [, context, answers]}, our own, made by `to_record`.

    Raises UserError if something is missing, empty or not text; its message begins with `where`.
    """
    record = _object(record, where)
    labels = {key: whole_text(str(record[key])) for key in ("skill", "split", "id") if record.get(key)}
    if "turns" in record:
        return _from_turns(record, labels, where)
    if "instruction" in record:
        question, context = _text(record, "instruction", where), _text(record, "input", where, default="")
        answers = [text] if (text := _text(record, "output", where, default="").strip()) else []
    elif "question" in record:
        question, context = _text(record, "question", where), _text(record, "context", where, default="")
        answers = list(dict.fromkeys(text.strip() for text in _answers(record, where)))
    else:
        raise UserError(f"{where} has no question; it needs 'question' and 'answer', or 'instruction' and 'output'")
    turns = (Turn("user", question.strip()), *(Turn("assistant", text) for text in answers[:1]))
    return Conversation(turns, context.strip(), tuple(answers), **labels)


def _answers(record: dict[str, Any], where: str) -> list[str]:
    if record.get("is_impossible"):
        return [IDK]
    if "answers" not in record:
        return [_text(record, "answer", where)]
    found = [
        _text(answer if isinstance(answer, dict) else {"text": answer}, "text", f"{where}, answer {number}")
        for number, answer in enumerate(_list(record, "answers", where), 1)
    ]
    if not found:
        raise UserError(f"{where}: 'answers' is empty; give at least one, or set 'is_impossible'")
    return found


def _from_turns(record: dict[str, Any], labels: dict[str, str], where: str) -> Conversation:
    """The inverse of `to_record`: `from_record(to_record(conv)) == conv`."""
    turns = []
    for number, turn in enumerate(_list(record, "turns", where), 1):
        place = f"{where}, turn {number}"
        role: Role = get_args(Role)[(number - 1) % 2]
        if _object(turn, place).get("role") != role:
            raise UserError(f"{place}: 'role' must be {role!r}; the user begins, and they take turns")
        turns.append(Turn(role, _text(turn, "text", place)))
    if not turns or len(turns) % 2:
        raise UserError(f"{where}: 'turns' must end with an answer of the assistant; add it")
    answers = _answers(record, where) if "answers" in record else [turns[-1].text]
    return Conversation(tuple(turns), _text(record, "context", where, default=""), tuple(answers), **labels)


def to_record(conv: Conversation) -> dict[str, Any]:
    """A conversation as a dict, to be written as one line of JSON."""
    record: dict[str, Any] = {"turns": [{"role": turn.role, "text": turn.text} for turn in conv.turns]}
    labels = {key: getattr(conv, key) for key in ("context", "answers", "skill", "split", "id")}
    return record | {key: value for key, value in labels.items() if value}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object with named fields, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value as it appears in an error message, shortened."""
    return reprlib.repr(value)[:42]


def _list(record: Any, key: str, where: str) -> list[Any]:
    value = _object(record, where).get(key)
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list; {'give one' if value is None else 'correct it'}")
    return value


def _text(record: Any, key: str, where: str, default: str | None = None) -> str:
    """The text under `key`, or `default`, unless that is None, if it is missing or blank."""
    value = _object(record, where).get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text in quotes, not {_shown(value)}")
    if value is not None and value.strip():
        return whole_text(value)
    if default is None:
        raise UserError(f"{where}: {key!r} is {'missing' if value is None else 'empty'}; fill it in")
    return default
