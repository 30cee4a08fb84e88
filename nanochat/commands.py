"""What each command of the console script does. The arguments were checked by cli.py, which shows their errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import config, paths
from .config import Profile, UserError

if TYPE_CHECKING:
    from .dataset import CorpusData

# Nothing heavy is imported before a command needs it: a wrong argument is answered at once.


def say(text: str) -> None:
    """To people, not to programs that read what a command prints."""
    print(text, file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


# --- preparing ----------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Turn a corpus, questions and answers, or both into files of tokens."""
    from . import dataset

    profile: Profile = args.profile
    corpus, questions = args.corpus, args.qa
    if corpus is None and questions is None:
        corpus, questions = profile.corpus, profile.qa
    if corpus is None:
        data = _corpus_for_questions(profile, args.tokenizer)
    else:
        if questions is not None:
            _read_through(questions)  # before the corpus is written
        data = _prepared(corpus, args.tokenizer or profile.tokenizer, profile)
        print(
            f"{data.folder}: {data.meta['train']['tokens']:,} training and {data.meta['val']['tokens']:,} validation "
            f"tokens; tokenizer {data.tokenizer.name} with {data.tokenizer.vocab_size:,} ids"
        )
    if questions is not None:
        block_size = config.model_config(args.model or profile.model, data.tokenizer.vocab_size).block_size
        found = dataset.prepare_qa(questions, data.tokenizer, block_size, size=profile.size)
        print(
            f"{found.folder}: {found.meta['train']['conversations']:,} training and "
            f"{found.meta['val']['conversations']:,} validation conversations; {found.meta['dropped']:,} dropped "
            f"because they do not fit {block_size} tokens"
        )


def _corpus_for_questions(profile: Profile, tokenizer: str | None) -> CorpusData:
    """The corpus whose tokenizer is to encode the questions: the one prepared last."""
    from . import corpora, dataset

    data = dataset.last_prepared() or dataset.load_corpus(paths.data_dir(corpora.corpus_name(profile.corpus)))
    spec = data.meta["tokenizer_spec"]
    if tokenizer not in (None, spec):
        raise UserError(
            f"the corpus prepared last, {data.name}, has tokenizer {spec}, not {tokenizer}; name the --corpus as well"
        )
    return data


def _read_through(questions: str) -> None:
    """Raise UserError if the questions cannot be read."""
    from . import corpora, qa

    path = corpora.locate(questions, corpora.QA_SETS)
    for _ in qa.read_qa(path) if path else ():
        pass


def _prepared(corpus: str, tokenizer: str, profile: Profile) -> CorpusData:
    from . import dataset

    return dataset.prepare_corpus(corpus, tokenizer, size=profile.size, progress=_show_share)


def _show_share(done: int, total: int | None, text: str) -> None:
    """How far a preparation or an evaluation is, on stderr, only where somebody watches."""
    if sys.stderr.isatty():
        share = f"{done / total:4.0%} " if total else f"{done / 1e6:,.0f} MB "
        print(f"\r\x1b[2K{share}{text}", end="" if total is None or done < total else "\n", file=sys.stderr, flush=True)


# --- training -----------------------------------------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Train a base model."""
    from . import stages

    profile: Profile = args.profile
    run = args.run or config.choose(profile.name, model=args.model or "").run
    before = _left_by(run, "base_model") if args.resume else {}
    settings = stages.pretrain_settings(profile, **_given(args, before))
    corpus = _corpus_of(run, before, args) if before else _corpus_to_read(args)
    reports = stages.pretrain(
        run, corpus, model=args.model or before.get("model_name") or profile.model, settings=settings,
        device=args.device, resume=args.resume, say=say,
    )  # fmt: skip
    _follow(args, run, "base_model", reports)


def finetune(args: argparse.Namespace) -> None:
    """Teach a base model to answer."""
    from . import checkpoint, corpora, stages

    profile: Profile = args.profile
    run = args.run or checkpoint.find(None, "base_model").parent.name
    before = _left_by(run, "fine_tuned") if args.resume else {}
    questions = args.qa or before.get("qa") or profile.qa
    if before and len({corpora.corpus_name(spec, corpora.QA_SETS) for spec in (questions, before["qa"])}) > 1:
        raise UserError(
            f"run {run!r} is being finetuned on {before['qa']}, not {questions}; leave --qa or --resume out"
        )
    settings = stages.finetune_settings(profile, **_given(args, before))
    reports = stages.finetune(
        run, questions, settings=settings, size=before.get("size", profile.size), device=args.device,
        resume=args.resume, say=say,
    )  # fmt: skip
    _follow(args, run, "fine_tuned", reports)


def _left_by(run: str, stage: str) -> dict[str, Any]:
    """With what the stage to go on with was begun; raises UserError if it was not."""
    from . import checkpoint

    if not paths.last_path(run, stage).is_file():
        what = {"base_model": "pretraining", "fine_tuned": "finetuning"}[stage]
        raise UserError(f"run {run!r} has no {what} to resume; leave --resume out to start one")
    return checkpoint.read_meta(paths.checkpoint_path(run, stage))


