"""Settings for all tests: one thread, no windows, the same hypothesis examples each time, and a temporary project folder."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

# Before anything imports torch; kernels that tests start inherit it. One thread because `make test` has two
# workers on two cores, and because sums over another number of threads end in other last digits.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import matplotlib
import pytest
from hypothesis import settings

from nanochat import paths

# Not through MPLBACKEND: kernels would inherit it, and notebooks would then show no figures.
matplotlib.use("Agg")

_boxes = itertools.count()
settings.register_profile("nanochat", derandomize=True, deadline=None)
settings.load_profile("nanochat")


@pytest.fixture
def nanochat_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, in which the test's data/ and out/ are created."""
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def empty_box(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the bundled model, so that the only models are those a test creates."""
    folder = tmp_path_factory.getbasetemp() / f"box-{next(_boxes)}" / paths.BOX
    monkeypatch.setattr(paths, "box_dir", lambda: folder)


# A job in the background of a shell script is born with Ctrl-C ignored, and so are all the processes that it starts: tests
# that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
