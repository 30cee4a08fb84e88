"""The notebooks: the rules that every committed notebook follows, and that each of them runs.

The rules on outputs describe what `nanochat course --reference` writes.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import tour
from nbformat import NotebookNode
from PIL import Image

from nanochat import config
from nanochat.course import committed

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("01_data_loading", "02_building_the_gpt", "03_pretraining", "04_qa_finetuning", "05_playground")
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes of a file

# Everywhere the same names, types and defaults; a notebook has those that it uses.
PARAMETERS = {
    "run": ("str", ""), "profile": ("str", "default"), "corpus": ("str", ""), "qa": ("str", ""), "tokenizer": ("str", ""),
    "model": ("str", ""), "steps": ("int", 0), "minutes": ("float", 0.0), "seed": ("int", 1337),
    "device": ("str", "auto"), "resume": ("bool", False),
}  # fmt: skip
TAGS = {"parameters", "exercise", "nbval-ignore-output"}

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:2])


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def lines(source: str) -> int:
    return len(source.strip().splitlines())


def first_line(cell: NotebookNode) -> str:
    return next(iter(cell.source.strip().splitlines()), "")


def tree(path: Path) -> ast.Module:
    return ast.parse("\n\n".join(cell.source for cell in code(path)))


def texts_of(cell: NotebookNode) -> str:
    """The texts of a cell's outputs."""
    said = []
    for output in cell.outputs:
        data = output.get("data", {})
        said += [output.get("text", ""), *(data[kind] for kind in ("text/plain", "text/html") if kind in data)]
    return "\n".join(said)


def test_the_notebooks_of_the_course_are_there():
    assert [path.stem for path in PATHS] == list(NAMES)


# --- the file -----------------------------------------------------------------------------------------------------------