def _given(args: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """Settings that were typed, else those that the run to be resumed was begun with, else None.

    Raises UserError for a budget that a run to be resumed cannot have.
    """
    if before and (args.tokens or args.minutes):
        raise UserError("how long a run takes was decided when it began; to make it longer, resume with more --steps")
    seed = before.get("seed") if args.seed is None else args.seed
    steps = args.steps or before.get("steps")
    return {
        "steps": steps, "tokens": args.tokens, "minutes": args.minutes, "batch_size": args.batch_size, "seed": seed
    }  # fmt: skip


def _corpus_of(run: str, before: dict[str, Any], args: argparse.Namespace) -> CorpusData:
    """The corpus that a run to be resumed was begun with; raises UserError if another one is asked for."""
    from . import corpora, dataset

    data = dataset.load_corpus(paths.data_dir(before["corpus"]))
    asked = {"corpus": args.corpus and corpora.corpus_name(args.corpus), "tokenizer": args.tokenizer}
    for what, there in (("corpus", data.name), ("tokenizer", data.meta["tokenizer_spec"])):
        if asked[what] not in (None, there):
            raise UserError(
                f"run {run!r} was begun with {what} {there}, not {asked[what]}; leave --{what} or --resume out"
            )
    return data


def _corpus_to_read(args: argparse.Namespace) -> CorpusData:
    """The corpus that is named, else the one prepared last, else the profile's; with the tokenizer it has, if any."""
    from . import corpora, dataset

    corpus, tokenizer = args.corpus, args.tokenizer
    if corpus is None and (last := dataset.last_prepared()) is not None:
        if tokenizer in (None, last.meta["tokenizer_spec"]):
            say(f"pretraining on {last.name}, prepared last; --corpus chooses another")
            return last
        corpus = last.meta["corpus"]
    corpus = corpus or args.profile.corpus
    if tokenizer is None:
        with contextlib.suppress(UserError):
            tokenizer = dataset.load_corpus(paths.data_dir(corpora.corpus_name(corpus))).meta["tokenizer_spec"]
    return _prepared(corpus, tokenizer or args.profile.tokenizer, args.profile)


def _follow(args: argparse.Namespace, run: str, stage: str, reports: Any) -> None:
    from . import progress

    try:
        seen = progress.follow(reports)
    except KeyboardInterrupt:
        if paths.last_path(run, stage).is_file():
            say(f"what was trained is saved; go on with: {_resuming(args, run)}")
        raise
    if seen:
        took = progress.duration(seen[-1].elapsed_s)
        say(f"{args.command} of {run!r} took {took}; the model is {paths.checkpoint_path(run, stage)}")


def _resuming(args: argparse.Namespace, run: str) -> str:
    """The command that goes on where this one was interrupted."""
    words = ["nanochat", *args.words]
    if args.run is None:
        words += ["--run", run]
    if not args.resume:
        words += ["--resume"]
    return shlex.join(words)


# --- using --------------------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> None:
    """Print the report card of a model."""
    from . import evaluate

    limit = args.limit or args.profile.eval_questions
    card = evaluate.report_card(args.run, stage=args.stage, limit_per_split=limit, progress=_show_share)
    if args.json:
        with paths.atomic_write(args.json, "w") as file:
            json.dump(card, file, indent=1)
    print(evaluate.format_card(card))


def ask(args: argparse.Namespace) -> None:
    """Print the answer to one question, and nothing else."""
    from . import qa, stages

    question = qa.ask(args.question, context=args.context)
    loaded = stages.load(args.run, args.stage)
    _announce_cropping(qa.render_prompt(question, loaded.tokenizer), loaded)
    sampling = {"temperature": args.temperature, "seed": args.seed}
    print(stages.answer(loaded, [question], max_new_tokens=args.tokens, **sampling)[0])


def sample(args: argparse.Namespace) -> None:
    """Print a text and the model's continuation."""
    from . import checkpoint, generate, stages

    # the model in the box has no base model before it
    stage = args.stage or (None if checkpoint.in_box(checkpoint.find(args.run)) else "base_model")
    loaded = stages.load(args.run, stage)
    tokenizer = loaded.tokenizer
    prompt = [tokenizer.eot, *tokenizer.encode(args.prompt)]
    _announce_cropping(prompt, loaded)
    ids = generate.generate(
        loaded.model, [prompt], max_new_tokens=args.tokens, temperature=args.temperature,
        top_k=args.top_k, seed=args.seed, stop={tokenizer.eot},
    )[0]  # fmt: skip
    print(args.prompt + tokenizer.decode(ids))


def _announce_cropping(prompt: Sequence[int], loaded: Any) -> None:
    room = loaded.model.config.block_size
    if len(prompt) > room:
        say(f"these are {len(prompt)} tokens, more than the model can read: only the last {room} are read")


def chat(args: argparse.Namespace) -> None:
    """Talk in the terminal, or on a page of its own in the browser."""
    if args.web:
        from . import web

        web.serve(args.run, args.stage, args.port or 0, say)
        return
    if args.port:
        raise UserError("--port is the port of the web page; add --web")
    from . import terminal

    terminal.chat(args.run, args.stage)


# --- the course ---------------------------------------------------------------------------------------------------------


def course(args: argparse.Namespace) -> int:
    """Run the notebooks; returns the exit status."""
    from . import course

    try:
        course.run(
            profile=args.profile.name, run=args.run, parameters=dict(args.parameter or []), only=args.only,
            reference=args.reference,
        )  # fmt: skip
    except course.CourseError as error:
        say(f"nanochat: {one_line(error)}")
        return 1
    return 0


def bench(args: argparse.Namespace) -> None:
    """Print results beside targets."""
    from .bench import suite, table

    results = suite.run(args.only, say)
    if args.json:
        picture = table.save(results, args.json)
        say(f"written: {args.json} and {picture}")
    print(table.table(results))


def lab(args: argparse.Namespace) -> None:
    """Become JupyterLab."""
    notebooks = paths.home() / "notebooks"
    if not notebooks.is_dir():
        raise UserError(f"there is no folder {notebooks}; run this in a checkout of nanochat")
    # Kernels run in that folder, and must find this project all the same.
    os.environ["NANOCHAT_HOME"] = str(paths.home())
    command = [sys.executable, "-m", "jupyterlab", "--LabApp.news_url=None", str(notebooks)]
    os.execv(sys.executable, command)
