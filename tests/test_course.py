"""Running the whole course: parameters, order, failures, and the files it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nanochat import paths
from nanochat.cli import parser as cli
from nanochat.config import UserError
from nanochat.course import run as course
from nanochat.course.run import CourseError

ALL = """run: str = ""  # a folder in out/
profile: str = "default"
corpus: str = ""
steps: int = 0
lr: float = 0.5
resume: bool = False
"""
SOME = 'profile: str = "default"\nseed: int = 1337  # the same seed gives the same run\n'
TELL = "import json; print(json.dumps([run, profile, corpus, steps, lr, resume]))"


def write(home: Path, name: str, *sources: str, parameters: str = ALL) -> Path:
    """Write a notebook with a parameters cell and these code cells."""
    cells = [new_markdown_cell(f"# {name}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(
        cells=[*cells, *map(new_code_cell, sources)],
        metadata={"kernelspec": kernelspec, "language_info": {"name": "python"}},
    )
    path = home / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def said(path: Path) -> str:
    """Everything printed by the cells of an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", ()))


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- which notebooks, which parameters --------------------------------------------------------------------------------


def test_notebooks_come_in_order_and_only_those_of_the_course(nanochat_home):
    for name in ("10_last", "02_second", "01_first", "scratch", "x1_odd"):
        write(nanochat_home, name)
    (nanochat_home / "notebooks" / "03_notes.md").write_text("no notebook")
    assert [path.stem for path in course.notebooks()] == ["01_first", "02_second", "10_last"]
    assert [path.stem for path in course.notebooks("0")] == ["01_first", "02_second"]
    assert [path.stem for path in course.notebooks("02_sec")] == ["02_second"]


def test_a_notebook_that_is_not_there_names_those_that_are(nanochat_home):
    write(nanochat_home, "03_pretraining")
    with pytest.raises(UserError, match=r"unknown notebook '04'; .*03_pretraining"):
        course.notebooks("04")


def test_a_folder_without_notebooks_says_where_to_run_the_course(nanochat_home):
    with pytest.raises(UserError, match="run this in a checkout of nanochat"):
        course.notebooks()


def test_plan_gives_each_notebook_what_it_declares_in_its_types(nanochat_home):
    one = write(nanochat_home, "01_one")
    two = write(nanochat_home, "02_two", parameters=SOME)
    given = {
        "run": "007",
        "profile": "smoke",
        "steps": "50",
        "lr": "3",
        "resume": "True",
        "corpus": "1984",
        "seed": "9",
    }
    (first, of_one), (second, of_two) = course.plan([one, two], given)
    assert (first, second) == (one, two)
    assert of_one == {"run": "007", "profile": "smoke", "corpus": "1984", "steps": 50, "lr": 3.0, "resume": True}
    assert of_two == {"profile": "smoke", "seed": 9}
    assert [type(value) for value in of_one.values()] == [str, str, str, int, float, bool]


