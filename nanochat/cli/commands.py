"""The commands of the console script `nanochat`. parser.py has checked their arguments and reports their errors."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import config, files, paths, statusline
from ..config import Profile, UserError

if TYPE_CHECKING:
    from ..data.corpus import CorpusData
    from ..data.sources import Source
    from ..trainer import StepReport, TrainSettings

# Heavy modules are imported inside the commands that need them, so that a wrong argument is reported at once.


def say(text: str) -> None:
    """Print a message for people on stderr; stdout is for a command's results."""
    print(text, file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())


# --- preparing ----------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Tokenize a corpus, questions and answers, or both into token files."""
    from ..data import corpus as corpus_files
    from ..data import sources

    profile: Profile = args.profile
    corpus, asked = args.corpus, args.qa
    if corpus is None and asked is None:
        corpus, asked = profile.corpus, profile.qa
    questions = None if asked is None else sources.resolve(asked, "qa", size=profile.size)
    if corpus is None:
        data = _corpus_for_questions(args)
    else:
        if questions is not None:
            _check_readable(questions)  # so that a bad file is reported before the corpus is written
        data = _prepared(corpus, args.tokenizer or profile.tokenizer, profile.size)
        print(
            f"{data.folder}: {data.meta['train']['tokens']:,} training and {data.meta['val']['tokens']:,} validation "
            f"tokens; tokenizer {data.tokenizer.name} with {data.tokenizer.vocab_size:,} ids"
        )
    if questions is not None:
        block_size = config.model_config(args.model or profile.model, data.tokenizer.vocab_size).block_size
        found = corpus_files.prepare_qa(questions, data.tokenizer, block_size)
        print(
            f"{found.folder}: {found.meta['train']['conversations']:,} training and "
            f"{found.meta['val']['conversations']:,} validation conversations; {found.meta['dropped']:,} dropped "
            f"because they do not fit {block_size} tokens"
        )


def _corpus_for_questions(args: argparse.Namespace) -> CorpusData:
    """The corpus whose tokenizer encodes the questions: that of --profile if given, otherwise the one prepared last.

    Raises UserError if it has another tokenizer than --tokenizer asks for.
    """
    from ..data import corpus as corpus_files
    from ..data import sources

    last = None if args.named_profile else corpus_files.last_prepared()
    data = last or corpus_files.load_corpus(sources.resolve(args.profile.corpus).folder)
    spec = data.meta["tokenizer_spec"]
    if args.tokenizer not in (None, spec):
        raise UserError(f"the corpus {data.name} has tokenizer {spec}, not {args.tokenizer}; give --corpus as well")
    return data


def _check_readable(questions: Source) -> None:
    """Raise UserError if the questions cannot be read."""
    for _ in questions.conversations() if questions.path else ():
        pass


def _prepared(corpus: str, tokenizer: str, size: str) -> CorpusData:
    from ..data import corpus as corpus_files

    return corpus_files.prepare_corpus(corpus, tokenizer, size=size, progress=statusline.show_share)


# --- training -----------------------------------------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Train a base model."""
    from ..train import stages

    profile: Profile = args.profile
    run = args.run or config.choose(profile.name, model=args.model or "").run
    if args.resume:
        begun, meta = stages.begun(run, "base_model")
        settings = _settings_to_resume(args, begun, "base_model")
        corpus, model = _corpus_to_resume(run, meta, args), args.model or meta["model_name"]
    else:
        settings = stages.settings_for(profile, "base_model", **_given(args))
        corpus, model = _corpus_to_train_on(args), args.model or profile.model
    reports = stages.pretrain(
        run, corpus, model=model, settings=settings, device=args.device, resume=args.resume, say=say
    )
    _follow(args, run, "base_model", reports)


