"""The committed notebooks: executed once in a reference run, then made the same for everybody.

Normalised: readable cell ids that follow the headings, kernelspec `python3`, no widget state, no times, no papermill
traces, no machine paths, execution counts 1…n.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from . import paths

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def _slug(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:40].strip("-") or "cell"


def _ids(cells: list[NotebookNode]) -> list[str]:
    """An id for each cell: the heading it stands under, its kind, and a number within that."""
    heading, counts, ids = "start", {}, []
    for cell in cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#{1,4} +(.+)$", cell.source, re.MULTILINE)):
            heading = _slug(found[1])
        kind = {"markdown": "text"}.get(cell.cell_type, cell.cell_type)
        counts[heading, kind] = counts.get((heading, kind), 0) + 1
        ids.append(f"{heading}-{kind}-{counts[heading, kind]}")
    return ids


def _clean_text(value: Any) -> Any:
    """Strings without this machine's folders, however deep they lie."""
    if isinstance(value, str):
        return value.replace(str(paths.home()), "nanochat").replace(str(Path.home()), "~")
    if isinstance(value, list):
        return [_clean_text(item) for item in value]
    if isinstance(value, dict):
        return {key: _clean_text(item) for key, item in value.items()}
    return value


def normalise(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed; the argument is left alone."""
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
                fresh.outputs = [_output(output, counter) for output in cell.get("outputs", ()) if _wanted(output)]
        result.cells.append(nbformat.from_dict(fresh))
    nbformat.validate(result)
    return result


def _wanted(output: NotebookNode) -> bool:
    """Not the warning about transport that newer kernels print at each start."""
    return not (output.output_type == "stream" and "without encryption" in output.get("text", ""))


def _output(output: NotebookNode, count: int) -> dict[str, Any]:
    clean = _clean_text(dict(output))
    # a widget's view without its state shows nothing (and some viewers refuse the file): its static text stays
    if "data" in clean:
        clean["data"] = {kind: value for kind, value in clean["data"].items() if "widget" not in kind}
        clean["metadata"] = {}
    if output.output_type == "execute_result":
        clean["execution_count"] = count
    return clean


def commit(executed: Path, committed: Path) -> None:
    """Write the normalised form of an executed notebook over the committed one."""
    notebook = nbformat.read(executed, as_version=4)
    with paths.atomic_write(committed, "w") as file:
        file.write(nbformat.writes(normalise(notebook)) + "\n")
