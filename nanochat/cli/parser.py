"""The console script `nanochat`: everything a notebook does, one command each.

Exit status: 0 done; 1 something failed that you could not know; 2 wrong input, said in one line on stderr, nothing written;
130 interrupted, with what was trained saved and how to go on printed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__, config, paths
from ..config import MODEL_PRESETS, PROFILES, UserError
from . import commands

# --- what may be typed --------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but what is wrong comes as one line."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _number(kind: Callable[[str], Any], what: str, least: float, below: float = 2**63) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
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
    """A check that raises UserError, as an argparse type: so everything is checked before anything is done."""

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
        help=f"how much of everything: {names} (default: default)",
    )


def _add_corpus(sub: _Parser, default: str = "") -> None:
    about = f"a registered name, a file or a URL{default}"
    sub.add_argument("--corpus", type=_checked(_corpus_spec), metavar="SPEC", help=about)
    sub.add_argument(
        "--tokenizer", type=_checked(_tokenizer_spec), metavar="SPEC", help="bpe:N (trained on the corpus) or gpt2"
    )


def _add_qa(sub: _Parser) -> None:
    about = "questions and answers: a registered name, a file or a URL"
    sub.add_argument("--qa", type=_checked(_qa_spec), metavar="SPEC", help=about)


def _add_training(sub: _Parser, default_run: str) -> None:
    _add_profile(sub)
    about = f"a folder in out/ (default: {default_run})"
    sub.add_argument("--run", type=_checked(paths.new_run), metavar="NAME", help=about)
    sub.add_argument("--steps", type=_count, metavar="N", help="optimizer steps (default: the profile's)")
    sub.add_argument("--tokens", type=_count, metavar="N", help="how long, in tokens to read")
    sub.add_argument("--minutes", type=_minutes, metavar="N", help="how long, in minutes on this machine")
    sub.add_argument("--batch-size", type=_count, metavar="N", help="rows in a step (default: the profile's)")
    sub.add_argument("--seed", type=_seed, metavar="N", help="the same seed gives the same run")
    sub.add_argument("--device", type=_checked(_device), default="auto", help="auto, cpu, cuda, mps")
    sub.add_argument("--resume", action="store_true", help="go on from where the run stopped")


def _add_trained(sub: _Parser, stage_default: str = "the latest there is") -> None:
    about = f"the run to use (default: the newest; {paths.BOX}: the model that comes with nanochat)"
    sub.add_argument("--run", type=_run, metavar="NAME", help=about)
    sub.add_argument("--stage", type=_stage, help=f"{', '.join(paths.STAGES)} (default: {stage_default})")


def _add_sampling(sub: _Parser, tokens: int, temperature: float) -> None:
    sub.add_argument("--tokens", type=_count, default=tokens, help=f"at most so many new tokens ({tokens})")
    sub.add_argument("--temperature", type=_temperature, default=temperature, help=f"0 is greedy ({temperature})")
    sub.add_argument("--seed", type=_seed, default=0, help="seed of the sampling (0)")


# --- the commands -------------------------------------------------------------------------------------------------------

_Command = Callable[[Callable[[argparse.Namespace], "int | None"], str, str], _Parser]  # what it does, help, an example


def _add_making(command: _Command) -> None:
    sub = command(commands.course, "run every notebook in order and write a report", "course --profile smoke")
    _add_profile(sub)
    sub.add_argument("--run", type=_run, metavar="NAME", help="a folder in out/ (default: the profile's)")
    sub.add_argument("-p", dest="parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help="a parameter")
    sub.add_argument("--only", metavar="START", help="only the notebooks whose name starts so, for example 03")
    sub.add_argument("--reference", action="store_true", help="write the outputs back into notebooks/, for a commit")

    example = "prepare --corpus my_book.txt --tokenizer bpe:2048"
    sub = command(commands.prepare, "turn a corpus or questions and answers into token files", example)
    _add_profile(sub)
    _add_corpus(sub)
    _add_qa(sub)
    sub.add_argument(
        "--model", type=_checked(_model), help=f"whose context the questions must fit: {', '.join(MODEL_PRESETS)}"
    )

    sub = command(commands.pretrain, "train a base model on a corpus", "pretrain --model nanoGPT --steps 500")
    _add_training(sub, "the model's name")
    _add_corpus(sub, " (default: what was prepared last)")
    sub.add_argument("--model", type=_checked(_model), help=", ".join(MODEL_PRESETS))

    sub = command(commands.finetune, "teach a base model to answer", "finetune --run nano --qa my_questions.jsonl")
    _add_training(sub, "the newest base model's")
    _add_qa(sub)

    sub = command(commands.restore, "bring back what starting over set aside", "restore --run nano earlier-1")
    sub.add_argument("kept", metavar="FOLDER", help="the folder in out/NAME/ that was named when it was set aside")
    sub.add_argument("--run", type=_checked(paths.new_run), required=True, metavar="NAME", help="whose it is")


def _add_using(command: _Command) -> None:
    sub = command(commands.evaluate, "score a model on held-out questions", "evaluate --run nano --json card.json")
    _add_profile(sub)
    _add_trained(sub)
    sub.add_argument("--limit", type=_count, metavar="N", help="at most so many questions of each kind")
    sub.add_argument("--json", type=_checked(_file_to_write), metavar="PATH", help="write the report card here as well")

    sub = command(
        commands.ask, "ask one question; prints the answer and nothing else", 'ask "What is the capital of France?"'
    )
    sub.add_argument("question", metavar="QUESTION")
    sub.add_argument("--context", default="", metavar="TEXT", help="a passage to answer from")
    _add_trained(sub)
    _add_sampling(sub, tokens=64, temperature=0.0)

    sub = command(commands.sample, "continue a text", 'sample "Once upon a time" --tokens 100')
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", default="")
    _add_trained(sub, "base_model")
    _add_sampling(sub, tokens=100, temperature=0.8)
    sub.add_argument("--top-k", type=_count, metavar="N", help="draw only from the k most likely tokens")

    sub = command(commands.chat, "chat in the terminal or the browser, and rate the answers", "chat --run nano")
    _add_trained(sub)
    sub.add_argument("--web", action="store_true", help="the playground as a web page on this machine")
    sub.add_argument("--port", type=_port, metavar="N", help="of the web page (default: a free one)")

    sub = command(commands.bench, "measure speed and memory, as ratios in one run", "bench --json out/bench.json")
    sub.add_argument("--only", type=_checked(_bench_group), metavar="GROUP", help="only this group, such as generation")
    about = "write the results here as well, and a figure beside it"
    sub.add_argument("--json", type=_checked(_file_to_write), metavar="PATH", help=about)

    command(commands.lab, "open JupyterLab at the notebooks", "lab")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nanochat", description="Train your own small ChatGPT, from raw text to a chat.",
        epilog="example: nanochat course --profile smoke",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"nanochat {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(does: Callable[[argparse.Namespace], int | None], text: str, example: str) -> _Parser:
        sub = subparsers.add_parser(
            does.__name__, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: nanochat {example}"
        )
        sub.set_defaults(does=does)
        return sub

    _add_making(command)
    _add_using(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a model may say what this terminal cannot show
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser().parse_args(words, argparse.Namespace(words=words, named_profile=None))
        args.profile = args.named_profile or config.profile("default")
        status = args.does(args) or 0
        sys.stdout.flush()
    except UserError as error:
        commands.say(f"nanochat: {commands.one_line(error)}")
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith("nanochat"):
            raise
        commands.say(
            f"nanochat: {args.command} needs the package {error.name}; install what the notebooks need with: "
            "pip install 'nanochat[course]'"
        )
        return 2
    except KeyboardInterrupt:
        commands.say("nanochat: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output went away: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # disk full, not permitted and the like
        commands.say(f"nanochat: {commands.one_line(error)}")
        return 1
    return status
