"""The console script `nanochat`: everything a notebook does, one command each.

Exit status: 0 done; 1 something failed that you could not know; 2 wrong input, said in one line on stderr, nothing written;
130 interrupted, with everything saved and how to go on printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, config, paths
from .config import MODEL_PRESETS, PROFILES, UserError


class _Parser(argparse.ArgumentParser):
    """argparse, but what is wrong comes as one line."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _number(kind: Callable[[str], Any], what: str, least: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


_count = _number(int, "a whole number of at least 1", 1)
_seed = _number(int, "a whole number of at least 0", 0)
_temperature = _number(float, "a number of at least 0", 0.0)


def _run_name(args: argparse.Namespace) -> str:
    return paths.safe_name(args.run or getattr(args, "model", None) or "nano")


def _prepare(args: argparse.Namespace) -> None:
    from . import corpora, dataset

    profile = config.profile(args.profile)
    corpus, questions = args.corpus, args.qa
    if corpus is None and questions is None:
        corpus, questions = profile.corpus, profile.qa
    if corpus is not None:
        data = dataset.prepare_corpus(
            corpus, args.tokenizer or profile.tokenizer, size=profile.size, progress=_preparing
        )
        print(
            f"{data.folder}: {data.meta['train']['tokens']:,} training and {data.meta['val']['tokens']:,} validation "
            f"tokens; tokenizer {data.tokenizer.name} with {data.tokenizer.vocab_size:,} ids"
        )
    else:
        data = dataset.last_prepared() or dataset.load_corpus(paths.data_dir(corpora.corpus_name(profile.corpus)))
    if questions is not None:
        block_size = config.model_config(args.model or profile.model, data.tokenizer.vocab_size).block_size
        found = dataset.prepare_qa(questions, data.tokenizer, block_size, size=profile.size)
        print(
            f"{found.folder}: {found.meta['train']['conversations']:,} training and "
            f"{found.meta['val']['conversations']:,} validation conversations; {found.meta['dropped']:,} dropped "
            f"because they do not fit {block_size} tokens"
        )


def _preparing(done: int, total: int | None, text: str) -> None:
    """Progress of a preparation, on stderr, only where somebody watches."""
    if sys.stderr.isatty():
        share = f"{done / total:4.0%} " if total else f"{done / 1e6:,.0f} MB "
        print(f"\r\x1b[2K{share}{text}", end="" if total is None or done < total else "\n", file=sys.stderr, flush=True)


def _follow(run: str, command: str, reports: Any) -> None:
    from . import progress

    try:
        seen = progress.follow(reports)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; everything is saved; go on with `nanochat {command} --run {run} --resume`", file=sys.stderr
        )
        raise
    if seen:
        print(f"{command} of {run!r} took {progress.duration(seen[-1].elapsed_s)}", file=sys.stderr)


