"""The pictures of the notebooks in the README: the cells whose outputs they show, and a check that they are current."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "notebooks" / "images"
LARGEST = 150_000  # bytes of a picture

# The cell of each notebook whose output says most at a glance
CELLS = {
    "01_data_loading": "the-tokenizer-explorer-code-1",
    "02_building_the_gpt": "the-mask-code-2",
    "03_pretraining": "reading-the-curves-code-1",
    "04_qa_finetuning": "the-report-card-code-2",
    "05_playground": "temperature-code-1",
}


def shown(lesson: str) -> NotebookNode:
    """The committed notebook reduced to the cell shown in the picture."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id == CELLS[lesson]]
    assert len(notebook.cells) == 1, f"{lesson} has no cell {CELLS[lesson]} any more"
    return notebook


def fingerprint(notebook: NotebookNode) -> str:
    """A fingerprint of the outputs, stored in the picture so that an outdated one is detected."""
    outputs = [cell.outputs for cell in notebook.cells]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16]
