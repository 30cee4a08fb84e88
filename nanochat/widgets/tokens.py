"""The tokenizer explorer: a text as colored tokens with their ids, and the merges that form a word.

The HTML can be read without colors too, as some viewers of saved notebooks remove them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from ..tokenizer import GPT2_FILES, Tokenizer, gpt2, steps
from . import fallback
from .markup import escape

# Light backgrounds for dark text, readable on light and dark pages
COLORS = ("#cfe3f5", "#fbe3c2", "#cdebdd", "#f6d5dd", "#e2dbf4", "#f3efb8")
INK = "#1b1b1b"
_SHOWN = 600  # the most tokens of a text that are shown
_WORD = 40  # the most characters of a word whose merges are shown
_SIGNS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def visible(piece: bytes) -> str:
    r"""A token's bytes as text with visible spaces; bytes that do not form a whole character are written as \xNN."""
    return piece.decode("utf-8", errors="backslashreplace").translate(_SIGNS)


def chip(piece: bytes, number: int, above: object = "") -> str:
    """A token as a colored box, with `above` in small print above it; `number` determines the color."""
    style = f"background:{COLORS[number % len(COLORS)]};color:{INK};padding:1px 3px;border-radius:3px"
    box = f'<code style="{style}">{escape(visible(piece))}</code>'
    return f"<ruby>{box}<rt>{escape(str(above))}</rt></ruby>" if above != "" else box


def counts(tok: Tokenizer, text: str) -> str:
    """The length of a text in characters, bytes and tokens, as a sentence."""
    n_bytes, n_tokens = len(text.encode("utf-8", "replace")), len(tok.encode(text))
    ratio = f", {n_bytes / n_tokens:.2f} bytes a token" if n_tokens else ""
    return (
        f"{tok.name} ({tok.vocab_size:,} ids): {len(text):,} characters, {n_bytes:,} bytes, {n_tokens:,} tokens{ratio}"
    )


def tokens_html(tok: Tokenizer, text: str) -> str:
    """The text as boxes, one for each token, with the ids above and visible spaces."""
    ids = tok.encode(text)
    boxes = [chip(tok.token_bytes(token), i, token) for i, token in enumerate(ids[:_SHOWN])]
    rest = f" … and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return f'<p><b>{escape(counts(tok, text))}</b></p><p style="line-height:2.6">{" ".join(boxes)}{rest}</p>'


def merges_html(tok: Tokenizer, word: str) -> str:
    """A table of the pieces of a word, from single bytes to tokens, one merge per row."""
    rows = []
    for number, pieces in enumerate(steps(tok, word[:_WORD])):
        boxes = " ".join(chip(piece, i) for i, piece in enumerate(pieces))
        rows.append(f'<tr><td>{number}</td><td style="text-align:left">{boxes}</td><td>{len(pieces)}</td></tr>')
    head = '<tr><th>merges</th><th style="text-align:left">pieces</th><th>how many</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def cached_gpt2() -> Tokenizer | None:
    """GPT-2's tokenizer if its two files are in tiktoken's cache, else None; nothing is downloaded."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    files = [cache / hashlib.sha1(url.encode()).hexdigest() for url in GPT2_FILES]
    return gpt2() if all(file.is_file() for file in files) else None


def tokenizers_html(toks: Sequence[Tokenizer], text: str) -> str:
    """A text as tokenized by several tokenizers, one below the other, with a note if GPT-2's is not among them."""
    parts = [tokens_html(tok, text) for tok in toks]
    if all(tok.name != "gpt2" for tok in toks):
        parts.append(
            "<p><i>GPT-2's vocabulary would stand here too, but its files are not on this machine. With a network, "
            "<code>nanochat.tokenizer.gpt2()</code> gets them once; then run this cell again.</i></p>"
        )
    return "".join(parts)


def explorer(toks: Sequence[Tokenizer], text: str, word: str) -> widgets.Widget:
    """A widget with a text to edit, shown as tokens of each tokenizer, and a word with its merges by the first one."""
    typed = widgets.Textarea(
        text, description="Text", layout={"width": "98%", "height": "5em"}, placeholder="Type anything."
    )
    cut = widgets.HTML()
    fallback.follow(lambda: tokenizers_html(toks, typed.value), cut, [typed])

    spelled = widgets.Text(word, description="Word", placeholder="Type a word.")
    merges = fallback.number(0, 0, 0, "Merges")
    pieces = widgets.HTML()

    def render() -> str:
        states = steps(toks[0], spelled.value[:_WORD])
        merges.max = len(states) - 1  # this also lowers a larger value
        boxes = " ".join(chip(piece, i) for i, piece in enumerate(states[merges.value]))
        return f"<p>{boxes}</p><p>{merges.value} of {merges.max} merges, {len(states[merges.value])} pieces</p>"

    fallback.follow(render, pieces, [spelled, merges])
    return widgets.VBox([typed, cut, widgets.HBox([spelled, merges], layout=fallback.WRAP), pieces])


def explore(toks: Sequence[Tokenizer], text: str, word: str) -> None:
    """Display the explorer; a saved notebook shows the text's tokens and a table of the word's merges in its place."""
    html = tokenizers_html(toks, text) + f"<p><b>{escape(word)}</b>, merge by merge:</p>" + merges_html(toks[0], word)
    fallback.show(explorer(toks, text, word), html, "; ".join(counts(tok, text) for tok in toks))