def test_the_run_and_the_profile_may_be_given_to_notebooks_that_do_not_declare_them(nanochat_home):
    path = write(nanochat_home, "01_one", parameters="seed: int = 1\n")
    assert course.plan([path], {"profile": "smoke", "run": "x"}) == [(path, {})]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stepz", "5", "unknown parameter 'stepz'; did you mean 'steps'"),
        ("steps", "five", "steps must be of type int, not 'five'"),
        ("steps", "5.0", "steps must be of type int"),
        ("lr", "", "lr must be of type float"),
        ("resume", "yes", "resume must be true or false, not 'yes'"),
    ],
)
def test_plan_refuses_what_no_notebook_would_understand(nanochat_home, name, value, message):
    with pytest.raises(UserError, match=message):
        course.plan([write(nanochat_home, "01_one")], {name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "smok"}, "did you mean 'smoke'"),
        ({"run": "../x"}, "cannot be the name of a run"),
        ({"parameters": {"model": "nanoGTP"}}, "did you mean 'nanoGPT'"),
        ({"parameters": {"corpus": "missing.txt"}}, "there is no file 'missing.txt'"),
        ({"parameters": {"qa": "squad"}}, "did you mean 'squad_v2'"),
        ({"parameters": {"tokenizer": "bpe:x"}}, "bpe:x"),
        ({"parameters": {"device": "cuda:99"}}, "cuda:99"),
        ({"parameters": {"steps": "-5"}}, "steps must be at least 0"),
        ({"parameters": {"stepz": "5"}}, "unknown parameter"),
        ({"only": "09"}, "unknown notebook"),
        ({"reference": True, "profile": "smoke"}, "takes the notebooks as they are"),
        ({"reference": True, "parameters": {"steps": "5"}}, "takes the notebooks as they are"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs_or_is_written(nanochat_home, monkeypatch, options, message):
    write(nanochat_home, "01_one", "raise AssertionError('it ran')")
    monkeypatch.setattr(course, "execute", lambda *args: pytest.fail("it ran"))
    before = tree(nanochat_home)
    with pytest.raises(UserError, match=message):
        course.run(**options)
    assert tree(nanochat_home) == before


def test_a_file_is_found_from_where_the_course_was_started(nanochat_home, tmp_path_factory, monkeypatch):
    """Notebooks run in their own folder, where a relative path would mean another file."""
    write(nanochat_home, "01_one")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("text.txt", "almanac"):  # a registered name means what is registered, whatever lies around
        (elsewhere / name).write_text("A text.")
    monkeypatch.chdir(elsewhere)
    seen = []

    def execute(notebook, output, values, show):
        seen.append(values)
        return course.Executed(notebook.stem, 1.0, 2.0)

    monkeypatch.setattr(course, "execute", execute)
    course.run(parameters={"corpus": "text.txt"})
    course.run(parameters={"corpus": "almanac"})
    assert [values["corpus"] for values in seen] == [str(elsewhere / "text.txt"), "almanac"]


# --- with notebooks that are pretended to run -------------------------------------------------------------------------


@pytest.fixture
def pretended(nanochat_home, monkeypatch):
    """Three fake notebooks that take 60 s and 100 MB each; those in `failing` raise the error given there."""
    for name in ("01_one", "02_two", "03_three"):
        write(nanochat_home, name)
    failing: dict[str, BaseException] = {}

    def execute(notebook, output, values, show):
        show(0.0, 100.0)
        if notebook.stem in failing:
            raise failing[notebook.stem]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(notebook.read_text())
        return course.Executed(notebook.stem, 60.0, 100.0)

    monkeypatch.setattr(course, "execute", execute)
    return failing


def test_each_notebook_is_a_line_of_the_log(pretended, capsys, nanochat_home):
    path = course.run(profile="smoke")
    assert path == nanochat_home / "out" / "smoke" / "report.md"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[1/3] 01_one … 1 min 00 s, 100 MB", "[2/3] 02_two … 1 min 00 s, 100 MB", "[3/3] 03_three … 1 min 00 s, 100 MB",
        f"report: {path}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "word", "failure"),
    [
        (CourseError("02_two.ipynb, cell [3]: ValueError: x"), "failed", "02_two.ipynb, cell [3]: ValueError: x"),
        (KeyboardInterrupt(), "interrupted", "02_two.ipynb was interrupted"),
    ],
)
def test_what_stops_one_notebook_stops_the_course_and_what_ran_is_reported(pretended, capsys, error, word, failure):
    pretended["02_two"] = error
    with pytest.raises(type(error)):
        course.run(run="r")
    content = json.loads(Path(os.environ["NANOCHAT_HOME"], "out", "r", "report.json").read_text())
    assert [entry["notebook"] for entry in content["notebooks"]] == ["01_one"]
    assert content["failure"] == failure
    err = capsys.readouterr().err.splitlines()
    assert err[1] == f"[2/3] 02_two … {word}" and err[2].startswith("report: ") and len(err) == 3


