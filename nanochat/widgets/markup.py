"""HTML for widgets. All text of users and models is escaped, since widgets would run scripts in it.

Colors are JupyterLab's variables, which follow light and dark themes, with defaults for pages that do not have them.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

FULL_BITS = 6.0  # bits of surprise at which a token has its full color

STYLE = """<style>
.nc { --nc-ink: var(--jp-ui-font-color1, #222); --nc-dim: var(--jp-ui-font-color2, #666);
  --nc-paper: var(--jp-layout-color1, #fff); --nc-soft: var(--jp-layout-color2, #eee);
  --nc-line: var(--jp-border-color2, #ccc); --nc-accent: var(--jp-brand-color1, #1976d2);
  color: var(--nc-ink); max-width: 66em; }
.nc .widget-html-content { line-height: 1.45; height: auto; }
.nc .widget-html { height: auto; }
.nc .widget-inline-hbox .widget-label { width: auto; min-width: 4.5em; text-align: start; }
.nc-log { border: 1px solid var(--nc-line); border-radius: 6px; background: var(--nc-paper); padding: 8px;
  margin-bottom: 6px; }
/* otherwise boxes would shrink, and hide their content, instead of making the log scroll */
.nc-log .widget-box { flex-shrink: 0; overflow: visible; }
.nc-log .widget-hbox { column-gap: 8px; }
.nc-settings { max-width: 34em; }
.nc-settings > * { width: auto; }
.nc-answer { margin-bottom: 10px; min-width: 0; }
.nc-bubble { display: inline-block; max-width: 100%; box-sizing: border-box; padding: 7px 12px; border-radius: 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; text-align: start; color: var(--nc-ink);
  font-size: var(--jp-content-font-size1, 14px); }
.nc-user { text-align: end; padding-inline-start: 12%; }
.nc-user .nc-bubble { border-end-end-radius: 3px;
  background: color-mix(in srgb, var(--nc-accent) 18%, var(--nc-paper)); }
.nc-bot .nc-bubble { background: var(--nc-soft); border-end-start-radius: 3px; }
.nc-bot.nc-chosen .nc-bubble { outline: 2px solid var(--nc-accent); outline-offset: -2px; }
.nc-writing .nc-bubble::after { content: "▍"; color: var(--nc-accent); }
.nc-dim { color: var(--nc-dim); font-size: 0.9em; }
.nc-error { color: var(--jp-error-color1, #c62828); }
.nc-passage { border-inline-start: 3px solid var(--nc-line); padding-inline-start: 8px; margin-bottom: 6px;
  color: var(--nc-dim); white-space: pre-wrap; overflow-wrap: anywhere; max-height: 6em; overflow: auto; }
.nc-meter { display: inline-block; width: 8em; height: 0.6em; border-radius: 3px; overflow: hidden;
  background: var(--nc-soft); border: 1px solid var(--nc-line); }
.nc-meter > span { display: block; height: 100%; background: var(--nc-accent); }
.nc-tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; }
.nc-tokens span { padding: 3px 0; border-inline-end: 1px solid var(--nc-line); unicode-bidi: isolate; }
.nc-tokens .nc-here { outline: 2px solid var(--nc-accent); }
.nc-table { border-collapse: collapse; }
.nc-table th, .nc-table td { border-bottom: 1px solid var(--nc-line); padding: 3px 8px; text-align: start;
  vertical-align: top; overflow-wrap: break-word; white-space: pre-wrap; max-width: 22em; }
.nc-table th { white-space: nowrap; }
.nc-scroll { overflow: auto; max-height: 320px; }
</style>"""


def escape(text: str) -> str:
    """`text` escaped for HTML; control characters become U+FFFD."""
    shown = (c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)
    return html.escape("".join(shown), quote=True)


def bubble(who: str, text: str, *, writing: bool = False, chosen: bool = False, label: str = "") -> str:
    """A speech bubble of `who` ("user" or "bot"); `label` is its name for screen readers."""
    classes = f"nc-{who}" + " nc-writing" * writing + " nc-chosen" * chosen
    label = label or {"user": "You", "bot": "Model"}[who]
    body = escape(text) or ("" if writing else '<span class="nc-dim">(nothing)</span>')
    return (
        f'<div class="{classes}" role="article" aria-label="{escape(label)}">'
        f'<div class="nc-bubble" dir="auto">{body}</div></div>'
    )


def dim(text: str) -> str:
    """A line of text in a muted color."""
    return f'<span class="nc-dim">{escape(text)}</span>'


def meter(used: float, limit: float, text: str) -> str:
    """A bar filled to used / limit, followed by `text`."""
    share = min(100.0, 100 * used / max(limit, 1e-9))
    return f'<span class="nc-meter" aria-hidden="true"><span style="width: {share:.0f}%"></span></span> {dim(text)}'


def heat(strength: float) -> str:
    """A CSS background from transparent (0) to orange (1), readable in light and dark themes."""
    return f"background: rgba(255, 140, 0, {0.75 * min(1.0, max(0.0, strength)):.2f})"


def tokens(texts: Iterable[str], strengths: Sequence[float], titles: Sequence[str], here: int | None = None) -> str:
    """A text as colored tokens, each with a tooltip of `titles`; the one at index `here` is outlined."""
    spans = "".join(
        f'<span style="{heat(strength)}" title="{escape(title)}"{" class=nc-here" * (i == here)}>{escape(text)}</span>'
        for i, (text, strength, title) in enumerate(zip(texts, strengths, titles, strict=True))
    )
    return f'<div class="nc-tokens" dir="auto">{spans}</div>'


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A table of bars, one for each (name, share from 0 to 1, text)."""
    lines = (
        f'<tr><td>{escape(name)}</td><td style="width: 9em">{meter(share, 1.0, "")}</td><td>{escape(text)}</td></tr>'
        for name, share, text in rows
    )
    return f'<table class="nc-table">{"".join(lines)}</table>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with escaped cells."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td dir="auto">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    rows_ = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="nc-scroll"><table class="nc-table">{rows_}</table></div>'
