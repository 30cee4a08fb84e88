"""Holding Ctrl-C and SIGTERM back while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals_wait(save: Callable[[], None]) -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block has ended, then save and let them act: no half-made update is saved.

    A second signal acts at once. Outside the main thread, where Python takes no signals, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def note(number: int, frame: Any) -> None:
        waiting.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not None}  # None: not set by Python
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
    if waiting:
        save()
        signal.raise_signal(waiting[0])
