"""How well an assistant answers questions that people asked in their own words (people.tsv).

    python tests/benchmarks/people.py out/nano/nano_fine_tuned.pt nanochat/chat/box/box_fine_tuned.pt [--wrong]

`core` and `full` were written by people who saw the fact tables of the almanac but none of its wordings: `core` about the
facts of the default size, `full` about those (and a few relations) only in the full size. `talk` and `read` were written by
someone who knew what such an assistant can do. They are a test set: never use them for tuning. `seen` and `seen_read` were
consulted while wordings were written, so their scores are optimistic. An answer is right if it contains an accepted text at
the beginning of a word, which is more lenient than exact match.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

from nanochat import checkpoint, loading
from nanochat.data import questions

QUESTIONS = Path(__file__).with_name("people.tsv")
BATCH = 64  # questions answered at once


def right(answer: str, accepted: str) -> bool:
    """Whether the answer contains an accepted text ("five|5"; "*" accepts anything) at the beginning of a word."""
    return accepted == "*" or any(
        re.search(rf"(?<!\w){re.escape(each)}", answer, re.IGNORECASE) for each in accepted.split("|")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--wrong", action="store_true", help="print what was answered wrong of `seen` and `seen_read`")
    given = parser.parse_args()
    with QUESTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for path in given.checkpoints:
        loaded = checkpoint.load(path)
        answers: list[str] = []
        for at in range(0, len(rows), BATCH):
            asked = [questions.ask(row["question"], row["passage"] or "") for row in rows[at : at + BATCH]]
            answers += loading.answer(loaded, asked)
        counts: dict[str, list[bool]] = {}
        for row, answer in zip(rows, answers, strict=True):
            counts.setdefault(row["set"], []).append(right(answer, row["accept"]))
            if given.wrong and row["set"].startswith("seen") and not counts[row["set"]][-1]:
                print(f"  {row['set']}: {row['question']} -> {answer}")
        print(path, *(f"{name} {sum(found)}/{len(found)}" for name, found in counts.items()))


if __name__ == "__main__":
    main()