def finetune(args: argparse.Namespace) -> None:
    """Finetune a base model on questions and answers."""
    from .. import checkpoint
    from ..data import sources
    from ..train import stages

    profile: Profile = args.profile
    run = args.run or checkpoint.find(None, "base_model").parent.name
    if args.resume:
        begun, meta = stages.begun(run, "fine_tuned")
        settings = _settings_to_resume(args, begun, "fine_tuned")
        questions, size = meta["qa"], meta["size"]
        if args.qa and sources.resolve(args.qa, "qa").origin != meta["qa"]:
            raise UserError(f"run {run!r} is being finetuned on {questions}, not {args.qa}; leave out --qa or --resume")
    else:
        settings = stages.settings_for(profile, "fine_tuned", **_given(args))
        questions, size = args.qa or profile.qa, profile.size
    reports = stages.finetune(
        run, questions, settings=settings, size=size, device=args.device, resume=args.resume, say=say
    )
    _follow(args, run, "fine_tuned", reports)


def restore(args: argparse.Namespace) -> None:
    """Restore the files that were set aside when a run was started over."""
    from ..train import runfiles

    runfiles.restore(args.run, args.kept, say)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The training settings from the command line; None for those not given."""
    return {name: getattr(args, name) for name in ("steps", "tokens", "minutes", "batch_size", "seed")}


def _settings_to_resume(args: argparse.Namespace, begun: TrainSettings, stage: str) -> TrainSettings:
    """The settings a run began with, updated by those on the command line; the trainer checks which may differ.

    Raises UserError for --tokens and --minutes, which cannot change on resume.
    """
    if args.tokens or args.minutes:
        raise UserError("the length of a run was set when it began; to make it longer, resume with more --steps")
    given = {name: value for name, value in _given(args).items() if value is not None}
    if args.named_profile:
        from ..train import stages

        named = stages.settings_for(args.named_profile, stage)
        asked = {name: getattr(named, name) for name in ("batch_size", "lr_scale", "decay_from", "optimizer")}
        given = asked | given
    return dataclasses.replace(begun, **given)


def _corpus_to_resume(run: str, before: dict[str, Any], args: argparse.Namespace) -> CorpusData:
    """The corpus that a run to be resumed began with; raises UserError if the command line asks for another."""
    from ..data import corpus as corpus_files
    from ..data import sources

    data = corpus_files.load_corpus(paths.data_dir(before["corpus"]))
    began = before.get("prepared")  # a state of an earlier version has none
    if began and data.meta["fingerprint"] != began["fingerprint"]:
        say(f"{data.name} has been prepared differently since run {run!r} began; preparing it again as it was")
        data = _prepared(began["corpus"], began["tokenizer_spec"], began["size"])
    asked = {"corpus": args.corpus and sources.resolve(args.corpus).name, "tokenizer": args.tokenizer}
    for what, there in (("corpus", data.name), ("tokenizer", data.meta["tokenizer_spec"])):
        if asked[what] not in (None, there):
            raise UserError(f"run {run!r} began with {what} {there}, not {asked[what]}; leave out --{what} or --resume")
    return data


def _corpus_to_train_on(args: argparse.Namespace) -> CorpusData:
    """The corpus of --corpus, otherwise of --profile, otherwise the one prepared last, otherwise the default profile's.

    It keeps the tokenizer it was prepared with, unless --tokenizer or --profile choose one.
    """
    from ..data import corpus as corpus_files
    from ..data import sources

    corpus, tokenizer = args.corpus, args.tokenizer
    if corpus is None and not args.named_profile and (last := corpus_files.last_prepared()) is not None:
        if tokenizer in (None, last.meta["tokenizer_spec"]):
            say(f"pretraining on {last.name}, the corpus prepared last; --corpus chooses another")
            return last
        corpus = last.meta["corpus"]
    corpus = corpus or args.profile.corpus
    if tokenizer is None and not args.named_profile:
        with contextlib.suppress(UserError):
            tokenizer = corpus_files.load_corpus(sources.resolve(corpus).folder).meta["tokenizer_spec"]
    return _prepared(corpus, tokenizer or args.profile.tokenizer, args.profile.size)


def _follow(args: argparse.Namespace, run: str, stage: str, reports: Iterator[StepReport]) -> None:
    from ..train import progress

    started = args.resume

    def watched() -> Iterator[StepReport]:
        nonlocal started
        try:
            for report in reports:
                started = True
                yield report
        finally:
            progress.leave(reports)

    try:
        seen = progress.follow(watched())
    except KeyboardInterrupt:
        if started:  # interrupted during the speed estimate, a new run has saved nothing yet
            say(f"progress is saved; continue with: {_resume_command(args, run)}")
        raise
    if seen:
        took = progress.duration(seen[-1].elapsed_s)
        say(f"{args.command} of {run!r} took {took}; the model is {paths.checkpoint_path(run, stage)}")


def _resume_command(args: argparse.Namespace, run: str) -> str:
    """The command that continues the training that was interrupted: everything else is in its saved state."""
    device = [] if args.device == "auto" else ["--device", args.device]
    return shlex.join(["nanochat", args.command, "--run", run, "--resume", *device])


# --- using --------------------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> None:
    """Print the report card of a model, and write it as JSON if asked to."""
    from ..evaluation import card as report_cards
    from ..evaluation import card_text

    limit = args.limit or args.profile.eval_questions
    card = report_cards.report_card(args.run, stage=args.stage, limit_per_split=limit, progress=statusline.show_share)
    if args.json:
        with files.atomic_write(args.json, "w") as file:
            json.dump(card, file, indent=1)
    print(card_text.plain(report_cards.format_card(card)))


def ask(args: argparse.Namespace) -> None:
    """Print the answer to one question, and nothing else."""
    from .. import loading
    from ..data import questions as qa

    question = qa.ask(args.question, context=args.context)
    loaded = loading.load(args.run, args.stage)
    _warn_if_cropped(qa.render_prompt(question, loaded.tokenizer), loaded)
    sampling = {"temperature": args.temperature, "seed": args.seed}
    print(loading.answer(loaded, [question], max_new_tokens=args.tokens, **sampling)[0])


def sample(args: argparse.Namespace) -> None:
    """Print a text and the model's continuation."""
    from .. import checkpoint, generate, loading

    # the bundled model comes without its base model
    stage = args.stage or (None if checkpoint.in_box(checkpoint.find(args.run)) else "base_model")
    loaded = loading.load(args.run, stage)
    tokenizer = loaded.tokenizer
    prompt = [tokenizer.eot, *tokenizer.encode(args.prompt)]
    _warn_if_cropped(prompt, loaded)
    ids = generate.generate(
        loaded.model, [prompt], max_new_tokens=args.tokens, temperature=args.temperature,
        top_k=args.top_k, seed=args.seed, stop={tokenizer.eot},
    )[0]  # fmt: skip
    print(args.prompt + tokenizer.decode(ids))