@each
def test_it_is_a_valid_notebook_of_a_handy_size(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    nbformat.validate(content)
    assert path.stat().st_size <= LARGEST


@each
def test_its_kernel_is_the_one_that_everybody_has(path):
    assert read(path).metadata.kernelspec.name == "python3"


@each
def test_it_is_committed_as_the_reference_run_left_it(path):
    """Readable ids, counts from one, no widget state, no machine paths, no papermill metadata: see course/committed.py."""
    assert committed.normalize(read(path)) == read(path)


@each
def test_nothing_in_it_names_a_machine(path):
    text = path.read_text(encoding="utf-8")
    folders = [
        "/ro" + "ot/",
        "/hom" + "e/",
        "/Use" + "rs/",
        "/tm" + "p/",
        "/va" + "r/folders",
        r"[A-Z]:\\\\\w+\\\\",
        "/wo" + "rk/",
    ]
    found = re.findall(rf"(?<![\w.~-])(?:{'|'.join(folders)})[^\s\"]*|<[^<>]+ at 0x[0-9a-f]{{6,}}>", text)
    assert not found


# --- parameters ---------------------------------------------------------------------------------------------------------


def parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """Name → (type, default) of each line in the cell tagged `parameters`; fails on any other line."""
    [cell] = [cell for cell in code(path) if "parameters" in tags(cell)]
    found = {}
    for line in cell.source.splitlines():
        match = re.fullmatch(r"(\w+): (str|int|float|bool) = (\S+)  # (\S.*)", line)
        assert match, f"papermill and people read `name: type = literal  # what it is`, not {line!r}"
        assert line.count("=") == 1, f"papermill cannot read {line!r}"
        found[match[1]] = (match[2], ast.literal_eval(match[3]))
    return found


@each
def test_it_has_one_cell_of_parameters_with_the_names_and_defaults_of_all(path):
    found = parameters(path)
    assert len(found) > 1, "a single line could be taken for something else"
    assert found == {name: PARAMETERS.get(name) for name in found}
    assert list(found) == [name for name in PARAMETERS if name in found], "in the same order everywhere"
    assert all(type(default).__name__ == kind for kind, default in found.values())
    assert {"profile", "seed"} <= found.keys()


@each
def test_papermill_reads_the_same_parameters(path):
    read_by_papermill = papermill.inspect_notebook(str(path))
    assert {name: entry["inferred_type_name"] for name, entry in read_by_papermill.items()} == {
        name: kind for name, (kind, _) in parameters(path).items()
    }
    assert all(entry["help"] for entry in read_by_papermill.values())


@each
def test_the_cell_after_the_parameters_makes_them_whole_and_checks_them(path):
    cells = code(path)
    [at] = [i for i, cell in enumerate(cells) if "parameters" in tags(cell)]
    assert "config.choose(" in cells[at + 1].source
    used = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert parameters(path).keys() <= used, "a parameter without a use"
    for name in parameters(path).keys() & {"run", "profile", "corpus", "qa", "tokenizer", "model", "device"}:
        assert re.search(rf"\b{name}\b", cells[at + 1].source), f"{name} is not checked"


def test_defaults_are_what_the_package_takes_for_the_profiles():
    assert config.choose(
        **{name: default for name, (kind, default) in PARAMETERS.items() if kind == "str"}
    ) == config.profile("default")


def test_the_readme_gives_papermill_parameters_that_there_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    typed = re.findall(r"^(?:\S*/)?papermill (notebooks/\S+)(.*)$", text, re.MULTILINE)
    assert typed
    for name, options in typed:
        assert set(re.findall(r"-[pr] (\w+)", options)) <= parameters(ROOT / name).keys()


# --- cells --------------------------------------------------------------------------------------------------------------


@each
def test_code_cells_are_short(path):
    lengths = {first_line(cell): lines(cell.source) for cell in code(path)}
    assert not {line: n for line, n in lengths.items() if n > 30 or n == 0}
    assert statistics.median(lengths.values()) <= 8


@each
def test_no_more_than_two_code_cells_come_without_a_word_between_them(path):
    kinds = "".join("c" if cell.cell_type == "code" else "t" for cell in read(path).cells)
    cells = read(path).cells
    assert not [first_line(cells[match.start()]) for match in re.finditer("ccc+", kinds)]


@each
def test_no_cell_waits_for_somebody_to_type(path):
    called = {
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"input", "getpass"}


@each
def test_figures_do_not_go_through_pyplot(path):
    """pyplot keeps figures between cells; plots.py creates them one at a time, in one style."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not re.search(r"pyplot|pylab|matplotlib", ast.unparse(node))
    assert not any(line.lstrip().startswith("%matplotlib") for cell in code(path) for line in cell.source.splitlines())


@each
def test_no_path_depends_on_the_working_directory(path):
    """paths.py knows where files are; `Path("out")` depends on where the notebook was started."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"\.{0,2}/?(data|out|notebooks)/", node.value), node.value


def test_nothing_is_defined_in_two_notebooks():
    defined: dict[str, set[str]] = {}
    for path in PATHS:
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.setdefault(node.name, set()).add(path.stem)
    assert not {name: sorted(where) for name, where in defined.items() if len(where) > 1}


@each
def test_its_tags_are_known_ones(path):
    """A cell that nbval skips, or that may raise, would not be tested at all."""
    assert {tag for cell in code(path) for tag in tags(cell)} <= TAGS


# --- the lesson ---------------------------------------------------------------------------------------------------------


def sections(path: Path) -> dict[str, str]:
    """Second-level heading → all prose under it, in order."""
    found, heading = {"": ""}, ""
    for text in prose(path):
        for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
            if part.startswith("## "):
                heading = part.splitlines()[0].removeprefix("## ")
            found[heading] = found.get(heading, "") + "\n" + part
    return found


@each
def test_it_opens_with_a_title_goals_what_it_needs_and_where_you_are(path):
    cells = read(path).cells
    opening = cells[0].source
    assert opening.startswith(f"# {path.stem[:2]} · ")
    goals = re.findall(r"^- ", opening, re.MULTILINE)
    assert "**You will**" in opening and 1 <= len(goals) <= 5
    assert "**From before:**" in opening
    assert "plots.pipeline(" in cells[1].source


@each
def test_it_closes_with_recap_exercises_quiz_and_what_is_next(path):
    parts = sections(path)
    assert list(parts)[-3:] == ["What you have now", "Exercises", "Quiz"]
    assert len(re.findall(r"^- ", parts["What you have now"], re.MULTILINE)) >= 2
    assert sum("exercise" in tags(cell) for cell in code(path)) >= 3
    assert parts["Exercises"].count("<details>") >= 3
    assert prose(path)[-1].startswith("**Next:** ")


@each
def test_every_question_of_the_quiz_has_choices_and_an_explained_answer(path):
    questions = re.split(r"^### ", sections(path)["Quiz"], flags=re.MULTILINE)[1:]
    assert len(questions) >= 3
    for question in questions:
        choices = re.findall(r"^- \((\w)\) ", question, re.MULTILINE)
        assert len(choices) >= 3, question[:60]
        _, _, answer = question.partition("<details><summary>")
        assert answer.count("**(") >= 1 and "</details>" in answer, question[:60]
        explained = set(re.findall(r"\((\w)\)", answer))
        assert explained >= set(choices), f"right and wrong are explained: {question[:60]}"


@each
def test_it_lets_you_predict_and_find_a_fault(path):
    text = "\n".join(prose(path))
    assert len(re.findall(r"\*\*Predict", text)) >= 2
    assert re.search(r"^#+ Find the fault", text, re.MULTILINE)


@each
def test_its_details_are_closed_and_its_fences_too(path):
    for text in prose(path):
        assert text.count("<details>") == text.count("</details>")
        assert text.count("```") % 2 == 0


@each
def test_its_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", "\n".join(prose(path)), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    for link in links:
        if re.match(r"https://", link):
            continue
        assert not re.match(r"\w+:|/", link), f"{link} is no link for everybody"
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), f"{link} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", "\n".join(prose(target)), re.MULTILINE)
            assert anchor in [heading.replace(" ", "-") for heading in headings]


