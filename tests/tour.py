"""The pictures of the README's tour: which cells' outputs they show, and how one knows that they still do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "notebooks" / "images"
LARGEST = 150_000  # bytes of a picture

# The cell of each lesson whose output tells most at a glance
CELLS = {
    "01_data_loading": "the-tokenizer-explorer-code-1",
    "02_building_the_gpt": "the-mask-code-2",
    "03_pretraining": "reading-the-curves-code-1",
    "04_qa_finetuning": "the-report-card-code-2",
    "05_playground": "temperature-code-1",
}


def shown(lesson: str) -> NotebookNode:
    """The committed notebook, of whose cells only the one in the picture is left."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id == CELLS[lesson]]
    assert len(notebook.cells) == 1, f"{lesson} has no cell {CELLS[lesson]} any more"
    return notebook


def fingerprint(notebook: NotebookNode) -> str:
    """Of the outputs; a picture carries it, so that an outdated one is found out."""
    outputs = [cell.outputs for cell in notebook.cells]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16]
