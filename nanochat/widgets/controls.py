"""Buttons and rows, and what the parts of the playground need of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import ipywidgets as w

from ..chat.feedback import Opinion
from ..chat.session import ChatSession


class App(Protocol):
    """The playground as its parts see it."""

    session: ChatSession

    def guard(self, action: Callable[[], object]) -> None:
        """Do what a click asks for, and show what goes wrong."""

    def say(self, sentence: str, error: bool = False) -> None:
        """Show one sentence under the chat."""

    def opinions(self, run: str) -> dict[str, Opinion]:
        """What a person thinks of the answers of a run, by the ids of the answers."""


def button(
    name: str, click: Callable[[], object], guard: Callable[[Callable[[], object]], None], tooltip: str = ""
) -> w.Button:
    """A button with words on it: what stands on it is also its name for a screen reader."""
    made = w.Button(description=name, tooltip=tooltip or name, layout=w.Layout(width="auto"))
    made.on_click(lambda _: guard(click))
    return made


def show(widget: w.DOMWidget, visible: bool) -> None:
    """Show or hide a widget, keeping its place in the tree."""
    widget.layout.display = None if visible else "none"


def toggle(widget: w.DOMWidget) -> bool:
    """Show what is hidden, or hide what is shown; returns whether it is shown now."""
    opening = widget.layout.display == "none"
    show(widget, opening)
    return opening


def row(*children: w.Widget) -> w.HBox:
    """Things side by side, wrapping where it is narrow."""
    return w.HBox(children, layout=w.Layout(flex_flow="row wrap", align_items="center"))