MEASURED = r"\b\d[\d.,]*\s?(?:seconds?|minutes?|s|min|MB|GB|tokens/s|tokens a second|bits per byte)\b"


@each
def test_no_measurement_is_typed_into_the_prose(path):
    """Times, memory, speeds and losses are printed by cells; only exercises may assume some."""
    told = [text for heading, text in sections(path).items() if heading not in ("Exercises", "Quiz")]
    assert not re.findall(MEASURED, re.sub(r"```.*?```", "", "\n".join(told), flags=re.DOTALL))


# --- outputs ------------------------------------------------------------------------------------------------------------


@each
def test_every_cell_ran_once_in_order_and_none_failed(path):
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [first_line(cell) for cell in cells if any(output.output_type == "error" for output in cell.outputs)]


@each
def test_there_are_outputs_to_compare(path):
    """nbval compares the outputs there are: none in a stripped notebook."""
    compared = [cell for cell in code(path) if cell.outputs and "nbval-ignore-output" not in tags(cell)]
    assert len(compared) >= 10


@each
def test_every_picture_has_a_sentence_right_under_it(path):
    for cell in code(path):
        for output, below in itertools.zip_longest(cell.outputs, cell.outputs[1:]):
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                assert below and below.output_type == "stream", first_line(cell)
                assert re.match(r"\S.{20,}?\.(\n|$)", below.text, re.DOTALL), below.text[:80]


@each
def test_what_is_compared_is_the_same_everywhere(path):
    """Cells that print times, memory and the like need the tag nbval-ignore-output."""
    for cell in code(path):
        if "nbval-ignore-output" not in tags(cell):
            assert not re.findall(r"\d (?:s|ms|seconds|MB|tokens/s)\b", texts_of(cell)), first_line(cell)


# How each is shown
WIDGETS = {
    "attention": ".explore(", "batches": ".view(", "monitor": ".watch(", "next_token": ".explore(", "playground": "(",
    "tokens": ".explore(", "compare": ".compare(",
}  # fmt: skip


@each
def test_a_widget_leaves_something_to_read(path):
    """Without a kernel there is no widget, so a cell that displays one also has HTML."""
    imports = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    names = [alias for node in imports if node.module == "nanochat.widgets" for alias in node.names]
    calls = [(alias.asname or alias.name) + WIDGETS[alias.name] for alias in names]
    for cell in code(path):
        if any(call in cell.source for call in calls):
            assert any("text/html" in output.get("data", {}) for output in cell.outputs), first_line(cell)


