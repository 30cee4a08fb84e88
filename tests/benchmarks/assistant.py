"""How well the assistant of a profile answers: train it from several seeds and append the scores to assistant.jsonl.

    python tests/benchmarks/assistant.py --seeds 1 2 3                        the default profile, with its spread
    python tests/benchmarks/assistant.py --name "one head" --shape '{"n_head": 1}' --note "a test of the script"
    python tests/benchmarks/assistant.py --table                              only print the results so far

Make decisions by the columns of the split "val" (like the training data); the other held-out splits are for reporting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nanochat import config
from nanochat.course import report
from nanochat.data import corpus
from nanochat.evaluation import card as report_cards
from nanochat.train import progress, stages

RECORDS = Path(__file__).with_name("assistant.jsonl")
COLUMNS = {
    "val facts": ("facts", "val"), "val read": ("reading", "val"), "val talk": ("smalltalk", "val"),
    "wording": ("facts", "wording"), "passage": ("reading", "passage"), "talk": ("smalltalk", "smalltalk"),
    "only told": ("facts", "fact"), "refused": ("unknown", "wording"),
}  # fmt: skip
FALSE_REFUSALS = "false refusals"


def train_and_score(profile: config.Profile, seed: int, shape: dict[str, Any]) -> dict[str, Any]:
    """Train both stages in a separate folder; returns the figures of the report card."""
    data = corpus.prepare_corpus(profile.corpus, profile.tokenizer, size=profile.size)
    losses, seconds = {}, 0.0
    stage_reports = {
        "pretraining": lambda: stages.pretrain(
            profile.run,
            data,
            model=profile.model,
            settings=stages.settings_for(profile, "base_model", seed=seed),
            **shape,
        ),
        "finetuning": lambda: stages.finetune(
            profile.run, profile.qa, size=profile.size, settings=stages.settings_for(profile, "fine_tuned", seed=seed)
        ),
    }
    for stage, start in stage_reports.items():
        seen = progress.follow(start())
        losses[stage] = min(report.metrics["val_loss"] for report in seen if report.metrics)
        seconds += seen[-1].elapsed_s
    card = report_cards.report_card(profile.run, stage="fine_tuned", limit_per_split=profile.eval_questions)
    rows = {(row["skill"], row["split"]): row for row in card["scores"]}
    held_out = [row for (skill, split), row in rows.items() if skill not in ("all", "unknown") and split != "val"]
    refused = [(row["false_refusal_rate"], row["answerable"]) for row in held_out if row["answerable"]]
    return {
        "losses": losses,
        "seconds": round(seconds),
        "five": sum(each["right"] for each in card["five_questions"]),
        "em": {name: rows[key]["em"] for name, key in COLUMNS.items() if key in rows},
        "n": {name: rows[key]["n"] for name, key in COLUMNS.items() if key in rows},
        FALSE_REFUSALS: sum(share * n for share, n in refused) / sum(n for _, n in refused),
    }


def table(records: list[dict[str, Any]]) -> str:
    """One line per name: the mean over its seeds, and the range from lowest to highest."""
    names = list(dict.fromkeys(record["name"] for record in records))
    lines = ["| what | seeds | loss | " + " | ".join([*COLUMNS, FALSE_REFUSALS]) + " |"]
    lines.append("| --- | ---: | ---: |" + " ---: |" * (len(COLUMNS) + 1))
    for name in names:
        runs = [record for record in records if record["name"] == name]
        cells = [_spread([run["em"].get(column) for run in runs]) for column in COLUMNS]
        cells.append(_spread([run[FALSE_REFUSALS] for run in runs]))
        loss = statistics.fmean(run["losses"]["finetuning"] for run in runs)
        lines.append(f"| {name} | {len(runs)} | {loss:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(shares: list[float | None]) -> str:
    known = [100 * share for share in shares if share is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.0f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.0f}–{max(known):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="what the line is called (default: the profile's name)")
    parser.add_argument("--note", default="", help="a word about what was changed in the code for this run")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), help="of the profile"
    )
    parser.add_argument("--shape", type=json.loads, default={}, help="of the model, as JSON")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.table:
        profile = config.profile(args.profile)
        known = asdict(profile)
        changed = {field: type(known[field])(value) for field, value in args.set}
        profile = replace(profile, run="assistant", **changed)
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as home:
                os.environ["NANOCHAT_HOME"] = home
                result = train_and_score(profile, seed, args.shape)
            record = {
                "name": args.name or profile.name, "note": args.note, "seed": seed, "profile": asdict(profile),
                "shape": args.shape, "machine": report.machine(), **result,
            }  # fmt: skip
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(result), file=sys.stderr)
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.is_file() else []
    print(table([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
