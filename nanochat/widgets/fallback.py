"""Helpers for the explorers: a static HTML version for saved notebooks, and controls that screen readers can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipywidgets import BoundedFloatText, BoundedIntText, Widget

from .markup import escape

WRAP = {"flex_flow": "row wrap"}  # for a row of controls on a narrow page


def number(value: float, least: float, most: float, name: str, step: float = 1) -> BoundedIntText | BoundedFloatText:
    """A number field labeled `name`. Not a slider: in JupyterLab, screen readers find no name for sliders."""
    field = BoundedIntText if isinstance(value, int) else BoundedFloatText
    layout = {"width": "15em"}
    return field(
        value, min=least, max=most, step=step, description=name, layout=layout, style={"description_width": "8em"}
    )


def output(html: str, text: str) -> dict[str, Any]:
    """A notebook output that is shown as `html` if possible, or else as `text`.

    Notebooks typeset text between two dollar signs, even if escaped, as LaTeX, which would affect prices. The two classes
    (for MathJax 2 and for later versions) prevent that.
    """
    return {"text/html": f'<div class="tex2jax_ignore mathjax_ignore">{html}</div>', "text/plain": text}


def bundle(widget: Widget, html: str, text: str) -> dict[str, Any]:
    """A notebook output that is shown as the live widget if possible, or else as `html`, or else as `text`."""
    return {**widget._repr_mimebundle_(), **output(html, text)}


def show(widget: Widget, html: str, text: str) -> None:
    """Display the widget, with `html` and `text` as its static versions."""
    from IPython.display import display

    display(bundle(widget, html, text), raw=True)


def follow(render: Callable[[], str], out: Any, inputs: list[Any]) -> Callable[[], None]:
    """Set `out.value` to render() now and whenever one of `inputs` changes; returns the function that updates it.

    An exception is shown in place of the result, since Jupyter discards exceptions of widget callbacks silently.
    """

    def update(_change: object = None) -> None:
        try:
            out.value = render()
        except Exception as error:  # any exception: otherwise it would be lost
            out.value = error_html(error)

    for source in inputs:
        source.observe(update, names="value")
    update()
    return update


def error_html(error: Exception) -> str:
    """An error message as a line of HTML."""
    return f"<p><b>That did not work.</b> {escape(str(error) or type(error).__name__)}</p>"
