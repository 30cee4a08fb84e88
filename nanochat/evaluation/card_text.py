"""Report cards as markdown: one as a page, several side by side."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

SPLITS = {
    "wording": "what was trained, in new words",
    "fact": "facts that the model read but was never asked about",
    "passage": "new passages to read",
    "smalltalk": "small talk and instructions in new words",
    "val": "more of the training kind, not trained on",
}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


# JupyterLab looks for LaTeX in the rendered markdown, where it finds $ and \( even if they were escaped by a backslash,
# but not if each is an element of its own.
_MARKUP = str.maketrans(
    {
        "|": "\\|", "`": "\\`", "*": "\\*", "&": "&amp;", "<": "&lt;",
        "$": "<span>&#36;</span>", "\\": "<span>&#92;</span>",
    }
)  # fmt: skip
_ESCAPED = {escape: chr(code) for code, escape in _MARKUP.items()}


def _cell(text: object) -> str:
    """Text escaped for one cell of a markdown table: it cannot leave the cell, and renders unchanged."""
    return " ".join(str(text).split()).translate(_MARKUP)


def plain(markdown: str) -> str:
    """Output of `format_card` or `compare_cards` for a terminal, which renders no markdown: the escapes undone."""
    return re.sub("|".join(map(re.escape, _ESCAPED)), lambda found: _ESCAPED[found[0]], markdown)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; columns whose name ends in ":" are right-aligned."""
    rule = ["---:" if name.endswith(":") else "---" for name in head]
    lines = [[name.removesuffix(":") for name in head], rule, *[[_cell(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_card(card: dict[str, Any]) -> str:
    """A report card as markdown."""
    model = card["model"]
    about = (
        f"Model {model['name']}: {model['parameters']:,} parameters, {model['n_layer']} layers of {model['n_embd']}",
        f"context {model['block_size']}, tokenizer {model['tokenizer']} ({model['vocab_size']:,} tokens)",
        f"best at step {model['step']}.",
    )
    parts = [
        f"**{card['run']}, {card['stage']}.** {', '.join(about)}",
        *(f"> {note}" for note in card["notes"]),
    ]
    rows: list[tuple[object, ...]]
    if card["bits_per_byte"]:
        rows = [(name, f"{bits:.3f}") for name, bits in card["bits_per_byte"].items()]
        parts += [f"### Predicting text of {card['corpus']['name']}", _table(("", "bits per byte:"), rows)]
    if card["scores"]:
        splits = dict.fromkeys(row["split"] for row in card["scores"])
        parts += [
            f"### Answering held-out questions of {card['questions']['name']}",
            _scores(card["scores"]),
            " ".join(f"{split}: {SPLITS[split]}." for split in splits if split in SPLITS),
            f"always: the most common training answer, {_cell(repr(card['majority_answer']))}. nearest: the answer of the "
            "training question with the most similar words. interval: 95 % (Wilson 1927). ended: by itself.",
        ]
    parts += ["### Writing", _writing(card["writing"])]
    right = sum(item["right"] for item in card["five_questions"])
    rows = [(item["question"], item["answer"], "yes" if item["right"] else "no") for item in card["five_questions"]]
    parts += [f"### Five questions: {right} right", _table(("question", "answer", "right"), rows)]
    for name, items in card["samples"].items():
        if items:
            rows = [(item["split"], _asked(item), item["prediction"], item["answers"][0]) for item in items]
            parts += [f"### Some {name} answers", _table(("split", "question", "answer", "accepted"), rows)]
    return "\n\n".join(parts) + "\n"


def _writing(texts: dict[str, Any]) -> str:
    return (
        f"{texts['n']} texts ({texts['asked']}) of {texts['words']:.0f} words on average; "
        f"{_percent(texts['stop_rate'])} ended by themselves; {_percent(texts['repetition'])} of their 4-word runs are "
        f"repeated. The longest run that stands in the training text has {texts['overlap_median']:.0f} words in the "
        f"typical text, {texts['overlap_longest']} at most, and is {_percent(texts['copied'])} of a text. One of them:"
        f"\n\n> {_cell(texts['sample'])}"
    )


def _scores(rows: Sequence[dict[str, Any]]) -> str:
    per_split = Counter(row["split"] for row in rows)
    # the row "all" of a split with a single skill would repeat that skill's row
    rows = [row for row in rows if row["skill"] != "all" or per_split[row["split"]] > 2]
    head = ("split", "skill", "n:", "exact match:", "interval:", "F1:", "ended:", "refused rightly:", "wrongly:")
    return _table(
        (*head, "always:", "nearest:"),
        [
            (
                row["split"],
                row["skill"],
                row["n"],
                _percent(row["em"]),
                "–" if row["em"] is None else f"{100 * row['em_low']:.1f}–{100 * row['em_high']:.1f} %",
                _percent(row["f1"]),
                _percent(row["stop_rate"]),
                _percent(row["refusal_rate"]),
                _percent(row["false_refusal_rate"]),
                _percent(row["majority_em"]),
                _percent(row["nearest_em"]),
            )
            for row in rows
        ],
    )


def _asked(item: dict[str, Any]) -> str:
    passage = item["context"]
    return f"({passage[:200]}{'…' if len(passage) > 200 else ''}) {item['question']}" if passage else item["question"]


def compare_cards(columns: dict[str, Sequence[dict[str, Any]]]) -> str:
    """A markdown table of exact match and bits per byte of several models, with a column for each name.

    A column with the cards of several seeds shows their mean with the lowest and the highest value.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, cards in columns.items():
        for card in cards:
            bits = card["bits_per_byte"]
            found = [("all text", "bits per byte", bits["model"])] if bits else []
            found += [(row["split"], row["skill"], row["em"]) for row in card["scores"] if row["em"] is not None]
            for split, skill, value in found:
                values.setdefault((split, skill), {}).setdefault(name, []).append(value)
    rows = [
        (*key, *(_spread(by_name.get(name, []), key[1] == "bits per byte") for name in columns))
        for key, by_name in values.items()
    ]
    return _table(("split", "skill", *(f"{_cell(name)}:" for name in columns)), rows)


def _spread(values: Sequence[float], bits: bool) -> str:
    if not values:
        return "–"
    show = (lambda value: f"{value:.3f}") if bits else _percent
    mean = show(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({show(min(values))} to {show(max(values))})"