# --- the README's tour --------------------------------------------------------------------------------------------------


def pictures() -> dict[str, str]:
    """Path → alt text of each picture in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tags = re.findall(r"<img [^>]+>", text)
    html = {re.search(r'src="([^"]+)"', tag)[1]: re.search(r'alt="([^"]*)"|$', tag)[1] or "" for tag in tags}
    return html | {path: alt for alt, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)}


def test_every_picture_of_the_readme_is_there_small_and_told_in_words():
    for path, alt in pictures().items():
        assert (ROOT / path).stat().st_size <= tour.LARGEST, path
        assert len(alt.split()) >= 5, f"{path} needs an alternative text"
        with Image.open(ROOT / path) as picture:
            assert 400 <= picture.width <= 2000 and 200 <= picture.height <= 1500, path


@each
def test_the_tour_shows_a_picture_of_each_lesson_as_it_is(path):
    """And not an outdated one: the picture carries a fingerprint of the outputs it was taken from."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if f"notebooks/{path.name})" in line]
    name = f"notebooks/images/{path.stem[:2]}.png"
    assert name in row and name in pictures()
    with Image.open(ROOT / name) as picture:
        source = picture.text["source"]
    assert source == tour.fingerprint(tour.shown(path.stem)), "run `python tests/browser/pictures.py`"


# --- running them -------------------------------------------------------------------------------------------------------


def environment(home: Path) -> dict[str, str]:
    """The environment for a process that works in `home`, wherever this one works."""
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "NANOCHAT_HOME": str(home), "PYTHONPATH": search}


Done = subprocess.CompletedProcess[str]


def python(*words: str, home: Path, folder: Path) -> Done:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment(home), text=True, capture_output=True)


def run_alone(path: Path, home: Path, folder: Path) -> tuple[Done, Path, Path]:
    """Run one notebook through papermill's command line, in the smoke profile."""
    words = ["-m", "papermill", str(path), str(home / "executed.ipynb"), "-p", "profile", "smoke"]
    words += ["--no-progress-bar", "--log-level", "ERROR", "--execution-timeout", "1200"]
    return python(*words, home=home, folder=folder), home, folder


