"""out/<run>/report.md and report.json: what a run of the course made, in figures and pictures."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from . import __version__, checkpoint, evaluate, paths, plots, stages
from .config import Profile, UserError
from .progress import duration


def card_path(run: str, stage: str) -> Path:
    """out/<run>/<stage>_card.json: the report card of a stage, as evaluate.report_card makes it."""
    return paths.run_dir(run) / f"{paths.stage_name(stage)}_card.json"


def save_card(run: str, stage: str, card: dict[str, Any]) -> Path:
    """Keep a report card for the report; returns its path."""
    path = card_path(run, stage)
    with paths.atomic_write(path, "w") as file:
        json.dump(card, file, indent=1)
    return path


def machine() -> dict[str, Any]:
    """What this run was measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": psutil.cpu_count(logical=True),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _models(run: str) -> dict[str, dict[str, Any]]:
    """Meta of each stage's model, as far as it is there."""
    found = {}
    for stage in paths.STAGES:
        try:
            found[stage] = checkpoint.read_meta(paths.checkpoint_path(run, stage))
        except UserError:
            continue
    return found


def collect(chosen: Profile, executed: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything report.json holds."""
    cards = {
        stage: json.loads(card_path(chosen.run, stage).read_text(encoding="utf-8"))
        for stage in paths.STAGES
        if card_path(chosen.run, stage).is_file()
    }
    return {
        "nanochat": __version__,
        "run": chosen.run,
        "profile": asdict(chosen),
        "machine": machine(),
        "notebooks": executed,
        "seconds": sum(entry["seconds"] for entry in executed),
        "peak_mb": max(entry["peak_mb"] for entry in executed),
        "models": _models(chosen.run),
        "cards": cards,
    }


def _pictures(run: str) -> list[tuple[str, str]]:
    """Draw every stage's curves into out/<run>/figures/: (file name, sentence) of each."""
    folder = paths.run_dir(run) / "figures"
    drawn = []
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for record in stages.read_metrics(run):
        by_stage.setdefault(record["stage"], []).append(record)
    for stage, records in by_stage.items():
        for draw in (plots.losses, plots.learning_rate, plots.speed, plots.memory):
            figure, sentence = draw(records)
            name = f"{stage}_{draw.__name__}.png"
            with paths.atomic_write(folder / name) as file:
                figure.savefig(file, format="png", dpi=100)
            drawn.append((name, sentence))
    return drawn


def write(chosen: Profile, executed: list[dict[str, Any]]) -> Path:
    """Write report.json, report.md and the figures of a run; returns the path of report.md."""
    content = collect(chosen, executed)
    folder = paths.run_dir(chosen.run)
    with paths.atomic_write(folder / "report.json", "w") as file:
        json.dump(content, file, indent=1)
    lines = [
        f"# nanochat: run {chosen.run}",
        "",
        f"Profile {chosen.name}, {content['machine']['cores']} cores, {content['machine']['system']}, "
        f"torch {content['machine']['torch']}"
        + (f", {content['machine']['gpu']}" if content["machine"]["gpu"] else "")
        + f". In all {duration(content['seconds'])}, at most {content['peak_mb']:,.0f} MB.",
        "",
        "| notebook | time | peak memory |",
        "| --- | ---: | ---: |",
        *(f"| {entry['notebook']} | {duration(entry['seconds'])} | {entry['peak_mb']:,.0f} MB |" for entry in executed),
        "",
        "## Models",
        "",
        "| stage | steps | best at step | validation loss | bits per byte | from |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for stage, meta in content["models"].items():
        lines.append(
            f"| {stage} | {meta['steps']} | {meta['step']} | {meta['val_loss']:.3f} | {meta['val_bpb']:.3f} | "
            f"{meta.get('qa') or meta['corpus']} |"
        )
    for stage, card in content["cards"].items():
        lines += ["", f"## Report card: {stage}", "", evaluate.format_card(card)]
    lines += ["", "## Curves", ""]
    for name, sentence in _pictures(chosen.run):
        lines += [f"![{sentence}](figures/{name})", "", sentence, ""]
    path = folder / "report.md"
    with paths.atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path