def _pretrain(args: argparse.Namespace) -> None:
    from . import dataset, stages

    profile = config.profile(args.profile)
    run, model = _run_name(args), args.model or profile.model
    config.model_config(model, 512)  # an unknown name should not cost a preparation first
    if args.resume and not paths.last_path(run, "base_model").is_file():
        raise UserError(f"run {run!r} has no pretraining to resume; leave --resume out to start one")
    settings = stages.pretrain_settings(profile, steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    data = None
    if args.corpus is None and args.tokenizer is None:
        data = dataset.last_prepared()
        if data is not None:
            _say(f"pretraining on {data.folder}, prepared last; --corpus chooses another")
    if data is None:
        data = dataset.prepare_corpus(
            args.corpus or profile.corpus, args.tokenizer or profile.tokenizer, size=profile.size, progress=_preparing
        )
    reports = stages.pretrain(
        run, data, model=model, settings=settings, device=args.device, resume=args.resume, say=_say
    )
    _follow(run, "pretrain", reports)


def _finetune(args: argparse.Namespace) -> None:
    from . import stages

    profile = config.profile(args.profile)
    run = _trained_run(args.run, "base_model")
    if args.resume and not paths.last_path(run, "fine_tuned").is_file():
        raise UserError(f"run {run!r} has no finetuning to resume; leave --resume out to start one")
    settings = stages.finetune_settings(profile, steps=args.steps, batch_size=args.batch_size, seed=args.seed)
    reports = stages.finetune(
        run, args.qa or profile.qa, settings=settings, size=profile.size, device=args.device,
        resume=args.resume, say=_say,
    )  # fmt: skip
    _follow(run, "finetune", reports)


def _trained_run(run: str | None, stage: str) -> str:
    """The run that is meant: the named one, or the one trained last."""
    from . import checkpoint

    return paths.safe_name(run) if run else checkpoint.find(None, stage).parent.name


def _evaluate(args: argparse.Namespace) -> None:
    from . import evaluate

    run = _trained_run(args.run, args.stage)
    limit = args.limit or config.profile(args.profile).eval_questions
    card = evaluate.report_card(run, stage=args.stage, limit_per_split=limit)
    if args.json:
        with paths.atomic_write(Path(args.json), "w") as file:
            json.dump(card, file, indent=1)
    print(evaluate.format_card(card))


def _ask(args: argparse.Namespace) -> None:
    from . import qa, stages

    question = qa.ask(args.question, context=args.context)
    loaded = stages.load(args.run, args.stage)
    sampling = {"temperature": args.temperature, "seed": args.seed or 0}
    print(stages.answer(loaded, [question], max_new_tokens=args.tokens, **sampling)[0])


def _sample(args: argparse.Namespace) -> None:
    from . import generate, stages

    loaded = stages.load(args.run, args.stage or "base_model")
    tokenizer = loaded.tokenizer
    prompt = [tokenizer.eot, *tokenizer.encode(args.prompt)]
    if len(prompt) > loaded.model.config.block_size:
        _say(f"the prompt is longer than the context; its last {loaded.model.config.block_size} tokens are read")
    ids = generate.generate(
        loaded.model, [prompt], max_new_tokens=args.tokens, temperature=args.temperature,
        top_k=args.top_k, seed=args.seed or 0, stop={tokenizer.eot},
    )[0]  # fmt: skip
    print(args.prompt + tokenizer.decode(ids))


def _chat(args: argparse.Namespace) -> None:
    from . import terminal

    terminal.chat(args.run, args.stage)


def _course(args: argparse.Namespace) -> None:
    from . import course

    try:
        course.run(
            profile=args.profile, run=args.run, parameters=dict(args.parameter or []), only=args.only,
            reference=args.reference,
        )  # fmt: skip
    except course.CourseError as error:
        print(f"nanochat: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _lab(args: argparse.Namespace) -> None:
    notebooks = paths.home() / "notebooks"
    command = [sys.executable, "-m", "jupyter", "lab", "--LabApp.news_url=None", str(notebooks)]
    os.execv(sys.executable, command)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nanochat", description="Train your own small ChatGPT, from raw text to a chat.")
    parser.add_argument("--version", action="version", version=f"nanochat {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, does: Callable[[argparse.Namespace], None], text: str, example: str) -> _Parser:
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: nanochat {example}"
        )
        sub.set_defaults(does=does)
        return sub

    def profile(sub: _Parser) -> None:
        sub.add_argument("--profile", default="default", help=f"how much of everything: {', '.join(PROFILES)}")

    def training(sub: _Parser) -> None:
        profile(sub)
        sub.add_argument("--run", help="name of the run, a folder in out/")
        sub.add_argument("--steps", type=_count, help="optimizer steps")
        sub.add_argument("--batch-size", type=_count, help="rows in a step")
        sub.add_argument("--seed", type=_seed, help="the same seed gives the same run")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
        sub.add_argument("--resume", action="store_true", help="go on from where the run stopped")

    def model(sub: _Parser) -> None:
        sub.add_argument("--run", help="the run to use (default: the newest)")
        sub.add_argument("--stage", help=f"{', '.join(paths.STAGES)} (default: the latest there is)")

    def sampling(sub: _Parser, tokens: int, temperature: float) -> None:
        sub.add_argument("--tokens", type=_count, default=tokens, help=f"at most so many new tokens ({tokens})")
        sub.add_argument("--temperature", type=_temperature, default=temperature, help=f"0 is greedy ({temperature})")
        sub.add_argument("--seed", type=_seed, help="seed of the sampling")

    sub = command("course", _course, "run every notebook in order and write a report", "course --profile smoke")
    profile(sub)
    sub.add_argument("--run", help="name of the run (default: the profile's)")
    sub.add_argument("-p", dest="parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help="a parameter")
    sub.add_argument("--only", help="only the notebooks whose name starts so, for example 03")
    sub.add_argument("--reference", action="store_true", help="write the outputs back into notebooks/, for a commit")

    example = "prepare --corpus my_book.txt --tokenizer bpe:2048"
    sub = command("prepare", _prepare, "turn a corpus or questions and answers into token files", example)
    profile(sub)
    sub.add_argument("--corpus", help="a registered name, a file or a URL")
    sub.add_argument("--qa", help="questions and answers: a registered name, a file or a URL")
    sub.add_argument("--tokenizer", help="bpe:N (trained on the corpus) or gpt2")
    sub.add_argument("--model", help=f"whose context the questions must fit: {', '.join(MODEL_PRESETS)}")

    sub = command("pretrain", _pretrain, "train a base model on a corpus", "pretrain --model nanoGPT --steps 500")
    training(sub)
    sub.add_argument("--corpus", help="a registered name, a file or a URL (default: what was prepared last)")
    sub.add_argument("--tokenizer", help="bpe:N (trained on the corpus) or gpt2")
    sub.add_argument("--model", help=", ".join(MODEL_PRESETS))

    sub = command("finetune", _finetune, "teach a base model to answer", "finetune --run nano --qa my_questions.jsonl")
    training(sub)
    sub.add_argument("--qa", help="questions and answers: a registered name, a file or a URL")

    sub = command("evaluate", _evaluate, "score a model on held-out questions", "evaluate --run nano --json card.json")
    profile(sub)
    model(sub)
    sub.add_argument("--limit", type=_count, help="at most so many questions of each kind")
    sub.add_argument("--json", metavar="PATH", help="write the report card here as well")

    sub = command(
        "ask", _ask, "ask one question; prints the answer and nothing else", 'ask "What is the capital of France?"'
    )
    sub.add_argument("question", metavar="QUESTION")
    sub.add_argument("--context", default="", help="a passage to answer from")
    model(sub)
    sampling(sub, tokens=64, temperature=0.0)

    sub = command("sample", _sample, "continue a text", 'sample "Once upon a time" --tokens 100')
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", default="")
    model(sub)
    sampling(sub, tokens=100, temperature=0.8)
    sub.add_argument("--top-k", type=_count, help="draw only from the k most likely tokens")

    sub = command("chat", _chat, "chat in the terminal, and rate the answers", "chat --run nano")
    model(sub)

    command("lab", _lab, "open JupyterLab at the notebooks", "lab")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args = _parser().parse_args(argv)
        args.does(args)
    except UserError as error:
        print(f"nanochat: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
