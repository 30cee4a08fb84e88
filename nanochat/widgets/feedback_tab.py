"""The feedback of a run: counts, a table with filters, and the export for preference learning."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ipywidgets as w

from .. import files, paths
from ..chat import feedback
from ..chat.feedback import Opinion
from . import markup
from .controls import App, button, row

FILTERS: dict[str, Callable[[Opinion], bool]] = {
    "Everything": lambda opinion: True,
    "Helpful": lambda opinion: opinion.good is True,
    "Not helpful": lambda opinion: opinion.good is False,
    "Chosen of two": lambda opinion: opinion.choice is not None,
    "With a better answer": lambda opinion: bool(opinion.correction),
    "With a comment": lambda opinion: bool(opinion.comment),
}
_SHOWN = 200  # the most rows of the table
_LINKED = 1 << 20  # bytes: smaller exports are also offered as a download link


def verdict(opinion: Opinion) -> str:
    """The judgment of an answer in a word or two."""
    if opinion.choice is not None:
        return f"{'AB'[opinion.choice]} is better"
    if opinion.thumb is not None:
        return "helpful" if opinion.thumb > 0 else "not helpful"
    return f"{opinion.rating} of 5" if opinion.rating is not None else "–"


def summary(opinions: list[Opinion]) -> str:
    """The counts of the feedback, as bars and a sentence."""
    if not opinions:
        return markup.dim("No feedback yet: press Helpful or Not helpful under an answer.")
    counts = Counter(verdict(opinion) for opinion in opinions)
    counts["with a better answer"] = sum(bool(opinion.correction) for opinion in opinions)
    counts["with a comment"] = sum(bool(opinion.comment) for opinion in opinions)
    rows = [(name, n / len(opinions), str(n)) for name, n in counts.items() if n and name != "–"]
    judged = [opinion.good for opinion in opinions if opinion.good is not None]
    text = f"{len(opinions)} answer{'s' * (len(opinions) != 1)} with feedback"
    if judged:
        text += f"; {sum(judged)} of {len(judged)} judged ones were liked"
    return markup.bars(rows) + markup.dim(f"{text}.")


def in_words(opinion: Opinion) -> str:
    """All feedback on an answer as lines of text."""
    lines = [verdict(opinion), opinion.comment, opinion.correction and f"Better: {opinion.correction}"]
    return "\n".join(line for line in lines if line and line != "–")


def as_table(opinions: list[Opinion]) -> str:
    """The feedback as a table, newest first."""
    rows = []
    for opinion in reversed(opinions[-_SHOWN:]):
        record = opinion.record
        answers = [answer or "(nothing)" for answer in record.responses]
        named = [f"{name}: {answer}" for name, answer in zip("AB", answers, strict=False)]
        when = record.time[:16].replace("T", " ")
        texts = (record.conversation.question, "\n".join(named) if len(answers) > 1 else answers[0], in_words(opinion))
        rows.append((f"{when}\n{record.stage}", *texts))
    return markup.table(("When (UTC)", "Question", "Answer", "Feedback"), rows)


class OpinionsView:
    """The feedback tab of the playground."""

    def __init__(self, app: App):
        self.app = app
        self.which = w.Dropdown(options=list(FILTERS), description="Show", layout=w.Layout(width="min(100%, 20em)"))
        self.stage = w.Dropdown(
            options=["all stages", *paths.STAGES], description="Stage", layout=w.Layout(width="min(100%, 20em)")
        )
        for menu in (self.which, self.stage):
            menu.observe(lambda change: app.guard(self.refresh), names="value")
        self.counts, self.rows, self.note = w.HTML(), w.HTML(), w.HTML()
        self.again = button("Refresh", self.refresh, app.guard, "Read the feedback file again")
        self.export = button(
            "Export preferences", self.write, app.guard, "Pairs of a better and a worse answer, as JSON lines"
        )
        self.box = w.VBox(
            [self.counts, row(self.which, self.stage, self.again), self.rows, row(self.export), self.note]
        )

    def refresh(self) -> None:
        """Show the current content of the feedback file."""
        notes: list[str] = []
        store = self.app.session.store()
        if problem := store.retry():
            notes.append(problem)
        opinions = feedback.current(store.records(notes.append))
        chosen = [
            opinion
            for opinion in opinions
            if FILTERS[self.which.value](opinion) and self.stage.value in ("all stages", opinion.record.stage)
        ]
        self.counts.value = summary(opinions)
        self.rows.value = as_table(chosen) if chosen else ""
        notes.append(f"Saved in {_short(store.path)}, one line for each click; lines are only ever added.")
        self.note.value = "<br>".join(map(markup.dim, notes))

    def write(self) -> None:
        """Write out/<run>/preferences.jsonl, and offer it as a download."""
        store = self.app.session.store()
        pairs = list(feedback.export_preferences(store.records(self.app.say)))
        if not pairs:
            self.note.value = markup.dim(
                "There are no pairs yet. Compare two answers and choose, write a better answer, or like one answer and "
                "dislike another to the same question."
            )
            return
        lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
        path = paths.run_dir(self.app.session.run) / "preferences.jsonl"
        with files.atomic_write(path, "w") as file:
            file.write(lines)
        link = ""
        if len(lines) <= _LINKED:
            data = base64.b64encode(lines.encode()).decode()
            link = f' <a download="{path.name}" href="data:application/jsonl;base64,{data}">Download</a>'
        text = f"{len(pairs)} pair{'s' * (len(pairs) != 1)} of prompt, chosen and rejected written to {_short(path)}."
        self.note.value = markup.dim(text) + link


def _short(path: Path) -> str:
    home = paths.home()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