def _warn_if_cropped(prompt: Sequence[int], loaded: Any) -> None:
    room = loaded.model.config.block_size
    if len(prompt) > room:
        say(f"the prompt has {len(prompt)} tokens, more than the context holds: the model reads only the last {room}")


def chat(args: argparse.Namespace) -> None:
    """Chat in the terminal, or serve the playground as a web page."""
    if args.web:
        from ..chat import web

        web.serve(args.run, args.stage, args.port or 0, say)
        return
    if args.port:
        raise UserError("--port applies to the web page only; add --web")
    from ..chat import terminal

    terminal.chat(args.run, args.stage)


# --- the course ---------------------------------------------------------------------------------------------------------


def course(args: argparse.Namespace) -> int:
    """Run the notebooks; returns the exit status: 1 if a notebook failed."""
    from ..course import run as course

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
    """Run the benchmarks and print their results next to the targets."""
    from ..bench import suite, table

    results = suite.run(args.only, say)
    if args.json:
        picture = table.save(results, args.json)
        say(f"written: {args.json} and {picture}")
    print(table.table(results))


def lab(args: argparse.Namespace) -> None:
    """Replace this process by JupyterLab. Raises UserError outside a checkout."""
    notebooks = paths.home() / "notebooks"
    if not notebooks.is_dir():
        raise UserError(f"there is no folder {notebooks}; run this in a checkout of nanochat")
    import jupyterlab  # noqa: F401 (so that a missing package is reported before this process is replaced)

    # Kernels run in the notebooks folder but must find this project.
    os.environ["NANOCHAT_HOME"] = str(paths.home())
    command = [sys.executable, "-m", "jupyterlab", "--LabApp.news_url=None", str(notebooks)]
    os.execv(sys.executable, command)
