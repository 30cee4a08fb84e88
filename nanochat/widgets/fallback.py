"""What the explorers share: they leave HTML to read where no kernel runs, and their controls have names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipywidgets import BoundedFloatText, BoundedIntText, Widget

from .markup import escape

WRAP = {"flex_flow": "row wrap"}  # for a row of controls on a narrow page


def number(value: float, least: float, most: float, name: str, step: float = 1) -> BoundedIntText | BoundedFloatText:
    """A field for a number, with arrow keys. Not a slider: JupyterLab gives sliders no name for screen readers."""
    kind = BoundedIntText if isinstance(value, int) else BoundedFloatText
    layout = {"width": "15em"}
    return kind(
        value, min=least, max=most, step=step, description=name, layout=layout, style={"description_width": "8em"}
    )


def output(html: str, text: str) -> dict[str, Any]:
    """One output that notebooks show as `html` if they can, else as `text`.

    Notebooks typeset what stands between two dollar signs in HTML, however they are escaped: prices would become LaTeX.
    The two classes, of MathJax 2 and of those after it, keep it from looking inside.
    """
    return {"text/html": f'<div class="tex2jax_ignore mathjax_ignore">{html}</div>', "text/plain": text}


def bundle(widget: Widget, html: str, text: str) -> dict[str, Any]:
    """The widget as one output that notebooks show live if they can, else as `html`, else as `text`."""
    return {**widget._repr_mimebundle_(), **output(html, text)}


def show(widget: Widget, html: str, text: str) -> None:
    """Display the widget with what stands in for it."""
    from IPython.display import display

    display(bundle(widget, html, text), raw=True)


def follow(render: Callable[[], str], out: Any, inputs: list[Any]) -> Callable[[], None]:
    """Set `out.value` to render() now, and again whenever one of `inputs` changes or what is returned is called.

    An exception in a widget's callback is lost without a word: it is shown in place of the result.
    """

    def update(_change: object = None) -> None:
        try:
            out.value = render()
        except Exception as error:  # whatever it is, the person at the widget should see it
            out.value = error_html(error)

    for source in inputs:
        source.observe(update, names="value")
    update()
    return update


def error_html(error: Exception) -> str:
    """An error as one line of HTML."""
    return f"<p><b>That did not work.</b> {escape(str(error) or type(error).__name__)}</p>"
