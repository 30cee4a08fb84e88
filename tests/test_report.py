"""The report of a course run: figures, report cards, times and memory."""

from __future__ import annotations

import json
import re
import shutil
import statistics

import home
import pytest

from nanochat import config, devices, paths
from nanochat.config import UserError
from nanochat.course import report
from nanochat.evaluation import card as report_cards
from nanochat.train import runfiles

RAN = [
    {"notebook": "03_pretraining", "seconds": 200.4, "peak_mb": 812.3},
    {"notebook": "04_qa_finetuning", "seconds": 59.8, "peak_mb": 1024.0},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with both stages trained, and the report card of its assistant."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", str(folder))
        patch.setattr(devices, "matrix_rate", lambda kind, dtype: 1e9)
        home.pretrain(home.prepare(folder))
        home.finetune(folder)
        report.save_card("r", "fine_tuned", report_cards.report_card("r", limit_per_split=2, device="cpu"))
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.setenv("NANOCHAT_HOME", str(folder))
    return folder


CHOSEN = config.choose("smoke", run="r")


def written(ran=RAN, chosen=CHOSEN, failure=None) -> tuple[str, dict]:
    """Write the report; returns report.md, and report.json parsed strictly."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    path = report.write(chosen, ran, failure)
    assert path == paths.run_dir(chosen.run) / "report.md"
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"), parse_constant=refuse)
    return path.read_text(encoding="utf-8"), content


@pytest.fixture(scope="module")
def standard(made):
    """The unchanged run's report.md and report.json, shared because drawing eight figures takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", str(made))
        yield written()


def tables(text: str) -> list[list[list[str]]]:
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line[1:-1].split(" | ")] for line in block.splitlines()] for block in blocks]


def test_the_report_has_the_times_and_the_memory_of_every_notebook(standard):
    text, content = standard
    assert content["notebooks"] == RAN
    assert (content["seconds"], content["peak_mb"]) == (pytest.approx(260.2), 1024.0)
    assert "| 03_pretraining | 3 min 20 s | 812 MB |" in text
    assert "| 04_qa_finetuning | 1 min 00 s | 1,024 MB |" in text
    assert "In all 4 min 20 s, at most 1,024 MB." in text
    assert f"Profile smoke; {content['machine']['cores']} cores" in text


def test_the_report_has_the_losses_speed_and_memory_of_every_stage(standard):
    text, content = standard
    by_stage = {stage: [r for r in runfiles.read_metrics("r") if r["stage"] == stage] for stage in paths.STAGES[:2]}
    assert list(content["models"]) == list(by_stage)
    for stage, records in by_stage.items():
        model = content["models"][stage]
        best = min((r for r in records if "val_loss" in r), key=lambda r: r["val_loss"])
        assert (model["step"], model["val_loss"]) == (best["step"], best["val_loss"])
        assert model["trained_steps"] == 6
        assert model["seconds"] == records[-1]["elapsed_s"]
        assert model["peak_mb"] == max(r["rss_mb"] for r in records)
        assert model["tokens_per_s"] == statistics.median(r["tokens_per_s"] for r in records[1:])
        row = re.search(rf"^\| {stage} \|.*$", text, re.MULTILINE)[0]
        assert f" {best['val_loss']:.3f} | {best['val_bpb']:.3f} |" in row and f"{model['peak_mb']:,.0f} MB |" in row


def test_the_report_has_the_card_of_a_stage_as_it_was_measured(standard):
    text, content = standard
    card = json.loads(paths.card_path("r", "fine_tuned").read_text())
    assert content["cards"] == {"fine_tuned": card}
    assert "## Report card: fine_tuned" in text
    assert report_cards.format_card(card).strip() in text


def test_every_picture_is_there_and_has_its_sentence_under_it(standard, made):
    text, _ = standard
    pictures = re.findall(r"^!\[(.+)\]\((.+)\)\n\n\1$", text, re.MULTILINE)
    assert len(pictures) == text.count("![") == 8
    for sentence, name in pictures:
        assert (made / "out" / "r" / name).read_bytes().startswith(b"\x89PNG")
        assert sentence.endswith(".")


def test_every_table_is_a_table(standard):
    found = tables(standard[0])
    assert len(found) >= 3
    for rows in found:
        assert len({len(row) for row in rows}) == 1, rows[0]
        assert set("".join(rows[1])) <= {"-", ":"}


def test_the_same_run_gives_the_same_report(project):
    assert written() == written()


def test_a_run_that_ended_after_pretraining_is_reported_as_far_as_it_came(project):
    paths.checkpoint_path("r", "fine_tuned").unlink()
    paths.card_path("r", "fine_tuned").unlink()
    metrics = paths.metrics_path("r")
    kept = [line for line in metrics.read_text().splitlines() if '"base_model"' in line]
    metrics.write_text("\n".join([*kept, '{"stage": "fine_tu']))  # a process that was killed leaves such a line
    text, content = written(RAN[:1])
    assert list(content["models"]) == ["base_model"] and content["cards"] == {}
    assert "Report card" not in text and "fine_tuned" not in text
    assert text.count("![") == 4


def test_a_damaged_model_is_left_out(project):
    paths.checkpoint_path("r", "base_model").write_bytes(b"half a file")
    assert list(written()[1]["models"]) == ["fine_tuned"]


def test_a_model_without_metrics_is_reported_without_what_is_not_known(project):
    paths.metrics_path("r").unlink()
    text, content = written()
    assert content["models"]["base_model"]["peak_mb"] is None
    assert re.search(r"^\| base_model \| stories \| – \| \d \| [\d.]+ \| [\d.]+ \| – \| – \| – \|$", text, re.MULTILINE)
    assert "## Curves" not in text


def test_a_run_without_anything_is_a_short_report(nanochat_home):
    text, content = written([])
    assert (content["models"], content["cards"], content["seconds"], content["peak_mb"]) == ({}, {}, 0, 0.0)
    assert text.startswith("# nanochat: run r\n") and "##" not in text and "![" not in text


def test_why_a_run_was_not_finished_is_in_one_line_at_the_top(project):
    text, content = written(RAN[:1], failure="04_qa_finetuning.ipynb, cell [3]: ValueError: a\nb")
    assert content["failure"].endswith("a\nb")
    assert "\n**Not finished:** 04_qa_finetuning.ipynb, cell [3]: ValueError: a b\n" in text
    assert text.index("**Not finished") < text.index("| notebook")


def test_a_card_belongs_to_a_run_and_a_stage(nanochat_home):
    with pytest.raises(UserError, match="did you mean 'fine_tuned'"):
        report.save_card("r", "finetuned", {})
    with pytest.raises(UserError, match="cannot be the name of a run"):
        report.save_card("../r", "fine_tuned", {})
    assert list(nanochat_home.iterdir()) == []


def test_a_model_whose_base_model_is_gone_is_disowned_and_the_card_of_another_model_left_out(project):
    home.replace_base_model(project)
    stale = paths.card_path("r", "fine_tuned")
    card = json.loads(stale.read_text())
    stale.write_text(json.dumps({**card, "model": {**card["model"], "fingerprint": "another"}}))
    text, content = written()
    assert "**No longer part of this run:** r_fine_tuned.pt was trained from a model " in text
    assert content["cards"] == {} and "Report card" not in text
