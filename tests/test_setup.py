"""The setup files agree with each other, and the package imports only what it may."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_SPECS = [spec for spec in ENVIRONMENT["dependencies"] if isinstance(spec, str)]
PYPI_NAME = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    """The version specifier of each required package, without this one, whose extras an extra may name."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(asked.name): asked.specifier for asked in parsed if asked.name != PROJECT["name"]}


RUNTIME = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


# --- constraints.txt, environment.yml and pyproject.toml


def test_each_constraint_is_one_exact_public_version() -> None:
    """A single ==, no wildcard, no local version such as +cpu, no URL."""
    assert all(pin.url is None and not pin.extras for pin in PINS)
    assert [str(pin) for pin in PINS if not re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier))] == []


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_requirement_has_one_constraint_that_satisfies_it(python: str, system: str) -> None:
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    here["os_name"] = "nt" if system == "win32" else "posix"
    environment = {**default_environment(), **here}
    active = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in active}
    assert len(versions) == len(active), "two constraints for one package"
    for name, specifier in [*RUNTIME.items(), *(item for extra in EXTRAS.values() for item in extra.items())]:
        assert name in versions, f"{name} has no constraint"
        assert versions[name] in specifier


def test_conda_environment_is_conda_forge_only_and_installs_this_project() -> None:
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]
    assert [entry for entry in ENVIRONMENT["dependencies"] if not isinstance(entry, str)] == [{"pip": ["-e ."]}]


def test_conda_environment_asks_for_the_same_versions_as_pyproject() -> None:
    conda = {}
    for spec in CONDA_SPECS:
        name, _, version = spec.partition(" ")
        conda[PYPI_NAME.get(name, name)] = SpecifierSet(version)
    assert conda.pop("pip") == SpecifierSet()
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    needed = RUNTIME | EXTRAS["course"]
    assert {name: conda.get(name) for name in needed} == needed
    tools = {name: version for name, version in conda.items() if name not in needed}
    assert tools == {name: EXTRAS["dev"].get(name) for name in tools}
    assert {"pytest", "nbval", "hypothesis"} <= tools.keys()


@pytest.mark.parametrize("spec", CONDA_SPECS)
def test_conda_can_read_each_spec(spec: str) -> None:
    rattler = pytest.importorskip("rattler", reason="py-rattler is not installed")
    match = rattler.MatchSpec(spec, strict=True)
    assert match.name.normalized == spec.split()[0]
    assert str(match.version or "") == spec.partition(" ")[2]


# --- imports


def new_modules(code: str) -> set[str]:
    """The modules that `code` imports in a fresh interpreter."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy_and_no_network() -> None:
    loaded = new_modules("import nanochat")
    assert "nanochat" in loaded
    heavy = {"torch", "numpy", "tiktoken", "tokenizers", "matplotlib", "IPython"}
    network = {"socket", "ssl", "http.client", "urllib.request", "urllib3", "requests"}
    assert not loaded & (heavy | network)


DISTRIBUTION = {"PIL": "pillow", "IPython": "ipython", "yaml": "pyyaml"}


def packages_imported(path: Path) -> set[str]:
    """The third-party distributions that a file imports, including inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return {DISTRIBUTION.get(name, name) for name in found - {"nanochat"} - sys.stdlib_module_names}


def test_every_package_that_is_imported_is_declared() -> None:
    declared = set(RUNTIME) | set(EXTRAS["course"]) | set(EXTRAS["app"]) | set(EXTRAS["hf"])
    imported_ones = set().union(*(packages_imported(path) for path in (ROOT / "nanochat").rglob("*.py")))
    assert imported_ones <= declared


WITHOUT_COURSE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from nanochat.cli import parser
sys.exit(parser.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["ask", "What is the capital of France?", "--run", "box"], 0, "Paris"),
        (["pretrain", "--profile", "smoke", "--steps", "1", "--run", "bare"], 0, "the model is"),
        (["evaluate", "--run", "box", "--limit", "1"], 0, "Five questions"),
        (["course", "--profile", "smoke"], 2, "pip install 'nanochat[course]'"),
        (["lab"], 2, "pip install 'nanochat[course]'"),
    ],
)
def test_without_the_notebooks_packages_it_trains_and_answers(
    nanochat_home: Path, words: list[str], status: int, said: str
) -> None:
    (nanochat_home / "notebooks").mkdir()
    names = {name for name, distribution in DISTRIBUTION.items() if distribution in EXTRAS["course"]}
    program = WITHOUT_COURSE.format(packages=set(EXTRAS["course"]) | names)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_HOME": str(nanochat_home)}
    done = subprocess.run([sys.executable, "-c", program, *words], text=True, capture_output=True, env=environment)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_data_modules_do_not_load_torch() -> None:
    loaded = new_modules(
        "from nanochat import tokenizer\n"
        "from nanochat.chat import feedback\n"
        "from nanochat.data import almanac, sources, questions\n"
    )
    assert "nanochat.data.sources" in loaded
    assert "torch" not in loaded