def test_the_first_notebook_may_fail_too(pretended, nanochat_home):
    pretended["01_one"] = CourseError("why")
    with pytest.raises(CourseError):
        course.run()
    assert "**Not finished:** why" in (nanochat_home / "out" / "nano" / "report.md").read_text()


def test_a_reference_run_writes_the_notebooks_back_and_a_usual_one_does_not(pretended, nanochat_home):
    before = tree(nanochat_home / "notebooks")
    course.run()
    assert tree(nanochat_home / "notebooks") == before
    course.run(reference=True)
    cells = nbformat.read(nanochat_home / "notebooks" / "01_one.ipynb", as_version=4).cells
    assert [cell.id for cell in cells] == ["01-one-text-1", "01-one-code-1"]


def test_a_reference_run_that_fails_leaves_every_notebook_as_it_was(pretended, nanochat_home):
    pretended["03_three"] = CourseError("why")
    before = tree(nanochat_home / "notebooks")
    with pytest.raises(CourseError):
        course.run(reference=True)
    assert tree(nanochat_home / "notebooks") == before


def test_a_terminal_sees_time_memory_and_how_far_the_training_is(nanochat_home, monkeypatch, capsys):
    metrics = nanochat_home / "out" / "r" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"stage": "base_model", "step": 7, "total": 9}\n{"stage": "base_mo')
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    line = course._StatusLine("[1/2] 03_pretraining", "r")
    line(64.0, 812.0)
    os.utime(metrics, (1, 1))  # that training is over
    line(66.0, 815.0)
    line.done("1 min 10 s, 815 MB")
    assert capsys.readouterr().err.split("\r\x1b[2K") == [
        "[1/2] 03_pretraining …",
        "[1/2] 03_pretraining … 1 min 04 s, 812 MB, base_model 7/9",
        "[1/2] 03_pretraining … 1 min 06 s, 815 MB",
        "[1/2] 03_pretraining … 1 min 10 s, 815 MB\n",
    ]


def test_memory_is_that_of_the_processes_a_notebook_starts():
    holding = "x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); print('ready', flush=True); input()"
    seen: list[float] = []
    with course._measured(lambda seconds, mb: seen.append(mb)) as peak:
        child = subprocess.Popen(
            [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        while not seen or seen[-1] < 300:
            time.sleep(0.01)
        child.communicate("\n")
    assert 300 < peak[0] < 1000
    assert peak[0] == max(seen)


# --- with kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.notebook
def test_parameters_arrive_and_the_report_tells_what_ran(nanochat_home, monkeypatch):
    write(nanochat_home, "01_one", TELL, "import os; print(os.getcwd())")
    write(nanochat_home, "02_two", "print(profile, seed)", "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096])",
          "import time; end = time.monotonic() + 1.2\nwhile time.monotonic() < end: pass", parameters=SOME)  # fmt: skip
    options = {"run": "007", "parameters": {"steps": "50", "lr": "2", "resume": "true", "seed": "9"}}
    path = course.run(profile="smoke", **options)
    executed = path.parent / "notebooks"
    told, folder = said(executed / "01_one.ipynb").splitlines()
    assert json.loads(told) == ["007", "smoke", "", 50, 2.0, True]
    assert folder == str(nanochat_home / "notebooks")
    assert said(executed / "02_two.ipynb") == "smoke 9\n"
    content = json.loads((path.parent / "report.json").read_text())
    assert [entry["notebook"] for entry in content["notebooks"]] == ["01_one", "02_two"]
    assert all(entry["seconds"] > 0.2 for entry in content["notebooks"])
    assert content["notebooks"][1]["peak_mb"] > 200
    assert content["peak_mb"] == max(entry["peak_mb"] for entry in content["notebooks"])


@pytest.mark.notebook
@pytest.mark.parametrize("given", [None, "project"])
def test_notebooks_have_the_project_folder_of_the_course(tmp_path, monkeypatch, given):
    home = tmp_path / given if given else tmp_path
    write(home, "01_one", "import os; print(os.environ['NANOCHAT_HOME'], os.getcwd())")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "nanochat" / "paths.py"))  # no checkout
    if given:
        monkeypatch.setenv("NANOCHAT_HOME", given)
    else:
        monkeypatch.delenv("NANOCHAT_HOME", raising=False)
    [notebook] = course.notebooks()
    course.execute(notebook, home / "out" / "executed.ipynb", {})
    assert said(home / "out" / "executed.ipynb") == f"{home} {home / 'notebooks'}\n"
    assert os.environ.get("NANOCHAT_HOME") == given, "and afterwards everything is as it was"


@pytest.mark.notebook
def test_a_cell_that_fails_is_named_and_what_came_before_it_is_kept(nanochat_home, capfd):
    write(nanochat_home, "01_one", "print('first')", "# on purpose\nraise ValueError('a\\nb')", "print('never')")
    write(nanochat_home, "02_two", "print('never')")
    assert cli.main(["course", "--profile", "smoke"]) == 1
    executed = nanochat_home / "out" / "smoke" / "notebooks"
    err = capfd.readouterr().err.splitlines()
    # parameters, injected parameters, first, and the one that fails
    message = (
        "01_one.ipynb, cell [4] (# on purpose): ValueError: a b; everything up to there is in "
        f"{executed / '01_one.ipynb'}"
    )
    assert err == ["[1/2] 01_one … failed", f"report: {executed.parent / 'report.md'}", f"nanochat: {message}"]
    assert said(executed / "01_one.ipynb") == "first\n"
    assert not (executed / "02_two.ipynb").exists()
    assert f"**Not finished:** {message}" in (executed.parent / "report.md").read_text()


@pytest.mark.notebook
def test_a_kernel_that_dies_is_a_failure_of_its_cell(nanochat_home, capfd):
    write(nanochat_home, "01_one", "import os; os._exit(9)", "print('never')")
    with pytest.raises(CourseError, match=r"01_one\.ipynb, cell \[3\] \(import os; os\._exit\(9\)\): its process died"):
        course.run()
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["[1/1]", "report:"]


@pytest.mark.notebook
def test_a_cell_that_hangs_ends_some_time(nanochat_home, monkeypatch):
    write(nanochat_home, "01_one", "import threading; threading.Event().wait()")
    monkeypatch.setattr(course, "CELL_TIMEOUT_S", 2)
    with pytest.raises(CourseError, match=r"cell \[3\] .*: it took longer than 2 s"):
        course.run()


@pytest.mark.notebook
def test_ctrl_c_ends_the_course_with_status_130_and_leaves_no_kernel(nanochat_home):
    marker = nanochat_home / "started"
    write(nanochat_home, "01_one", f"import os, pathlib; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))",
          "import threading; threading.Event().wait()")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanochat", "course"], stderr=subprocess.PIPE, text=True, env=environment
    )
    while not marker.exists() or not marker.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err and err.splitlines()[-1] == "nanochat: interrupted"
    assert _ended(int(marker.read_text()))
    content = json.loads((nanochat_home / "out" / "nano" / "report.json").read_text())
    assert content["failure"] == "01_one.ipynb was interrupted"


def _ended(pid: int) -> bool:
    """Whether the process has ended or ends within a minute, since kernels take a while to shut down."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(60)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.notebook
def test_only_one_notebook_of_the_course(nanochat_home):
    for name in ("01_one", "03_three"):
        write(nanochat_home, name, "print(profile)")
    path = course.run(profile="smoke", only="03", parameters={"steps": "3"})
    assert [file.name for file in (path.parent / "notebooks").iterdir()] == ["03_three.ipynb"]
    assert [entry["notebook"] for entry in json.loads((path.parent / "report.json").read_text())["notebooks"]] == [
        "03_three"
    ]
