"""A comparison of the answers of several models to the same questions, to see what a training stage has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets as widgets

from .. import loading
from ..checkpoint import Checkpoint
from ..data import questions
from ..data.conversation import Conversation
from . import fallback

Models = Mapping[str, Checkpoint]  # name → model


def answers(models: Models, conversations: Sequence[Conversation], max_new_tokens: int = 48) -> dict[str, list[str]]:
    """Each model's answers, generated greedily, to the last question of each conversation."""
    asked = list(conversations)
    return {name: loading.answer(loaded, asked, max_new_tokens=max_new_tokens) for name, loaded in models.items()}


def answers_html(conversations: Sequence[Conversation], said: Mapping[str, Sequence[str]]) -> str:
    """An HTML table with a row for each conversation: passage and question, accepted answers if known, models' answers."""
    known = any(conv.answers for conv in conversations)
    head = ["question", *(["accepted"] if known else []), *said]
    rows = []
    for i, conv in enumerate(conversations):
        passage = f"<i>{escape(conv.context)}</i><br>" if conv.context else ""
        cells = [passage + escape(conv.question), *([escape(" / ".join(conv.answers))] if known else [])]
        cells += [escape(column[i]) for column in said.values()]
        rows.append("".join(f'<td style="text-align:left;vertical-align:top">{cell}</td>' for cell in cells))
    top = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def explorer(models: Models, question: str, passage: str = "") -> widgets.Widget:
    """A widget with a question and an optional passage to edit, and the answer of each model."""
    late = {"continuous_update": False, "layout": {"width": "98%"}}  # models answer only when typing is finished
    asked = widgets.Text(question, description="Question", placeholder="Ask something.", **late)
    read = widgets.Textarea(passage, description="Passage", placeholder="A text to read, if you like.", **late)
    out = widgets.HTML()

    def render() -> str:
        conversation = questions.ask(asked.value, read.value.strip())
        return answers_html([conversation], answers(models, [conversation]))

    fallback.follow(render, out, [asked, read])
    return widgets.VBox([asked, read, out])


def compare(models: Models, conversations: Sequence[Conversation]) -> dict[str, list[str]]:
    """Display the explorer, with the first conversation, and a table of the answers to all; returns these answers.

    A saved notebook shows only the table.
    """
    said = answers(models, conversations)
    table = answers_html(conversations, said)
    live = widgets.VBox([explorer(models, conversations[0].question, conversations[0].context), widgets.HTML(table)])
    fallback.show(live, table, f"{len(conversations)} questions, answered by {' and '.join(models)}.")
    return said
