"""The committed form of the notebooks: executed once in a reference run, then normalized.

Normalized means: readable cell ids derived from the headings, kernelspec `python3`, no widget state, no timestamps, no
papermill metadata, no paths of this machine, and execution counts 1…n.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from .. import files, paths

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def _slug(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:40].strip("-") or "cell"


def _ids(cells: list[NotebookNode]) -> list[str]:
    """An id for each cell: the heading above it, "text" or "code", and a number within these two."""
    heading, ids = "start", []
    counts: dict[tuple[str, str], int] = {}
    for cell in cells:
        code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)  # comments in code blocks are not headings
        headings = re.findall(r"^#{1,4} +(.+)$", code.sub("", cell.source), re.MULTILINE)
        if cell.cell_type == "markdown" and headings:
            heading = _slug(headings[0])
        label = {"markdown": "text"}.get(cell.cell_type, cell.cell_type)
        counts[heading, label] = counts.get((heading, label), 0) + 1
        ids.append(f"{heading}-{label}-{counts[heading, label]}")
    return ids


def _machine_paths() -> list[tuple[re.Pattern[str], str]]:
    """Patterns of this machine's folders with their replacements, longer paths first."""
    folders = {str(paths.home()): "nanochat", sys.prefix: "python", sys.base_prefix: "python", str(Path.home()): "~"}
    named = [
        (re.compile(rf"(?<![\w.]){re.escape(folder)}(?![\w-]|\.\w)"), name)
        for folder, name in sorted(folders.items(), key=lambda item: -len(item[0]))
        if Path(folder) != Path(Path(folder).anchor)  # a home may be the root folder
    ]
    return [(re.compile(r"[^\s\"']*ipykernel_\d+[/\\]\d+\.py"), "cell.py"), *named]


def _clean_text(value: Any) -> Any:
    """`value` with this machine's folders replaced in all its strings, at any depth; images are left alone."""
    if isinstance(value, str):
        before = None
        while value != before:  # a replacement may leave another such folder
            before = value
            for folder, name in _machine_paths():
                value = folder.sub(name, value)
        return value
    if isinstance(value, list):
        return [_clean_text(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key.startswith("image/p") else _clean_text(item) for key, item in value.items()}
    return value


def normalize(notebook: NotebookNode) -> NotebookNode:
    """The normalized notebook, as it is committed; the argument is not changed."""
    result = nbformat.v4.new_notebook(metadata={"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    result.nbformat_minor = 5
    kept = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    counter = 0
    for cell, name in zip(kept, _ids(kept), strict=True):
        tags = cell.metadata.get("tags")
        fresh = NotebookNode(
            id=name, cell_type=cell.cell_type, metadata={"tags": list(tags)} if tags else {}, source=cell.source
        )
        if cell.cell_type == "code":
            fresh.outputs, fresh.execution_count = [], None
            if cell.source.strip():
                counter += 1
                fresh.execution_count = counter
                fresh.outputs = _outputs(cell, counter)
        result.cells.append(nbformat.from_dict(fresh))
    nbformat.validate(result)
    return result


def _outputs(cell: NotebookNode, count: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    for output in cell.get("outputs", ()):
        clean = _clean_text(dict(output))
        if "data" in clean:
            # A widget view without its state shows nothing, and some viewers refuse the file: keep its other forms, and
            # drop the output if the only other form is its Python repr.
            data = {mime: value for mime, value in clean["data"].items() if "widget" not in mime}
            if len(data) < len(clean["data"]) and data.keys() <= {"text/plain"}:
                continue
            metadata = {mime: value for mime, value in clean.get("metadata", {}).items() if mime in data}
            clean |= {"data": data, "metadata": metadata}
        if clean["output_type"] == "execute_result":
            clean["execution_count"] = count
        if outputs and clean["output_type"] == "stream" and clean["name"] == outputs[-1].get("name"):
            outputs[-1]["text"] += clean["text"]  # where a stream is split depends on timing
            continue
        outputs.append(clean)
    return outputs


def commit(executed: Path, committed: Path) -> None:
    """Overwrite the committed notebook with the normalized form of an executed one."""
    notebook = nbformat.read(executed, as_version=4)
    with files.atomic_write(committed, "w") as file:
        file.write(nbformat.writes(normalize(notebook)) + "\n")
