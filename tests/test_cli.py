"""The console script: what each command prints, writes and returns."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import home
import pytest

from nanochat import checkpoint, config, devices, generate, loading, paths
from nanochat.cli import parser as cli
from nanochat.course import run as course
from nanochat.data import corpus as corpus_files
from nanochat.data import questions as qa
from nanochat.train import budget, runfiles, stages
from nanochat.trainer import StepReport

COMMANDS = ("course", "prepare", "pretrain", "finetune", "evaluate", "ask", "sample", "chat", "lab")
TINY = {"arch": "modern", "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
TRAINING = ("--steps", "6", "--batch-size", "2", "--device", "cpu")
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "execution_count": None, "outputs": [],
            "source": 'profile: str = "default"\nsteps: int = 0\nminutes: float = 0.0\ncorpus: str = ""\n',
        }
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project folder with a run trained by commands alone, from text to answers, and the output of these commands."""
    folder = tmp_path_factory.mktemp("made")
    home.write_corpus(folder)
    home.write_questions(folder)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01_only.ipynb").write_text(json.dumps(NOTEBOOK))
    with pytest.MonkeyPatch.context() as patch:
        _settle(patch, folder)
        for words in (
            ["prepare", "--corpus", "stories.txt", "--tokenizer", "bpe:300", "--qa", "animals.json", "--model", "tiny"],
            ["pretrain", "--model", "tiny", "--run", "r", *TRAINING],
            ["finetune", "--qa", "animals.json", *TRAINING],
        ):
            assert cli.main(words) == 0, words
    return folder


