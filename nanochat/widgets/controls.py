"""Small helpers for building the playground, and the interface through which its parts use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import ipywidgets as w

from ..chat.feedback import Opinion
from ..chat.session import ChatSession


class App(Protocol):
    """The interface of the playground that its parts use."""

    session: ChatSession

    def guard(self, action: Callable[[], object]) -> None:
        """Run the action of a click, and show any error."""

    def say(self, sentence: str, error: bool = False) -> None:
        """Show a sentence below the chat."""

    def opinions(self, run: str) -> dict[str, Opinion]:
        """The current feedback on the answers of a run, by answer id."""


def button(
    name: str, click: Callable[[], object], guard: Callable[[Callable[[], object]], None], tooltip: str = ""
) -> w.Button:
    """A button labeled `name`, which screen readers read as well; `guard` runs `click` and shows its errors."""
    made = w.Button(description=name, tooltip=tooltip or name, layout=w.Layout(width="auto"))
    made.on_click(lambda _: guard(click))
    return made


def show(widget: w.DOMWidget, visible: bool) -> None:
    """Show or hide a widget, keeping its place in the tree."""
    widget.layout.display = None if visible else "none"


def toggle(widget: w.DOMWidget) -> bool:
    """Show a hidden widget or hide a visible one; returns whether it is now visible."""
    opening = widget.layout.display == "none"
    show(widget, opening)
    return opening


def row(*children: w.Widget) -> w.HBox:
    """Widgets side by side, wrapped on narrow pages."""
    return w.HBox(children, layout=w.Layout(flex_flow="row wrap", align_items="center"))
