"""The bundled model ("the model in the box"): a small trained assistant shipped with the package.

Maintainers rebuild it with `python -m nanochat.chat.box RUN COMMAND`, where COMMAND is the one that trained RUN; see
"Contributing" in the README.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import checkpoint, config, files, paths, statusline
from ..config import UserError
from ..evaluation import card as report_cards

LIMIT = 10_000_000  # bytes: everyone who installs the package downloads them


def pack(run: str, stage: str = "fine_tuned") -> Path:
    """Replace the bundled model with that of a run; returns the path of the new file.

    The weights are rounded to bfloat16, which halves the file; `checkpoint.load` converts them back to float32. Raises
    UserError if there is no such model or it is too large.
    """
    source = checkpoint.load(checkpoint.find(paths.new_run(run), stage))
    if 2 * source.model.n_params() > LIMIT:
        raise UserError(
            f"run {run!r} has {source.model.n_params():,} parameters; at most {LIMIT // 2:,} can be bundled"
        )
    path = paths.box_dir() / f"{paths.BOX}_{stage}.pt"
    origin = {"run": paths.BOX, "trained_as": run, "packed_from": source.meta["fingerprint"]}
    checkpoint.save(path, source.model.bfloat16(), source.tokenizer, {**source.meta, **origin})
    for other in path.parent.iterdir():
        if other != path and other.is_file():
            other.unlink()  # left from the previous model
    return path


def describe(card: dict[str, Any], meta: dict[str, Any], command: str) -> str:
    """The README of the bundled model, as markdown: what it is, how good it is, and how to rebuild it."""
    model = card["model"]
    scores = "\n".join(
        f"| {row['split']} | {row['n']} | {100 * row['em']:.1f} % |"
        for row in card["scores"]
        if row["skill"] == "all" and row["em"] is not None
    )
    return f"""# The bundled model (`box`)

`{paths.BOX}_{meta["stage"]}.pt` is {meta["trained_as"]}, an assistant to chat with before you have trained your own:
`nanochat chat`, `nanochat ask` and the playground use it until you have trained a model, or with `--run {paths.BOX}`.

- {model["parameters"]:,} parameters: {model["n_layer"]} layers of {model["n_embd"]}, context of {model["block_size"]}
  tokens, vocabulary of {model["vocab_size"]:,}. Text: {meta["corpus"]}; questions: {meta.get("qa", "none")}.
- Weights rounded to bfloat16. Fingerprint {meta["fingerprint"]}; before rounding {meta["packed_from"]}.
- `{meta["stage"]}_card.json` is its report card, measured after rounding. Exact match on held-out questions:

| split | questions | exact match |
| --- | ---: | ---: |
{scores}

Made with

```bash
{command}
python -m nanochat.chat.box {meta["trained_as"]} "{command}"
```
"""


def make(run: str, command: str, limit: int | None = None) -> Path:
    """Bundle the assistant of a run and write its report card and README next to it; returns the path of the model.

    The report card asks at most `limit` questions of each skill and split.
    """
    path = pack(run)
    card = report_cards.report_card(paths.BOX, limit_per_split=limit, progress=statusline.show_share)
    meta = checkpoint.read_meta(path)
    with files.atomic_write(path.with_name(f"{meta['stage']}_card.json"), "w") as file:
        json.dump(card, file, indent=1)
    with files.atomic_write(path.with_name("README.md"), "w") as file:
        file.write(describe(card, meta, command))
    return path


def main(argv: Sequence[str]) -> int:
    """Run `python -m nanochat.chat.box RUN COMMAND`; returns the exit status."""
    if len(argv) != 2:
        print('usage: python -m nanochat.chat.box RUN COMMAND, as in nano-long "nanochat course --profile long"')
        return 2
    try:
        run, command = argv
        path = make(run, command, limit=config.profile("long").eval_questions)
    except UserError as error:
        print(f"nanochat: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
