"""The report of a run, out/<run>/report.md and report.json: its machine, times, models, report cards and curves."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import __version__, checkpoint, files, paths
from ..config import Profile, UserError
from ..evaluation import card as report_cards
from ..figures import plots
from ..train import runfiles
from ..train.progress import duration


def save_card(run: str, stage: str, card: dict[str, Any]) -> Path:
    """Save a report card, to be included in the report; returns its path."""
    path = paths.card_path(run, stage)
    with files.atomic_write(path, "w") as file:
        json.dump(card, file, indent=1)
    return path


def machine() -> dict[str, Any]:
    """The machine and software that the run was measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": psutil.cpu_count(logical=True),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _training(run: str) -> dict[str, list[dict[str, Any]]]:
    """The step reports of each stage."""
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for record in runfiles.read_metrics(run):
        by_stage.setdefault(record["stage"], []).append(record)
    return by_stage


def _model(run: str, stage: str, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The metadata of a stage's model with figures of its training; None if there is no such model."""
    path = paths.checkpoint_path(run, stage)
    try:
        meta = checkpoint.read_meta(path)
    except UserError:
        return None
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    return {
        **meta,
        "orphaned": checkpoint.orphaned(path, meta),
        "trained_steps": records[-1]["step"] if records else None,
        "seconds": records[-1]["elapsed_s"] if records else None,
        "tokens_per_s": statistics.median(speeds) if speeds else None,
        "peak_mb": max(record["rss_mb"] for record in records) if records else None,
        "peak_gpu_mb": max(record["gpu_mb"] for record in records) if records else None,
    }


def collect(chosen: Profile, executed: list[dict[str, Any]], failure: str | None = None) -> dict[str, Any]:
    """The content of report.json. `executed` lists the notebooks that ran, each with notebook, seconds and peak_mb."""
    training = _training(chosen.run)
    models = {stage: _model(chosen.run, stage, training.get(stage, [])) for stage in paths.STAGES}
    return {
        "nanochat": __version__,
        "run": chosen.run,
        "profile": asdict(chosen),
        "machine": machine(),
        "failure": failure,
        "notebooks": executed,
        "seconds": sum(entry["seconds"] for entry in executed),
        "peak_mb": max((entry["peak_mb"] for entry in executed), default=0.0),
        "models": {stage: model for stage, model in models.items() if model},
        "cards": _cards(chosen.run, models),
    }


def _cards(run: str, models: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """The report cards of the existing models, except those of a model that has been trained again since."""
    cards = {}
    for stage, model in models.items():
        path = paths.card_path(run, stage)
        if model and path.is_file():
            card = json.loads(path.read_text(encoding="utf-8"))
            if card["model"]["fingerprint"] == model["fingerprint"]:
                cards[stage] = card
    return cards


def _pictures(run: str) -> list[tuple[str, str]]:
    """Draw the training curves of every stage into out/<run>/figures/; returns (file name, description) of each."""
    drawn = []
    for stage, records in _training(run).items():
        for draw in (plots.losses, plots.learning_rate, plots.speed, plots.memory):
            figure, sentence = draw(records)
            name = f"{stage}_{draw.__name__}.png"
            with files.atomic_write(paths.run_dir(run) / "figures" / name) as file:
                file.write(plots.png(figure, dpi=100))
            drawn.append((name, sentence))
    return drawn


def _opening(content: dict[str, Any]) -> list[str]:
    where = content["machine"]
    machine = ", ".join(
        part for part in (f"{where['cores']} cores", where["system"], f"torch {where['torch']}", where["gpu"]) if part
    )
    lines = [f"# nanochat: run {content['run']}", "", f"Profile {content['profile']['name']}; {machine}."]
    if content["failure"]:
        lines += ["", f"**Not finished:** {' '.join(content['failure'].split())}"]
    if content["notebooks"]:
        lines += [
            "",
            f"In all {duration(content['seconds'])}, at most {content['peak_mb']:,.0f} MB.",
            "",
            "| notebook | time | peak memory |",
            "| --- | ---: | ---: |",
        ]
    for entry in content["notebooks"]:
        lines.append(f"| {entry['notebook']} | {duration(entry['seconds'])} | {entry['peak_mb']:,.0f} MB |")
    return lines


def _models(models: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Models",
        "",
        "| stage | from | steps | best at step | validation loss | bits per byte | time | tokens/s | peak memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage, model in models.items():
        gpu = f", GPU {model['peak_gpu_mb']:,.0f} MB" if model["peak_gpu_mb"] else ""
        cells = [
            stage,
            model.get("qa") or model["corpus"],
            _shown(model["trained_steps"], str),
            _shown(model["step"], str),
            _shown(model.get("val_loss"), "{:.3f}".format),
            _shown(model.get("val_bpb"), "{:.3f}".format),
            _shown(model["seconds"], duration),
            _shown(model["tokens_per_s"], "{:,.0f}".format),
            _shown(model["peak_mb"], "{:,.0f} MB".format) + gpu,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for model in models.values():
        if model["orphaned"]:
            lines += ["", f"**No longer part of this run:** {model['orphaned']}."]
    return lines


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    return "–" if value is None else show(value)


def write(chosen: Profile, executed: list[dict[str, Any]], failure: str | None = None) -> Path:
    """Write report.json, report.md and the figures of a run; returns the path of report.md.

    The run may be incomplete: what is missing is left out, and `failure` says why.
    """
    content = collect(chosen, executed, failure)
    folder = paths.run_dir(chosen.run)
    with files.atomic_write(folder / "report.json", "w") as file:
        json.dump(content, file, indent=1)
    lines = _opening(content)
    if content["models"]:
        lines += _models(content["models"])
    for stage, card in content["cards"].items():
        lines += ["", f"## Report card: {stage}", "", report_cards.format_card(card).rstrip()]
    pictures = _pictures(chosen.run)
    if pictures:
        lines += ["", "## Curves"]
    for name, sentence in pictures:
        lines += ["", f"![{sentence}](figures/{name})", "", sentence]
    path = folder / "report.md"
    with files.atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path