def floor_plan() -> list[list[str]]:
    """The subpackages and modules of each layer of the package, lowest first."""
    text = (ROOT / "nanochat" / "README.md").read_text(encoding="utf-8")
    block = text.split("```\n")[1]
    return [line.partition(":")[2].split() for line in block.splitlines()]


def modules() -> dict[str, Path]:
    """Each module of the package by its name without `nanochat.`, such as `model` or `data.corpus`; subpackages too."""
    package = ROOT / "nanochat"
    files = {path.relative_to(package).with_suffix("").parts: path for path in package.rglob("*.py")}
    named = {".".join(part for part in parts if part != "__init__"): path for parts, path in files.items()}
    return {name: path for name, path in named.items() if name not in ("", "__main__")}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, including inside functions."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for top, *rest in names:
            prefixes = [".".join(rest[:length]) for length in range(len(rest), 0, -1)]
            found |= set([name for name in prefixes if top == "nanochat" and name in MODULES][:1])
    return found


MODULES = modules()
GRAPH = {name: imported(path) - {name} for name, path in MODULES.items()}


def units() -> dict[str, set[str]]:
    """What each subpackage and each top-level module imports from the others."""
    edges: dict[str, set[str]] = {name.partition(".")[0]: set() for name in GRAPH}
    for name, others in GRAPH.items():
        unit = name.partition(".")[0]
        edges[unit] |= {other.partition(".")[0] for other in others} - {unit}
    return edges


def test_the_floor_plan_names_every_room_and_module_once() -> None:
    named = [unit for floor in floor_plan() for unit in floor]
    assert sorted(named) == sorted(units()), "a new subpackage or module: give it a layer in nanochat/README.md"


def test_imports_point_downward_in_the_floor_plan() -> None:
    height = {unit: number for number, floor in enumerate(floor_plan()) for unit in floor}
    edges = units()
    upward = {(unit, other) for unit in edges for other in edges[unit] if height[other] > height[unit]}
    assert not upward


@pytest.mark.parametrize("edges", [GRAPH, units()], ids=["modules", "rooms"])
def test_imports_have_no_cycle(edges: dict[str, set[str]]) -> None:
    TopologicalSorter(edges).prepare()  # raises CycleError, which names the cycle


def test_no_module_is_over_400_lines_and_no_function_over_60() -> None:
    too_long = []
    for path in (ROOT / "nanochat").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
        too_long += [f"{path.name}: {len(text.splitlines())} lines"] if len(text.splitlines()) > 400 else []
        too_long += [f"{path.name}: {name}, {length} lines" for name, length in lengths.items() if length > 60]
    assert too_long == []


def test_the_model_does_not_know_the_tokenizer() -> None:
    assert "tokenizer" not in imported(ROOT / "nanochat" / "model.py")


# --- the other files


def test_no_text_names_a_machine() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, text=True, capture_output=True).stdout.split("\0")
    # Put together from halves so that this file passes its own test.
    folders = [
        "/wo" + "rk",
        "/tm" + "p/v",
        "/ro" + "ot",
        "/hom" + "e/[a-z]",
        "/Use" + "rs/[A-Za-z]",
        "/op" + "t/",
    ]
    machine = re.compile(r"(?<![\w.~-])(" + "|".join(folders) + r")(?![\w-])" + r"|\.\./sha" + "red")
    hits = []
    for path in (ROOT / name for name in names if name):
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        hits += [f"{path.relative_to(ROOT)}: {match.group()}" for match in machine.finditer(text)]
    assert not hits


def test_installing_takes_every_data_file_of_the_package_along() -> None:
    package = ROOT / "nanochat"
    listed = {
        path
        for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["nanochat"]
        for path in package.glob(pattern)
    }
    there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in there if path.suffix != ".py"} <= listed


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves a build/ beside what it builds
    shutil.copytree(ROOT / "nanochat", source / "nanochat", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    built = subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], text=True, capture_output=True)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    assert held == {path.relative_to(source).as_posix() for path in (source / "nanochat").rglob("*") if path.is_file()}
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata


def test_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "nanochat developers" in text
    assert PROJECT["license"] == "MIT"


def test_continuous_integration_runs_the_test_command() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()[-1] == "make test"


# --- the Makefile, in a copy whose .venv is pretended


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1000, 1000))
    return tmp_path


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = outside | variables
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, text=True, capture_output=True)


