"""The console script `nanochat`: one command for each thing the notebooks do.

Exit status: 0 success; 1 a failure that is not the user's; 2 wrong input, reported in one line on stderr with nothing
written; 130 interrupted, with the training saved and the command to continue it printed.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__, config, paths
from ..config import MODEL_PRESETS, PROFILES, UserError
from . import commands

# --- argument types --------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """ArgumentParser that reports errors as a UserError of one line, without the usage."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _number(convert: Callable[[str], Any], what: str, least: float, below: float = 2**63) -> Callable[[str], Any]:
    """An argparse type for numbers from `least` to `below`, exclusive; others are reported as not being `what`."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


_count = _number(int, "a whole number of at least 1", 1)
_seed = _number(int, "a whole number of at least 0", 0)
_port = _number(int, "a port, a whole number from 1 to 65535", 1, 65536)
_temperature = _number(float, "a number of at least 0", 0.0)
_minutes = _number(float, "a number of minutes above 0", 0.01, 1e6)


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """A check that raises UserError as an argparse type, so that all arguments are checked before a command starts."""

    def parse(text: str) -> Any:
        try:
            return check(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _model(name: str) -> str:
    config.model_config(name, 512)
    return name


def _corpus_spec(spec: str) -> str:
    from ..data import sources

    sources.resolve(spec)
    return spec


def _qa_spec(spec: str) -> str:
    from ..data import sources

    sources.resolve(spec, "qa")
    return spec


def _tokenizer_spec(spec: str) -> str:
    from ..tokenizer import parse_spec

    parse_spec(spec)
    return spec


def _device(name: str) -> str:
    from ..devices import pick_device

    pick_device(name)
    return name


def _bench_group(name: str) -> str:
    from ..bench import suite

    return suite.check(name)


def _file_to_write(name: str) -> Path:
    if Path(name).is_dir():
        raise UserError(f"{name!r} is a folder; name a file")
    return Path(name)


# --- the parser --------------------------------------------------------------------------------------------------------


_run, _stage = _checked(paths.safe_name), _checked(paths.stage_name)


def _add_profile(sub: _Parser) -> None:
    names = ", ".join(PROFILES)
    sub.add_argument(
        "--profile",
        type=_checked(config.profile),
        dest="named_profile",
        metavar="NAME",
        help=f"the profile that sets all defaults: {names} (default: default)",
    )


def _add_corpus(sub: _Parser, default: str = "") -> None:
    about = f"the text: a corpus name, a file or a URL{default}"
    sub.add_argument("--corpus", type=_checked(_corpus_spec), metavar="SPEC", help=about)
    sub.add_argument(
        "--tokenizer",
        type=_checked(_tokenizer_spec),
        metavar="SPEC",
        help="bpe:N (N tokens, learned from the corpus) or gpt2",
    )


def _add_qa(sub: _Parser) -> None:
    about = "the questions and answers: a data set name, a file or a URL"
    sub.add_argument("--qa", type=_checked(_qa_spec), metavar="SPEC", help=about)


def _add_training(sub: _Parser, default_run: str) -> None:
    _add_profile(sub)
    about = f"name of the run, a folder in out/ (default: {default_run})"
    sub.add_argument("--run", type=_checked(paths.new_run), metavar="NAME", help=about)
    sub.add_argument(
        "--steps", type=_count, metavar="N", help="length of the training in optimizer steps (default: the profile's)"
    )
    sub.add_argument("--tokens", type=_count, metavar="N", help="length of the training in tokens")
    sub.add_argument("--minutes", type=_minutes, metavar="N", help="length of the training in minutes, on this machine")
    sub.add_argument("--batch-size", type=_count, metavar="N", help="sequences per step (default: the profile's)")
    sub.add_argument("--seed", type=_seed, metavar="N", help="random seed; the same seed gives the same run")
    sub.add_argument("--device", type=_checked(_device), default="auto", help="auto, cpu, cuda or mps (default: auto)")
    sub.add_argument("--resume", action="store_true", help="continue a run from its last saved state")


def _add_model_choice(sub: _Parser, stage_default: str = "the latest trained") -> None:
    about = f"the run whose model to use (default: the newest; {paths.BOX}: the model bundled with nanochat)"
    sub.add_argument("--run", type=_run, metavar="NAME", help=about)
    sub.add_argument("--stage", type=_stage, help=f"{', '.join(paths.STAGES)} (default: {stage_default})")


def _add_sampling(sub: _Parser, tokens: int, temperature: float) -> None:
    sub.add_argument("--tokens", type=_count, default=tokens, help=f"maximum number of new tokens (default: {tokens})")
    sub.add_argument(
        "--temperature",
        type=_temperature,
        default=temperature,
        help=f"sampling temperature; 0 is greedy (default: {temperature})",
    )
    sub.add_argument("--seed", type=_seed, default=0, help="random seed of the sampling (default: 0)")


# --- the commands -------------------------------------------------------------------------------------------------------

_Command = Callable[[Callable[[argparse.Namespace], "int | None"], str, str], _Parser]  # function, help text, example


def _add_training_commands(command: _Command) -> None:
    sub = command(commands.course, "run all notebooks in order and write a report", "course --profile smoke")
    _add_profile(sub)
    sub.add_argument(
        "--run", type=_run, metavar="NAME", help="name of the run, a folder in out/ (default: the profile's)"
    )
    sub.add_argument(
        "-p",
        dest="parameter",
        nargs=2,
        action="append",
        metavar=("NAME", "VALUE"),
        help="set a notebook parameter (repeatable)",
    )
    sub.add_argument("--only", metavar="START", help="run only the notebooks whose name starts with this, such as 03")
    sub.add_argument("--reference", action="store_true", help="write the outputs into notebooks/, to be committed")

    example = "prepare --corpus my_book.txt --tokenizer bpe:2048"
    sub = command(commands.prepare, "tokenize a corpus, or questions and answers, into token files", example)
    _add_profile(sub)
    _add_corpus(sub)
    _add_qa(sub)
    sub.add_argument(
        "--model",
        type=_checked(_model),
        help=f"the model whose context must hold the questions: {', '.join(MODEL_PRESETS)}",
    )

    sub = command(commands.pretrain, "train a base model on a corpus", "pretrain --model nanoGPT --steps 500")
    _add_training(sub, "the model's name")
    _add_corpus(sub, " (default: the one prepared last)")
    sub.add_argument("--model", type=_checked(_model), help=", ".join(MODEL_PRESETS))

    sub = command(
        commands.finetune, "finetune a base model to answer questions", "finetune --run nano --qa my_questions.jsonl"
    )
    _add_training(sub, "the newest base model's")
    _add_qa(sub)

    sub = command(
        commands.restore, "restore the files set aside when a run was started over", "restore --run nano earlier-1"
    )
    sub.add_argument("kept", metavar="FOLDER", help="the folder in out/NAME/ they were moved to, such as earlier-1")
    sub.add_argument(
        "--run", type=_checked(paths.new_run), required=True, metavar="NAME", help="the run they belong to"
    )


def _add_model_commands(command: _Command) -> None:
    sub = command(commands.evaluate, "score a model on held-out questions", "evaluate --run nano --json card.json")
    _add_profile(sub)
    _add_model_choice(sub)
    sub.add_argument("--limit", type=_count, metavar="N", help="maximum number of questions of each skill and split")
    sub.add_argument(
        "--json", type=_checked(_file_to_write), metavar="PATH", help="also write the report card to this file"
    )

    sub = command(commands.ask, "answer one question and print nothing else", 'ask "What is the capital of France?"')
    sub.add_argument("question", metavar="QUESTION", help="the question to answer")
    sub.add_argument("--context", default="", metavar="TEXT", help="a passage that the question is about")
    _add_model_choice(sub)
    _add_sampling(sub, tokens=64, temperature=0.0)

    sub = command(commands.sample, "continue a text", 'sample "Once upon a time" --tokens 100')
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", default="", help="the text to continue (default: none)")
    _add_model_choice(sub, "base_model")
    _add_sampling(sub, tokens=100, temperature=0.8)
    sub.add_argument("--top-k", type=_count, metavar="N", help="sample only from the N most likely tokens")

    sub = command(commands.chat, "chat in the terminal or the browser, and rate the answers", "chat --run nano")
    _add_model_choice(sub)
    sub.add_argument("--web", action="store_true", help="serve the playground as a web page on this machine")
    sub.add_argument("--port", type=_port, metavar="N", help="port of the web page (default: a free one)")

    sub = command(
        commands.bench,
        "benchmark this machine and print the results next to the targets",
        "bench --json out/bench.json",
    )
    sub.add_argument(
        "--only",
        type=_checked(_bench_group),
        metavar="GROUP",
        help="run only this group of benchmarks, such as generation",
    )
    about = "also write the results to this file, and a figure next to it"
    sub.add_argument("--json", type=_checked(_file_to_write), metavar="PATH", help=about)

    command(commands.lab, "open the notebooks in JupyterLab", "lab")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nanochat", description="Train your own small ChatGPT, from raw text to a chat.",
        epilog="example: nanochat course --profile smoke",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"nanochat {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(function: Callable[[argparse.Namespace], int | None], text: str, example: str) -> _Parser:
        sub = subparsers.add_parser(
            function.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: nanochat {example}",
        )
        sub.set_defaults(function=function)
        return sub

    _add_training_commands(command)
    _add_model_commands(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model may generate characters that this terminal cannot show
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(words, argparse.Namespace(words=words, named_profile=None))
        args.profile = args.named_profile or config.profile("default")
        status = args.function(args) or 0
        sys.stdout.flush()
    except UserError as error:
        commands.say(f"nanochat: {commands.one_line(error)}")
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith("nanochat"):
            raise
        commands.say(
            f"nanochat: {args.command} needs the package {error.name}; install the notebook packages with: "
            "pip install 'nanochat[course]'"
        )
        return 2
    except KeyboardInterrupt:
        commands.say("nanochat: interrupted")
        return 130
    except BrokenPipeError:  # the program reading our output has exited, so there is nobody to report to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a full disk or missing permissions
        commands.say(f"nanochat: {commands.one_line(error)}")
        return 1
    return status
