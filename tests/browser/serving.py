"""Helpers for the browser tests: the browser, and servers to visit."""

from __future__ import annotations

import shutil
import socket
import urllib.error
import urllib.request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NO_CHROMIUM = "no chromium on this machine: install one to run the browser tests"
WAIT = 120_000  # milliseconds: a busy machine takes its time to start a kernel

# The tiny model answers faster than anybody can press Stop: it is made as slow as one of some hundred million weights.
SLOW = """
import time
from nanochat.chat import reply

quick = reply.stream

def slow(*args, **kwargs):
    for token in quick(*args, **kwargs):
        time.sleep(0.1)
        yield token

reply.stream = slow
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    """Whether the server answers yet."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.URLError:
        return False