def pretend_ready(folder: Path, made_in: Path, venv: str = ".venv") -> None:
    (folder / venv).mkdir(parents=True)
    (folder / venv / ".ready").write_text(str(made_in))
    os.utime(folder / venv / ".ready", (2000, 2000))


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_make_alone_explains_every_target(checkout: Path) -> None:
    explained = make(checkout).stdout
    for target in ("course", "test", "test-fast", "test-pythons", "lab", "notebooks", "lint", "setup"):
        assert re.search(rf"^make {target} +\w", explained, re.MULTILINE), target


def test_setup_does_nothing_when_it_is_done(checkout: Path) -> None:
    pretend_ready(checkout, made_in=checkout)
    assert "install" not in make(checkout, "-n", "setup").stdout


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_setup_installs_again_when_what_it_depends_on_changed(checkout: Path, changed: str) -> None:
    pretend_ready(checkout, made_in=checkout)
    os.utime(checkout / changed, (3000, 3000))
    commands = make(checkout, "-n", "setup").stdout
    assert "install -c constraints.txt -e" in commands
    assert "venv --clear" not in commands


def test_setup_starts_over_in_a_checkout_that_was_moved(checkout: Path) -> None:
    pretend_ready(checkout, made_in=checkout / "elsewhere")
    assert "venv --clear .venv" in make(checkout, "-n", "setup").stdout


@pytest.mark.parametrize("target", ["course", "test", "test-fast", "lab", "notebooks", "lint"])
def test_every_target_sets_up_first(checkout: Path, target: str) -> None:
    assert "install -c constraints.txt -e" in make(checkout, "-n", target).stdout


def test_setup_says_which_python_is_missing(checkout: Path) -> None:
    done = make(checkout, "setup", "PYTHON=no-such-python")
    assert done.returncode == 2 and "no 'no-such-python' on this machine" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_says_which_python_is_too_old(checkout: Path) -> None:
    program(checkout / "old-python", '[ "$1" = --version ] && echo "Python 3.8.1" || exit 1')
    done = make(checkout, "setup", "PYTHON=./old-python")
    assert done.returncode == 2 and "Python 3.8.1; 3.10 or later is needed" in done.stderr
    assert not (checkout / ".venv").exists()


def test_torch_alone_comes_from_the_index_that_is_named(checkout: Path) -> None:
    commands = make(checkout, "-n", "setup", "TORCH_INDEX=https://example.org/cpu").stdout.splitlines()
    [line] = [line for line in commands if "example.org" in line]
    assert line.endswith("--no-deps --index-url https://example.org/cpu torch")


@pytest.fixture
def only_path(checkout: Path) -> str:
    """A PATH without any Python but those that the test puts into shims/ and bin/."""
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    (checkout / "tools").mkdir()
    for tool in ("bash", "cat", "dirname", "make", "sh"):
        (checkout / "tools" / tool).symlink_to(str(shutil.which(tool)))
    return os.pathsep.join(str(checkout / name) for name in ("shims", "bin", "tools"))


@pytest.mark.parametrize(
    ("outcomes", "passes"),
    [
        (["passed", "passed", "passed", "passed"], True),
        (["not found", "passed", "not found", "passed"], True),
        (["passed", "failed", "not found", "passed"], False),
        (["not found", "not found", "not found", "not found"], False),
    ],
)
def test_every_python_that_starts_runs_the_quick_tests(
    checkout: Path, only_path: str, outcomes: list[str], passes: bool
) -> None:
    for version, outcome in zip(("3.10", "3.11", "3.12", "3.13"), outcomes, strict=True):
        program(checkout / "shims" / f"python{version}", "exit 127")  # pyenv's, for a Python that is not switched on
        if outcome != "not found":
            program(checkout / "bin" / f"python{version}", "exit 0")
        pretend_ready(checkout, made_in=checkout, venv=f".venvs/{version}")
        tests = f'echo "{version}: $*"; exit {int(outcome == "failed")}'
        program(checkout / ".venvs" / version / "bin" / "python", tests)
    done = make(checkout, "test-pythons", PATH=only_path)
    assert (done.returncode == 0) is passes
    assert re.findall(r"^Python [0-9.]+: (.+)$", done.stdout, re.MULTILINE) == outcomes
    ran = re.findall(r"^([0-9.]+): -m pytest .*not slow", done.stdout, re.MULTILINE)
    assert len(ran) == len(outcomes) - outcomes.count("not found")


def test_each_python_has_a_venv_of_its_own(checkout: Path) -> None:
    pretend_ready(checkout, made_in=checkout)
    commands = make(checkout, "-n", "test-fast", "PYTHON=python3.10", "VENV=.venvs/3.10").stdout
    assert "python3.10 -m venv --clear .venvs/3.10" in commands
    assert "\n.venvs/3.10/bin/python -m pytest" in commands and ".venv/" not in commands
