"""The status line of a terminal: each text replaces the one before. In a log file nothing is shown."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

_ERASE = "\r\x1b[2K"


def show(text: str, stream: TextIO | None = None, end: str = "") -> None:
    """Replace the status line on `stream` (default: stderr) by `text`; `end="\\n"` leaves it standing."""
    stream = stream or sys.stderr
    if stream.isatty():
        # no longer than the terminal is wide: of a wrapped line, only the last row could be erased
        print(_ERASE + text[: shutil.get_terminal_size().columns - 1], end=end, file=stream, flush=True)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a line that stays, on a terminal in place of the status line."""
    stream = stream or sys.stderr
    print((_ERASE if stream.isatty() else "") + text, file=stream, flush=True)


def show_share(done: int, total: int | None, text: str) -> None:
    """The `progress` callback of a preparation or an evaluation: show the share done, or MB if the total is unknown."""
    share = f"{done / total:4.0%} " if total else f"{done / 1e6:,.0f} MB "
    show(share + text, end="" if total is None or done < total else "\n")