def _settle(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("NANOCHAT_HOME", str(folder))
    patch.chdir(folder)
    patch.setitem(config.MODEL_PRESETS, "tiny", TINY)
    patch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of `made` that is also the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    _settle(monkeypatch, folder)
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A project folder with a text and questions, but nothing prepared."""
    _settle(monkeypatch, tmp_path)
    home.write_corpus(tmp_path)
    home.write_questions(tmp_path)
    return tmp_path


@pytest.fixture
def nanochat(capsys):
    """Run a command; returns (exit status, stdout, stderr)."""

    def nanochat(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(list(words))
        return (status, *capsys.readouterr())

    return nanochat


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_ends_with_an_example_that_can_be_typed(command, empty, capsys):
    (empty / "my_book.txt").write_text("A book.")
    (empty / "my_questions.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(SystemExit) as leaving:
        cli.main([command, "--help"])
    assert leaving.value.code == 0
    example = capsys.readouterr().out.strip().splitlines()[-1]
    assert example.startswith(f"example: nanochat {command}")
    assert cli._parser().parse_args(shlex.split(example)[2:]).command == command


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"\n    {command} " in listed for command in COMMANDS)


def test_every_command_of_the_readme_can_be_typed(empty):
    readme = Path(__file__).resolve().parent.parent / "README.md"
    typed = re.findall(r"^nanochat .+$", readme.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(typed) >= 5
    for command in typed:
        words = shlex.split(command, comments=True)[1:]
        for name in words:
            if Path(name).suffix in (".txt", ".json", ".jsonl"):
                Path(name).write_text("something")
        cli._parser().parse_args(words)


def test_nothing_heavy_is_loaded_before_a_command_needs_it():
    heavy = {"torch", "numpy", "tiktoken", "tokenizers", "matplotlib", "papermill", "IPython", "requests"}
    script = (
        "import sys; from nanochat.cli import parser as cli; "
        "assert cli.main(['pretrain', '--steps', '-5']) == cli.main(['pretrain', '--model', 'x']) == 2; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.split())


# --- wrong input ------------------------------------------------------------------------------------------------------

WRONG = {
    "no command": ([], "COMMAND"),
    "unknown command": (["trian"], "invalid choice: 'trian'"),
    "unknown option": (["ask", "hi", "--loud"], "--loud"),
    "unknown model": (["pretrain", "--model", "nanoGTP"], "did you mean 'nanoGPT'"),
    "unknown model for questions": (["prepare", "--qa", "animals.json", "--model", "nan"], "did you mean 'nano'"),
    "unknown profile": (["pretrain", "--profile", "smok"], "did you mean 'smoke'"),
    "unknown corpus": (["prepare", "--corpus", "tiny_shakespear"], "did you mean 'tiny_shakespeare'"),
    "unknown corpus for training": (["pretrain", "--corpus", "tiny_shakespear"], "did you mean 'tiny_shakespeare'"),
    "unknown questions": (["finetune", "--qa", "squad"], "did you mean 'squad_v2'"),
    "unknown stage": (["evaluate", "--stage", "base"], "did you mean 'base_model'"),
    "unknown tokenizer": (["prepare", "--corpus", "stories.txt", "--tokenizer", "gpt3"], "gpt3"),
    "tokenizer too small": (["prepare", "--corpus", "stories.txt", "--tokenizer", "bpe:9"], "bpe:9"),
    "unknown device": (["pretrain", "--device", "cuda:99"], "cuda:99"),
    "missing corpus": (["prepare", "--corpus", "missing.txt"], "there is no file 'missing.txt'"),
    "missing questions": (["prepare", "--corpus", "stories.txt", "--qa", "missing.json"], "'missing.json'"),
    "folder as corpus": (["prepare", "--corpus", "data/"], "is a folder"),
    "malformed corpus": (["prepare", "--corpus", "malformed.json"], "malformed.json"),
    "malformed questions": (["prepare", "--qa", "malformed.json"], "malformed.json"),
    "malformed lines": (["finetune", "--run", "r", "--qa", "malformed.jsonl"], "malformed.jsonl"),
    "a corpus with malformed questions": (["prepare", "--corpus", "b.txt", "--qa", "malformed.json"], "malformed.json"),
    "empty corpus": (["prepare", "--corpus", "empty.txt"], "empty.txt"),
    "blank corpus": (["pretrain", "--corpus", "blank.txt"], "blank.txt"),
    "no steps": (["pretrain", "--steps", "0"], "'0' is not a whole number of at least 1"),
    "negative steps": (["finetune", "--steps", "-5"], "'-5' is not a whole number of at least 1"),
    "half a step": (["pretrain", "--steps", "1.5"], "'1.5' is not a whole number"),
    "no minutes": (["pretrain", "--minutes", "0"], "'0' is not a number of minutes above 0"),
    "minutes that are no number": (["finetune", "--minutes", "nan"], "'nan' is not a number of minutes"),
    "no tokens to read": (["pretrain", "--tokens", "0"], "'0' is not a whole number of at least 1"),
    "minutes for a run that has begun": (["pretrain", "--run", "r", "--resume", "--minutes", "5"], "with more --steps"),
    "tokens for a run that has begun": (["finetune", "--run", "r", "--resume", "--tokens", "5"], "with more --steps"),
    "negative batch": (["pretrain", "--batch-size", "-1"], "--batch-size"),
    "negative seed": (["pretrain", "--seed", "-1"], "--seed"),
    "seed beyond all": (["ask", "hi", "--seed", str(2**70)], "--seed"),
    "no tokens": (["sample", "--tokens", "0"], "--tokens"),
    "negative temperature": (["ask", "hi", "--temperature", "-1"], "--temperature"),
    "temperature that is no number": (["ask", "hi", "--temperature", "nan"], "--temperature"),
    "infinite temperature": (["ask", "hi", "--temperature", "inf"], "--temperature"),
    "no top": (["sample", "--top-k", "0"], "--top-k"),
    "run outside": (["pretrain", "--run", "../x"], "'../x' cannot be the name of a run"),
    "run outside to ask": (["ask", "hi", "--run", "../r"], "'../r' cannot be the name of a run"),
    "run outside in the course": (["course", "--run", "a/b"], "'a/b' cannot be the name of a run"),
    "run without a name": (["pretrain", "--run", ""], "'' cannot be the name of a run"),
    "unknown run": (["ask", "hi", "--run", "nobody"], "trained so far: r (fine_tuned), r (base_model)"),
    "no base model": (["finetune", "--run", "new", "--qa", "animals.json"], "nanochat pretrain --run new"),
    "nothing to resume": (["pretrain", "--run", "new", "--resume"], "no pretraining to resume"),
    "no finetuning to resume": (["finetune", "--run", "new", "--resume"], "no finetuning to resume"),
    "stage that was not trained": (["evaluate", "--stage", "aligned"], "no trained model at stage 'aligned'"),
    "no question": (["ask", ""], "the question is empty"),
    "blank question": (["ask", " \n"], "the question is empty"),
    "card into a folder": (["evaluate", "--json", "data"], "'data' is a folder"),
    "another tokenizer than the model's": (
        ["pretrain", "--run", "r", "--resume", "--tokenizer", "bpe:280"], "began with tokenizer bpe:300, not bpe:280"
    ),
    "another corpus than the model's": (
        ["pretrain", "--run", "r", "--resume", "--corpus", "b.txt"], "began with corpus stories, not b;"
    ),
    "another model": (
        ["pretrain", "--run", "r", "--resume", "--model", "very_small_for_test", "--batch-size", "2"], "began with model"
    ),
    "another batch": (["pretrain", "--run", "r", "--resume", "--batch-size", "3"], "batch_size 2, now it is 3"),
    "other questions than the model's": (
        ["finetune", "--run", "r", "--resume", "--qa", "almanac"], "animals.json, not almanac; leave out --qa or --resume"
    ),
    "another tokenizer than the corpus has": (
        ["prepare", "--qa", "animals.json", "--tokenizer", "bpe:280"], "has tokenizer bpe:300, not bpe:280"
    ),
    "unknown parameter": (["course", "-p", "stepz", "5"], "did you mean 'steps'"),
    "parameter of a wrong type": (["course", "-p", "steps", "many"], "steps must be of type int"),
    "negative parameter": (["course", "-p", "steps", "-5"], "steps must be at least 0"),
    "negative time": (["course", "-p", "minutes", "-5"], "minutes must be at least 0"),
    "unknown corpus of the course": (["course", "-p", "corpus", "missing.txt"], "there is no file 'missing.txt'"),
    "unknown model of the course": (["course", "-p", "model", "nanoGTP"], "did you mean 'nanoGPT'"),
    "unknown notebook": (["course", "--only", "08"], "unknown notebook '08'"),
    "reference with parameters": (["course", "--reference", "-p", "steps", "5"], "leave out --profile, --run and -p"),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_bad_files(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "project"
    shutil.copytree(made, folder)
    (folder / "malformed.json").write_text('[{"question": "Who?", "answer": "Me"}, {"question": "Wh')
    (folder / "malformed.jsonl").write_text('{"question": "Who?", "answer": "Me."}\n{"question"\n')
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\n")
    shutil.copy(folder / "stories.txt", folder / "b.txt")
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_on_stderr_status_2_and_nothing_is_written(name, with_bad_files, monkeypatch, nanochat):
    words, message = WRONG[name]
    _settle(monkeypatch, with_bad_files)
    before = tree(with_bad_files)
    status, out, err = nanochat(*words)
    assert (status, out) == (2, "")
    assert err.startswith("nanochat: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err
    assert tree(with_bad_files) == before


@pytest.mark.parametrize("words", [["evaluate"], ["ask", "hi"], ["sample"], ["chat"], ["finetune"]])
def test_without_any_model_the_command_that_trains_one_is_named(words, nanochat_home, nanochat):
    status, out, err = nanochat(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "`nanochat course` trains one" in err
    assert not tree(nanochat_home)


def test_what_the_system_refuses_is_one_line_and_status_1(project, nanochat):
    shutil.rmtree("out")
    Path("out").write_text("a file where the folder should be")
    status, out, err = nanochat("pretrain", "--model", "tiny", *TRAINING)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("nanochat: ") and "Traceback" not in err


# --- from text to answers ---------------------------------------------------------------------------------------------


def test_the_commands_leave_what_the_design_says(made):
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files >= {
        "data/stories/pretrain_train.bin", "data/stories/pretrain_val.bin", "data/stories/meta.json",
        "data/animals_qa/qa_train.bin", "data/animals_qa/qa_val.bin", "out/r/r_base_model.pt", "out/r/r_fine_tuned.pt",
        "out/r/base_model_last.pt", "out/r/fine_tuned_last.pt", "out/r/metrics.jsonl",
    }  # fmt: skip


def test_prepare_tells_where_and_how_much(empty, nanochat):
    status, out, _ = nanochat("prepare", "--corpus", "stories.txt", "--tokenizer", "bpe:300", "--qa", "animals.json")
    assert status == 0
    corpus, questions = out.splitlines()
    meta = corpus_files.load_corpus(empty / "data" / "stories").meta
    assert corpus.startswith(str(empty / "data" / "stories"))
    assert f"{meta['train']['tokens']:,} training" in corpus and "tokenizer bpe:300" in corpus
    assert questions.startswith(str(empty / "data" / "animals_qa")) and "0 dropped" in questions


def test_ask_prints_the_answer_and_nothing_else(project, nanochat):
    expected = loading.answer(loading.load("r", "fine_tuned", "cpu"), [qa.ask("Who met the cat and the dog?")])
    assert nanochat("ask", "Who met the cat and the dog?") == (0, f"{expected[0]}\n", "")


def test_ask_reads_the_passage_and_says_when_not_all_of_it_fits(project, nanochat):
    passage = "The cat met the dog. " * 20
    prompt = qa.render_prompt(qa.ask("Who?", context=passage), loading.load("r", device="cpu").tokenizer)
    status, out, err = nanochat("ask", "Who?", "--context", passage)
    assert status == 0 and out.endswith("\n")
    assert (
        err == f"the prompt has {len(prompt)} tokens, more than the context holds: the model reads only the last 32\n"
    )


def test_sample_continues_the_text_with_the_base_model_and_a_seed_repeats_it(project, nanochat):
    words = ("sample", "The cat", "--tokens", "12")
    status, out, err = nanochat(*words)
    assert (status, err) == (0, "") and out.startswith("The cat")
    assert nanochat(*words)[1] == out
    assert len({nanochat(*words, "--seed", str(seed))[1] for seed in range(4)}) > 1
    Path("out/r/r_base_model.pt").unlink()
    assert nanochat(*words)[0] == 2


def test_sample_without_a_text_starts_a_document(project, nanochat):
    loaded = loading.load("r", "base_model", "cpu")
    ids = generate.generate(loaded.model, [[loaded.tokenizer.eot]], max_new_tokens=9, stop={loaded.tokenizer.eot})
    status, out, _ = nanochat("sample", "--tokens", "9", "--temperature", "0")
    assert (status, out) == (0, f"{loaded.tokenizer.decode(ids[0])}\n")


def test_evaluate_prints_the_card_and_writes_it_as_json(project, nanochat):
    status, out, _ = nanochat("evaluate", "--limit", "3", "--json", "cards/card.json")
    card = json.loads(Path("cards/card.json").read_text())
    assert status == 0
    assert (card["run"], card["stage"], card["questions"]["asked"]) == ("r", "fine_tuned", 3)
    assert "**r, fine_tuned.**" in out and "Five questions" in out


def test_evaluate_prints_text_for_a_terminal_without_the_escapes_of_markdown(project, nanochat, monkeypatch):
    priced = [{"question": "A | B?", "answer": "$5 & <b>", "right": False}]
    monkeypatch.setattr("nanochat.evaluation.card.five_questions", lambda loaded: priced)
    status, out, _ = nanochat("evaluate", "--limit", "3")
    assert status == 0 and "| A | B? | $5 & <b> | no |" in out


def test_chat_answers_in_the_terminal(project, nanochat, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who met the cat?\n/quit\n"))
    status, out, _ = nanochat("chat", "--run", "r")
    assert status == 0
    assert out.startswith("r (fine_tuned)") and "bot: " in out and "Goodbye" in out


def test_lab_opens_the_notebooks(project, nanochat, monkeypatch):
    became = []
    monkeypatch.setattr(os, "execv", lambda *given: became.append((*given, os.environ["NANOCHAT_HOME"])))
    monkeypatch.chdir(project.parent)
    monkeypatch.setenv("NANOCHAT_HOME", project.name)
    assert nanochat("lab")[0] == 0
    [(program, words, home)] = became
    assert home == str(project), "its kernels, which run in another folder, have another project"
    assert program == words[0] == sys.executable
    assert words[-1] == str(project / "notebooks")
    subprocess.run([program, *words[1:3], "--version"], check=True, capture_output=True)


def test_a_letter_that_the_terminal_lacks_becomes_a_question_mark(project, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["sample", "Ein Bär", "--tokens", "3"]) == 0
    assert raw.getvalue().startswith(b"Ein B?r")


def test_bytes_that_are_no_text_are_no_crash(project, nanochat):
    status, _, err = nanochat("ask", os.fsdecode(b"what is \xff?"))
    assert status in (0, 2) and err.count("\n") <= 1


def test_as_a_program_it_prints_the_same_and_returns_the_status(project):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "nanochat"]
    asked = subprocess.run([*command, "ask", "Who?"], capture_output=True, text=True, env=environment)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == loading.answer(loading.load("r", device="cpu"), [qa.ask("Who?")])[0] + "\n"
    wrong = subprocess.run([*command, "ask", ""], capture_output=True, text=True, env=environment)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_goes_away_is_no_error_to_talk_about(project):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "nanochat", "prepare", "--corpus", "stories.txt", "--tokenizer", "bpe:300"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# --- which corpus, which run ------------------------------------------------------------------------------------------


def test_pretrain_takes_what_was_prepared_last_and_says_so(project, nanochat):
    shutil.copy("stories.txt", "other.txt")
    nanochat("prepare", "--corpus", "other.txt", "--tokenizer", "bpe:280")
    status, _, err = nanochat("pretrain", "--model", "tiny", *TRAINING)
    meta = checkpoint.read_meta(paths.checkpoint_path("tiny", "base_model"))
    assert status == 0
    assert err.startswith("pretraining on other, the corpus prepared last")
    assert (meta["corpus"], meta["run"]) == ("other", "tiny")  # the run is named after the model


def test_pretrain_on_a_named_corpus_takes_the_tokenizer_it_was_prepared_with(project, nanochat):
    shutil.copy("stories.txt", "other.txt")
    nanochat("prepare", "--corpus", "other.txt")
    assert nanochat("pretrain", "--corpus", "stories.txt", "--model", "tiny", "--run", "new", *TRAINING)[0] == 0
    meta = checkpoint.read_meta(paths.checkpoint_path("new", "base_model"))
    assert meta["corpus"] == "stories"
    assert corpus_files.load_corpus(project / "data" / "stories").meta["tokenizer_spec"] == "bpe:300"


def test_another_tokenizer_prepares_the_corpus_anew(project, nanochat):
    assert nanochat("pretrain", "--tokenizer", "bpe:280", "--model", "tiny", "--run", "new", *TRAINING)[0] == 0
    assert corpus_files.load_corpus(project / "data" / "stories").meta["tokenizer_spec"] == "bpe:280"
    assert loading.load("new", device="cpu").tokenizer.vocab_size <= 280


def test_a_profile_names_its_run(project, nanochat, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "pretrain", lambda run, corpus, **options: seen.append((run, options["model"])) or [])
    for words in (["--profile", "smoke"], ["--profile", "smoke", "--model", "tiny"], ["--run", "mine"], []):
        assert nanochat("pretrain", *words)[0] == 0
    assert seen == [("smoke", "nano"), ("tiny", "tiny"), ("mine", "nano"), ("nano", "nano")]


def test_training_says_what_it_kept_of_an_earlier_model_and_where_the_new_one_is(project, nanochat):
    status, out, err = nanochat("pretrain", "--model", "tiny", "--run", "r", *TRAINING)
    assert (status, out) == (0, "")
    assert (
        "The previous pretraining and finetuning of run 'r' moved to earlier-1; `nanochat restore --run r earlier-1`"
        in err
    )
    assert err.splitlines()[-1].endswith(str(project / "out" / "r" / "r_base_model.pt"))


# --- interrupt and resume ---------------------------------------------------------------------------------------------


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once, while the batch of this step is made."""
    left = [signal.SIGINT]

    def interrupted(original):
        def batch(*args, **options):
            if options["step"] == step and left:
                os.kill(os.getpid(), left.pop())
            return original(*args, **options)

        return batch

    for module, name in ((corpus_files, "batch"), (qa, "qa_batch")):
        monkeypatch.setattr(module, name, interrupted(getattr(module, name)))


def shown_command(err: str) -> list[str]:
    [line] = [line for line in err.splitlines() if "continue with: " in line]
    words = shlex.split(line.partition("continue with: ")[2])
    assert words[0] == "nanochat"
    return words[1:]


@pytest.mark.parametrize(
    ("words", "run", "stage"),
    [
        (["pretrain", "--model", "tiny", "--run", "two words".replace(" ", "-"), *TRAINING], "two-words", "base_model"),
        (["pretrain", "--model", "tiny", "--corpus", "stories.txt", *TRAINING], "tiny", "base_model"),
        (["finetune", "--qa", "animals.json", *TRAINING], "r", "fine_tuned"),
    ],
)
def test_ctrl_c_saves_and_shows_a_command_that_goes_on(project, nanochat, monkeypatch, words, run, stage):
    interrupt_at(3, monkeypatch)
    status, out, err = nanochat(*words)
    assert (status, out) == (130, "")
    assert checkpoint.load_file(paths.last_path(run, stage))["step"] == 4
    again = shown_command(err)
    # meanwhile something else is prepared: the run must not notice
    shutil.copy("stories.txt", "other.txt")
    nanochat("prepare", "--corpus", "other.txt", "--tokenizer", "bpe:280")
    assert nanochat(*again)[0] == 0
    assert checkpoint.load_file(paths.last_path(run, stage))["step"] == 6
    assert [r["step"] for r in runfiles.read_metrics(run) if r["stage"] == stage] == list(range(7))


def test_an_interrupted_resume_shows_a_command_that_needs_nothing_more(project, nanochat, monkeypatch):
    interrupt_at(7, monkeypatch)
    words = ["pretrain", "--run", "r", "--resume", "--steps", "10", "--batch-size", "2"]
    status, _, err = nanochat(*words)
    assert status == 130
    again = shown_command(err)
    assert again == ["pretrain", "--run", "r", "--resume"]  # the rest is in the state, ten steps included
    assert nanochat(*again)[0] == 0
    assert [r["step"] for r in runfiles.read_metrics("r") if r["stage"] == "base_model"] == list(range(11))


def test_a_run_resumes_although_its_corpus_was_prepared_differently_since(project, nanochat, monkeypatch):
    interrupt_at(3, monkeypatch)
    status, _, err = nanochat("pretrain", "--model", "tiny", "--run", "mine", "--corpus", "stories.txt", *TRAINING)
    assert status == 130
    assert nanochat("prepare", "--corpus", "stories.txt", "--tokenizer", "bpe:280")[0] == 0
    status, _, again = nanochat(*shown_command(err))
    assert status == 0, again
    assert "stories has been prepared differently since run 'mine' began; preparing it again as it was" in again
    assert [r["step"] for r in runfiles.read_metrics("mine")] == list(range(7))


def test_a_run_that_an_earlier_version_began_resumes(project, nanochat):
    """Its state knows nothing of the settings and the metadata that came later."""
    path = paths.last_path("r", "base_model")
    state = checkpoint.load_file(path)
    del state["meta"]["prepared"], state["settings"]["grad_accum"]
    checkpoint.save_file(path, state)
    status, _, err = nanochat("pretrain", "--run", "r", "--resume", "--steps", "8")
    assert status == 0, err
    assert runfiles.read_metrics("r")[-1]["step"] == 8


def test_a_finetuning_resumes_although_its_file_is_gone(project, nanochat, monkeypatch):
    interrupt_at(3, monkeypatch)
    status, _, err = nanochat("finetune", "--qa", "animals.json", *TRAINING)
    assert status == 130
    (project / "animals.json").unlink()
    status, _, again = nanochat(*shown_command(err))
    assert status == 0, again
    assert [r["step"] for r in runfiles.read_metrics("r") if r["stage"] == "fine_tuned"] == list(range(7))


def test_the_command_that_continues_a_training_limited_in_tokens_works(project, nanochat, monkeypatch):
    interrupt_at(2, monkeypatch)
    how = ("pretrain", "--model", "tiny", "--run", "mine", "--tokens", "300", "--batch-size", "2")
    status, _, err = nanochat(*how)
    assert status == 130
    assert nanochat(*shown_command(err))[0] == 0
    assert runfiles.read_metrics("mine")[-1]["step"] == runfiles.read_metrics("mine")[-1]["total"] == 5


def test_ctrl_c_before_anything_is_saved_promises_nothing(project, nanochat, monkeypatch):
    def prepare_corpus(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus_files, "prepare_corpus", prepare_corpus)
    assert nanochat("prepare", "--corpus", "stories.txt") == (130, "", "nanochat: interrupted\n")


@pytest.mark.parametrize("stage", ["base_model", "fine_tuned"])
def test_resume_needs_no_more_than_the_name_of_the_run(project, nanochat, monkeypatch, stage):
    """Corpus, questions, model, seed, batch size, learning rates and number of steps are those the run began with."""
    interrupt_at(2, monkeypatch)
    how = ("--profile", "long", "--steps", "5", "--seed", "7", "--batch-size", "3", "--run", "r")
    if stage == "base_model":
        words = ("pretrain", *how, "--model", "tiny", "--corpus", "stories.txt")
    else:
        words = ("finetune", *how, "--qa", "animals.json")
    assert nanochat(*words)[0] == 130
    begun = checkpoint.load_file(paths.last_path("r", stage))["settings"]
    assert nanochat(words[0], "--run", "r", "--resume")[0] == 0
    state = checkpoint.load_file(paths.last_path("r", stage))
    assert (state["step"], state["settings"]) == (5, begun)
    assert (begun["batch_size"], begun["seed"]) == (3, 7)
    assert begun["lr_scale"] == (1.0 if stage == "base_model" else config.profile("long").stages[stage].lr_scale)


def test_a_run_made_longer_and_interrupted_again_goes_on_to_its_new_end(project, nanochat, monkeypatch):
    """Even if no better weights were saved meanwhile, so that the saved ones name the old number of steps."""
    worse = iter(range(10, 1000))
    monkeypatch.setattr(stages, "mean_loss", lambda *args: {"val_loss": float(next(worse))})
    interrupt_at(8, monkeypatch)
    assert nanochat("pretrain", "--run", "r", "--resume", "--steps", "12")[0] == 130
    assert nanochat("pretrain", "--run", "r", "--resume")[0] == 0
    assert checkpoint.read_meta(paths.checkpoint_path("r", "base_model"))["steps"] == 6
    assert runfiles.read_metrics("r")[-1]["step"] == 12


def test_another_profile_than_it_was_begun_with_is_refused(project, nanochat):
    status, _, err = nanochat("finetune", "--run", "r", "--resume", "--steps", "9", "--profile", "long")
    assert (status, err.count("\n")) == (2, 1)
    assert "the saved training began with batch_size 2, now it is 16" in err


def test_ctrl_c_while_steps_are_tried_promises_nothing_of_the_run_before(project, nanochat, monkeypatch):
    def try_out(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(budget, "try_out", try_out)
    before = tree(project / "out" / "r")
    status, _, err = nanochat("pretrain", "--model", "tiny", "--run", "r", "--minutes", "1")
    assert status == 130 and "continue with" not in err
    assert tree(project / "out" / "r") == before


def test_a_profile_that_is_named_is_not_overruled_by_what_was_prepared_last(project, nanochat, monkeypatch):
    asked = []
    monkeypatch.setattr(
        corpus_files, "prepare_corpus", lambda corpus, tokenizer, **options: asked.append((corpus, tokenizer))
    )
    monkeypatch.setattr(stages, "pretrain", lambda *args, **options: [])
    assert nanochat("pretrain", "--profile", "gpu", "--run", "new")[0] == 0
    assert nanochat("pretrain", "--profile", "default", "--run", "new")[0] == 0
    assert asked == [("TinyStories", "gpt2"), ("almanac", "bpe:1024")]


@pytest.mark.parametrize(("command", "stage"), [("pretrain", "base_model"), ("finetune", "fine_tuned")])
def test_resume_with_more_steps_trains_longer(project, nanochat, command, stage):
    assert nanochat(command, "--resume", "--run", "r", "--batch-size", "2", "--steps", "8")[0] == 0
    assert [r["step"] for r in runfiles.read_metrics("r") if r["stage"] == stage] == list(range(9))


def test_how_long_can_be_said_in_tokens(project, nanochat):
    status, _, err = nanochat("pretrain", "--model", "tiny", "--run", "new", "--tokens", "200", "--batch-size", "2")
    assert status == 0, err
    assert [r["step"] for r in runfiles.read_metrics("new")] == list(range(5))  # 200 tokens are 3.1 steps of 2 x 32


def test_how_long_can_be_said_in_minutes_and_a_resume_goes_by_the_steps_that_they_were(project, nanochat, monkeypatch):
    monkeypatch.setattr(budget, "try_out", lambda *args: 1.0)  # so that two minutes are 113 steps
    interrupt_at(3, monkeypatch)
    how = ("--model", "tiny", "--run", "new", "--batch-size", "2")
    status, _, err = nanochat("pretrain", *how, "--minutes", "2")
    assert status == 130 and "113 steps of 64 tokens at 1.00 s: about 2 min" in err
    assert checkpoint.load_file(paths.last_path("new", "base_model"))["step"] == 4
    assert nanochat("pretrain", *how, "--resume")[0] == 0
    assert runfiles.read_metrics("new")[-1]["step"] == 113


def test_resume_of_what_is_done_says_so(project, nanochat):
    before = tree(project / "out" / "r")
    status, out, err = nanochat("pretrain", "--resume", "--run", "r", "--batch-size", "2")
    assert (status, out) == (0, "") and "already been trained for 6 steps" in err
    after = tree(project / "out" / "r")
    assert after == before


# --- the course -------------------------------------------------------------------------------------------------------


def test_course_passes_its_options_on(monkeypatch, nanochat):
    seen = []
    monkeypatch.setattr(course, "run", lambda **options: seen.append(options))
    words = ["--profile", "smoke", "--run", "007", "-p", "steps", "5", "-p", "corpus", "x.txt", "--only", "03"]
    assert nanochat("course", *words) == (0, "", "")
    assert seen == [
        {
            "profile": "smoke", "run": "007", "parameters": {"steps": "5", "corpus": "x.txt"}, "only": "03",
            "reference": False,
        }
    ]  # fmt: skip


def test_a_notebook_that_fails_is_one_line_and_status_1(monkeypatch, nanochat):
    def run(**options):
        raise course.CourseError("03_pretraining.ipynb, cell [4]: ValueError: a\nb")

    monkeypatch.setattr(course, "run", run)
    assert nanochat("course") == (1, "", "nanochat: 03_pretraining.ipynb, cell [4]: ValueError: a b\n")


# --- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_preparing_shows_how_far_it_is_only_where_somebody_watches(empty, monkeypatch):
    big = "\n\n".join(["The cat met the dog and the hen."] * 70_000)
    Path("big.txt").write_text(big)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert cli.main(["prepare", "--corpus", "big.txt", "--tokenizer", "bpe:280"]) == 0
    assert re.search(r"\r\x1b\[2K *[1-9]\d?% reading", screen.getvalue())
    assert screen.getvalue().endswith("is prepared\n")


def test_reports_reach_the_log_as_lines(project, nanochat):
    _, _, err = nanochat("pretrain", "--model", "tiny", "--run", "new", *TRAINING)
    lines = [line for line in err.splitlines() if line.startswith("base_model ")]
    assert lines[0].startswith("base_model 0/6  validation ") and lines[-1].startswith("base_model 6/6  loss ")
    assert "\r" not in err and StepReport.__name__ not in err