def run_course(home: Path) -> tuple[Done, Path]:
    """Run the whole smoke course by its command, in a folder with nothing but the notebooks."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return python("-m", "nanochat", "course", "--profile", "smoke", home=home, folder=home), home


def run_nbval(home: Path, folder: Path) -> dict[str, Done]:
    """Run nbval on every notebook in its default profile, one after the other in one home, as a learner would.

    The two that train for minutes do 8 steps: nothing compared may depend on the length of training.
    """
    results = {}
    for path in PATHS:
        notebook = read(path)
        for cell in notebook.cells:
            if "parameters" in tags(cell):
                cell.source = re.sub(r"^steps: int = 0\b", "steps: int = 8", cell.source, flags=re.MULTILINE)
        copy = folder / path.name
        nbformat.write(notebook, copy)
        words = ["-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1200"]
        words += ["-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull, str(copy)]
        results[path.stem] = python(*words, home=home, folder=folder)
    return results


@pytest.fixture(scope="session")
def running(request, tmp_path_factory) -> Iterator[dict[str, Future]]:
    """The runs that take minutes, if a selected test needs them: two at a time, each on one core."""
    asked = {name for item in request.session.items for name in item.fixturenames}

    def folder() -> Path:
        return tmp_path_factory.mktemp("folder")

    with ThreadPoolExecutor(2) as pool:
        jobs: dict[str, Future] = {}
        if "alone" in asked:
            for path in PATHS:
                jobs[path.stem] = pool.submit(run_alone, path, folder(), folder())
        if "smoke_course" in asked:
            jobs["course"] = pool.submit(run_course, folder())
        if "compared" in asked:
            jobs["nbval"] = pool.submit(run_nbval, folder(), folder())
        yield jobs


@pytest.fixture
def alone(running, path) -> tuple[Done, Path, Path]:
    """A notebook that ran alone: its process result, its home, and the working directory it was started in."""
    return running[path.stem].result()


@pytest.fixture
def smoke_course(running) -> tuple[Done, Path]:
    """The process result of the whole course, and its home."""
    return running["course"].result()


@pytest.fixture
def compared(running, path) -> Done:
    """What nbval reported about a notebook."""
    return running["nbval"].result()[path.stem]


@pytest.mark.notebook
@each
def test_it_runs_alone_from_another_folder_in_the_smoke_profile(path, alone):
    done, home, folder = alone
    assert done.returncode == 0, done.stderr[-3000:]
    executed = read(home / "executed.ipynb")
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert list(folder.iterdir()) == [], "it writes into the working directory"
    assert {item.name for item in home.iterdir()} <= {"data", "out", "executed.ipynb"}
    printed = "\n".join(texts_of(cell) for cell in executed.cells if cell.cell_type == "code")
    assert str(home) not in printed and str(folder) not in printed, "it prints a path of this machine"


@pytest.mark.notebook
def test_the_smoke_course_ends_with_an_assistant_and_a_report(smoke_course):
    done, home = smoke_course
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "", "a log belongs on stderr"
    log = done.stderr.splitlines()
    assert [line.split()[1] for line in log[:-1]] == [path.stem for path in PATHS]
    out = home / "out" / "smoke"
    assert log[-1] == f"report: {out / 'report.md'}"
    files = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert files >= {
        "data/almanac/pretrain_input.txt", "data/almanac/pretrain_train.bin", "data/almanac/pretrain_val.bin",
        "data/almanac/meta.json", "data/almanac/tokenizer.tiktoken", "data/almanac_qa/qa_train.bin",
        "out/smoke/smoke_base_model.pt", "out/smoke/smoke_fine_tuned.pt", "out/smoke/base_model_last.pt",
        "out/smoke/fine_tuned_last.pt", "out/smoke/metrics.jsonl", "out/smoke/report.json",
        *(f"out/smoke/notebooks/{path.name}" for path in PATHS),
    }  # fmt: skip
    assert not [name for name in files if name.endswith(".tmp")]


@pytest.mark.notebook
def test_the_smoke_course_reports_every_notebook_and_stage(smoke_course):
    _, home = smoke_course
    folder = home / "out" / "smoke"
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert content["failure"] is None
    assert [entry["notebook"] for entry in content["notebooks"]] == [path.stem for path in PATHS]
    assert all(entry["seconds"] > 1 and entry["peak_mb"] > 100 for entry in content["notebooks"])
    assert list(content["models"]) == ["base_model", "fine_tuned"]
    assert list(content["cards"]) == ["base_model", "fine_tuned"]
    profile = config.profile("smoke")
    trained = [content["models"][stage]["trained_steps"] for stage in ("base_model", "fine_tuned")]
    assert trained == [planned.steps for planned in profile.stages.values()]
    text = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
    assert len(pictures) == 8 and all((folder / name).is_file() for name in pictures)


@pytest.mark.notebook
def test_after_the_smoke_course_a_second_run_of_a_notebook_finds_everything_made(smoke_course):
    """Restart and run all works any number of times, and no stand-in is needed after the course."""
    _, home = smoke_course
    stand_ins = [folder.name for folder in (home / "out").iterdir() if "standin" in folder.name]
    assert stand_ins == []
    done = python("-m", "nanochat", "course", "--profile", "smoke", "--only", "01", home=home, folder=home)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.notebook
def test_the_smoke_course_left_what_the_commands_go_on_with(smoke_course):
    _, home = smoke_course
    done = python("-m", "nanochat", "ask", "What is the capital of France?", home=home, folder=home)
    assert (done.returncode, done.stderr) == (0, "")
    done = python("-m", "nanochat", "sample", "Once", "--tokens", "8", "--run", "smoke", home=home, folder=home)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Once")


# --- outputs compared ---------------------------------------------------------------------------------------------------


@pytest.mark.notebook
@each
def test_it_prints_again_what_was_committed(path, compared):
    done = compared
    outcome = Counter(re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1] if done.stdout else ""))
    passed = sum(int(number) for number, what in outcome if what == "passed")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert passed == len(code(path))
