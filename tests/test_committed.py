"""The committed form of notebooks does not depend on the machine they ran on."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nanochat import paths
from nanochat.course import committed as committed_notebooks

HOME = str(Path.home())


def notebook(*cells, **metadata):
    return new_notebook(cells=list(cells), metadata=metadata)


def code(source: str = "1", *outputs, tags: tuple[str, ...] = (), count: int | None = 7):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)})


def printed(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


def shown(data: dict, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_follow_the_headings():
    result = committed_notebooks.normalize(
        notebook(
            new_markdown_cell("# 02 · Building the GPT\nHello."), code(), code(), new_markdown_cell("More."),
            new_markdown_cell("## Attention, by hand"), code(), new_markdown_cell("text"), code(),
        )
    )  # fmt: skip
    assert [cell.id for cell in result.cells] == [
        "02-building-the-gpt-text-1", "02-building-the-gpt-code-1", "02-building-the-gpt-code-2",
        "02-building-the-gpt-text-2", "attention-by-hand-text-1", "attention-by-hand-code-1",
        "attention-by-hand-text-2", "attention-by-hand-code-2",
    ]  # fmt: skip


def test_a_new_cell_under_one_heading_leaves_the_ids_under_others():
    parts = [new_markdown_cell("# A"), code(), new_markdown_cell("# B"), code(), code()]
    before = [cell.id for cell in committed_notebooks.normalize(notebook(*parts)).cells]
    after = [cell.id for cell in committed_notebooks.normalize(notebook(*parts[:2], code("new"), *parts[2:])).cells]
    assert after[:2] + after[3:] == before


def test_a_comment_in_a_code_block_is_no_heading():
    solution = "<details><summary>Solution</summary>\n\n```python\n# the mean\nx = 1\n```\n\n</details>"
    result = committed_notebooks.normalize(notebook(new_markdown_cell("# Title"), new_markdown_cell(solution), code()))
    assert [cell.id for cell in result.cells] == ["title-text-1", "title-text-2", "title-code-1"]


def test_two_headings_of_one_name_and_headings_without_letters_still_give_unique_ids():
    cells = [new_markdown_cell(text) for text in ("# A", "# A", "# ???", "# 你好", "# A text", "#no heading")]
    ids = [cell.id for cell in committed_notebooks.normalize(notebook(code(), *cells, code())).cells]
    assert len(set(ids)) == len(ids)
    assert ids[0] == "start-code-1"


# --- what goes --------------------------------------------------------------------------------------------------------


def test_metadata_of_tools_and_machines_goes_and_tags_stay():
    cell = code("x", tags=("exercise", "nbval-ignore-output"))
    cell.metadata |= {"papermill": {"duration": 1.5}, "collapsed": True, "execution": {"iopub.status.busy": "2026"}}
    result = committed_notebooks.normalize(
        notebook(
            cell,
            kernelspec={"name": "my-env", "display_name": "My env", "language": "python"},
            language_info={"name": "python", "version": "3.11.7"},
            papermill={"parameters": {}},
            widgets={"application/vnd.jupyter.widget-state+json": {"state": {}}},
        )
    )
    assert result.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert result.cells[0].metadata == {"tags": ["exercise", "nbval-ignore-output"]}


def test_injected_parameters_go_and_counts_run_from_one():
    result = committed_notebooks.normalize(
        notebook(
            code("steps: int = 0", tags=("parameters",), count=1),
            code("steps = 5", tags=("injected-parameters",), count=2),
            code("", count=None),
            code("2", new_output("execute_result", data={"text/plain": "2"}, execution_count=4), count=4),
        )
    )
    assert [cell.source for cell in result.cells] == ["steps: int = 0", "", "2"]
    assert [cell.execution_count for cell in result.cells] == [1, None, 2]
    assert result.cells[2].outputs[0].execution_count == 2


def test_a_widget_leaves_what_stands_in_for_it():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "abc", "version_major": 2}}
    result = committed_notebooks.normalize(
        notebook(
            code("a", shown({**view, "text/html": "<p>static</p>", "text/plain": "static"})),
            code("b", shown({**view, "text/plain": "VBox(children=(HTML(value=''),))"})),
        )
    )
    assert [list(output.data) for output in result.cells[0].outputs] == [["text/html", "text/plain"]]
    assert result.cells[1].outputs == []
    assert "widget" not in nbformat.writes(result)


def test_a_picture_keeps_its_bytes_its_size_and_its_description(monkeypatch):
    monkeypatch.setenv("NANOCHAT_HOME", "/a")
    picture = {"image/png": "iVBORw0KGgo/a/b+", "text/plain": "<Image object>"}
    size = {"image/png": {"width": 672, "alt": "a figure"}}
    output = committed_notebooks.normalize(notebook(code("p", shown(picture, **size)))).cells[0].outputs[0]
    assert (output.data, output.metadata) == (picture, size)


def test_where_a_stream_was_cut_does_not_matter():
    whole = committed_notebooks.normalize(
        notebook(code("p", printed("one\ntwo\n"), printed("oh", "stderr"), printed("3")))
    )
    cut = committed_notebooks.normalize(
        notebook(code("p", printed("one"), printed("\n"), printed("two\n"), printed("oh", "stderr"), printed("3")))
    )
    assert cut == whole
    assert [output.text for output in whole.cells[0].outputs] == ["one\ntwo\n", "oh", "3"]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("{project}/out/nano/x.pt", "nanochat/out/nano/x.pt"),
        ("in {project}.", "in nanochat."),
        ("('{project}', 3)", "('nanochat', 3)"),
        ("{project}-2/out", "{project}-2/out"),
        ("{prefix}/lib/torch/x.py:3: UserWarning", "python/lib/torch/x.py:3: UserWarning"),
        ("{temp}/ipykernel_4711/123456.py:2: UserWarning: odd", "cell.py:2: UserWarning: odd"),
        ("nothing of the kind: a/b, 1/2, ~", "nothing of the kind: a/b, 1/2, ~"),
    ],
)  # fmt: skip
def test_machine_paths_are_said_in_general(said, wanted, monkeypatch, tmp_path):
    project = tmp_path / "course"
    monkeypatch.setenv("NANOCHAT_HOME", str(project))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    names = {"project": str(project), "prefix": sys.prefix, "temp": str(tmp_path)}
    outputs = [
        printed(said.format(**names)), shown({"text/plain": said.format(**names), "text/html": said.format(**names)}),
        new_output("error", ename="E", evalue=said.format(**names), traceback=[said.format(**names)]),
    ]  # fmt: skip
    stream, display, error = committed_notebooks.normalize(notebook(code("p", *outputs))).cells[0].outputs
    assert {stream.text, *display.data.values(), error.evalue, *error.traceback} == {wanted.format(**names)}


def test_the_home_folder_is_a_tilde_and_a_root_as_home_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "course"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    said = notebook(code("p", printed(f"{tmp_path}/me/x 1/2")))
    assert committed_notebooks.normalize(said).cells[0].outputs[0].text == "~/x 1/2"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert committed_notebooks.normalize(said).cells[0].outputs[0].text == f"{tmp_path}/me/x 1/2"


# --- the whole --------------------------------------------------------------------------------------------------------

fragments = st.sampled_from(
    ["/", "/x/nanochat", "nanochat", "~", " ", "\n", "# A b", "/x", "```", "é", ".", "ipykernel_1/2.py"]
)
texts = st.lists(fragments, max_size=6).map("".join)
outputs = st.one_of(
    st.builds(printed, texts, st.sampled_from(["stdout", "stderr"])),
    st.builds(lambda text: shown({"text/plain": text}), texts),
    st.builds(lambda text: shown({"text/plain": text, "application/vnd.jupyter.widget-view+json": {}}), texts),
    st.builds(lambda text: new_output("execute_result", data={"text/plain": text}, execution_count=9), texts),
)
cells = st.one_of(
    st.builds(new_markdown_cell, texts),
    st.builds(
        lambda source, found, tags: code(source, *found, tags=tags),
        texts, st.lists(outputs, max_size=3), st.sampled_from([(), ("parameters",), ("injected-parameters",)]),
    ),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(cells, max_size=6))
def test_normalising_is_valid_and_leaves_a_normalised_one_and_its_argument_alone(found):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", "/x/nanochat")
        patch.setattr(paths, "home", lambda: Path("/x/nanochat"))
        given_one = notebook(*found)
        before = copy.deepcopy(given_one)
        once = committed_notebooks.normalize(given_one)
        assert given_one == before
        nbformat.validate(once)
        assert committed_notebooks.normalize(once) == once
        ids = [cell.id for cell in once.cells]
        assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in ids)
        counts = [cell.execution_count for cell in once.cells if cell.cell_type == "code" and cell.source.strip()]
        assert counts == list(range(1, len(counts) + 1))


def test_commit_writes_a_file_that_reads_back_the_same_and_ends_with_one_line_break(tmp_path):
    executed, committed = tmp_path / "executed.ipynb", tmp_path / "notebooks" / "01.ipynb"
    nbformat.write(notebook(new_markdown_cell("# A"), code("print(1)", printed("1\n"))), executed)
    committed_notebooks.commit(executed, committed)
    text = committed.read_text(encoding="utf-8")
    assert text.endswith("}\n") and not text.endswith("\n\n")
    again = nbformat.read(committed, as_version=4)
    assert again == committed_notebooks.normalize(again)
    committed_notebooks.commit(committed, committed)
    assert committed.read_text(encoding="utf-8") == text
