"""The bundled model: when it is used, that rounding leaves it the same model, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import ANSWERS, tiny_checkpoint

from nanochat import checkpoint, config, loading, paths
from nanochat.chat import box, feedback, session
from nanochat.cli import parser as cli
from nanochat.config import UserError
from nanochat.data import questions
from nanochat.widgets.playground import Playground

SHIPPED = sorted(paths.box_dir().glob("*.pt"))  # the real box: in the tests themselves it is hidden


@pytest.fixture
def packed(nanochat_home: Path) -> Path:
    """A bundled model, and nothing trained."""
    trained = tiny_checkpoint(nanochat_home, "source")
    path = box.pack("source")
    trained.unlink()
    return path


def nanochat(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    return cli.main(words), *capsys.readouterr()


# --- packing


def test_packing_rounds_to_bfloat16_and_nothing_else(nanochat_home: Path) -> None:
    source = checkpoint.load(tiny_checkpoint(nanochat_home, "source"))
    path = box.pack("source")
    loaded = checkpoint.load(path)
    stored = checkpoint.load_file(path)["model"]
    assert path == paths.box_dir() / "box_fine_tuned.pt"
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    for name, weight in source.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight.bfloat16().float())
    assert loaded.model.config == source.model.config
    assert loaded.tokenizer.fingerprint == source.tokenizer.fingerprint
    changed = {"run", "fingerprint", "trained_as", "packed_from"}
    assert {name for name, value in loaded.meta.items() if source.meta.get(name) != value} == changed
    assert (loaded.meta["trained_as"], loaded.meta["packed_from"]) == ("source", source.meta["fingerprint"])


def test_a_packed_model_takes_half_the_room(nanochat_home: Path) -> None:
    n_params = checkpoint.load(tiny_checkpoint(nanochat_home, "source")).model.n_params()
    tokenizer = 20_000
    assert box.pack("source").stat().st_size < 2 * n_params + tokenizer


def test_its_fingerprint_is_that_of_the_weights_as_they_are_loaded(packed: Path) -> None:
    loaded = checkpoint.load(packed)
    assert loaded.meta["fingerprint"] == checkpoint.fingerprint(loaded.model.state_dict())


def test_what_was_in_the_box_before_goes(packed: Path, nanochat_home: Path) -> None:
    tiny_checkpoint(nanochat_home, "later", stage="aligned")
    packed.with_name("fine_tuned_card.json").write_text("{}")
    assert [path.name for path in box.pack("later", "aligned").parent.iterdir()] == ["box_aligned.pt"]


def test_a_model_too_large_for_the_box_is_refused(nanochat_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(nanochat_home, "source")
    monkeypatch.setattr(box, "LIMIT", 1000)
    with pytest.raises(UserError, match="at most 500 can be bundled"):
        box.pack("source")
    assert not paths.box_dir().exists()


def test_the_box_cannot_be_packed_into_itself(packed: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(UserError, match="names the model that comes with nanochat"):
        box.pack("box")
    assert packed.read_bytes() == before


def test_the_maintainers_command_writes_model_card_and_readme(nanochat_home: Path, capsys) -> None:
    tiny_checkpoint(nanochat_home, "source")
    assert box.main(["source", "nanochat course --profile long"]) == 0
    model, card, readme = (
        paths.box_dir() / name for name in ("box_fine_tuned.pt", "fine_tuned_card.json", "README.md")
    )
    mark = checkpoint.read_meta(model)["fingerprint"]
    assert json.loads(card.read_text())["model"]["fingerprint"] == mark
    text = readme.read_text()
    assert mark in text and "\nnanochat course --profile long\npython -m nanochat.chat.box source" in text
    assert "MB" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["source"], ["nobody", "nanochat course"]])
def test_the_maintainers_command_says_what_is_wrong(nanochat_home: Path, capsys, words: list[str]) -> None:
    assert box.main(words) == 2
    said = "".join(capsys.readouterr())
    assert "usage" in said or "no trained model of run 'nobody'" in said


# --- finding


def test_the_box_is_what_there_is_where_nothing_is_trained(packed: Path) -> None:
    assert checkpoint.available() == [("box", "fine_tuned", packed)]
    assert checkpoint.find() == checkpoint.find("box") == checkpoint.find(None, "fine_tuned") == packed
    with pytest.raises(UserError, match=r"trained so far: nothing yet; with nanochat came: box \(fine_tuned\)"):
        checkpoint.find(None, "base_model")
    with pytest.raises(UserError, match="no trained model of run 'nano'"):
        checkpoint.find("nano")


def test_what_is_trained_goes_before_the_box_and_the_box_keeps_its_name(packed: Path, nanochat_home: Path) -> None:
    base = tiny_checkpoint(nanochat_home, "mine", stage="base_model")
    packed.touch()  # newer
    assert checkpoint.available() == [("mine", "base_model", base), ("box", "fine_tuned", packed)]
    assert checkpoint.find() == base and checkpoint.find("box") == packed
    with pytest.raises(UserError, match=r"trained so far: mine \(base_model\); with nanochat came: box"):
        checkpoint.find(None, "fine_tuned")


def test_nobody_trains_under_the_name_of_the_box(packed: Path, nanochat_home: Path, capsys) -> None:
    for command in ("pretrain", "finetune"):
        status, out, err = nanochat(capsys, command, "--run", "box")
        assert (status, out) == (2, "") and "choose another name for your run" in err
    assert not list((nanochat_home / "data").glob("*"))
    tiny_checkpoint(nanochat_home, "box")  # by hand, or left by something else
    assert checkpoint.find("box") == packed


def test_a_damaged_box_is_as_an_empty_one(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:3000])
    with pytest.raises(UserError, match="nothing yet; `nanochat course` trains one"):
        checkpoint.find()


# --- using


def test_ask_says_once_that_it_is_the_box_unless_the_box_was_asked_for(packed: Path, capsys) -> None:
    status, out, err = nanochat(capsys, "ask", "hello")
    assert (status, out) == (0, f"{ANSWERS['hello']}\n")
    assert err == "no trained run yet: this is the bundled model (source); `nanochat course` trains your own\n"
    assert nanochat(capsys, "ask", "hello", "--run", "box") == (0, f"{ANSWERS['hello']}\n", "")


def test_a_renamed_run_that_the_box_stands_in_for_is_named(packed: Path, nanochat_home: Path, capsys) -> None:
    tiny_checkpoint(nanochat_home, "nano").parent.rename(nanochat_home / "out" / "mine")
    status, out, err = nanochat(capsys, "ask", "hello")
    assert (status, out) == (0, f"{ANSWERS['hello']}\n")
    assert "this is the bundled model" in err and "rename nano_fine_tuned.pt to mine_fine_tuned.pt" in err


def test_with_a_trained_run_nothing_is_said_of_the_box(packed: Path, nanochat_home: Path, capsys) -> None:
    tiny_checkpoint(nanochat_home, "mine")
    assert nanochat(capsys, "ask", "hello") == (0, f"{ANSWERS['hello']}\n", "")


@pytest.mark.parametrize("run", [[], ["--run", "box"]])
def test_sample_continues_with_the_assistant_where_there_is_no_base_model(packed: Path, capsys, run: list[str]) -> None:
    status, out, err = nanochat(capsys, "sample", "one two", "--tokens", "4", *run)
    assert status == 0 and out.startswith("one two") and ("the bundled model" in err) == (not run)
    assert nanochat(capsys, "sample", "one", "--stage", "base_model", *run)[0] == 2


def test_evaluate_makes_a_card_of_the_box(packed: Path, capsys) -> None:
    status, out, err = nanochat(capsys, "evaluate", "--limit", "2")
    assert status == 0 and "**box, fine_tuned.**" in out and "the bundled model (source)" in err


def test_chat_with_the_box_writes_to_its_own_files_outside_of_the_package(
    packed: Path, nanochat_home: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/rate 5\n/model\n/quit\n"))
    status, out, err = nanochat(capsys, "chat")
    assert (
        status == 0 and ANSWERS["hello"] in out and "* box (fine_tuned)" in out and "the bundled model (source)" in err
    )
    assert [r.value for r in feedback.read(nanochat_home / "data" / "feedback" / "box.jsonl")] == [5]
    assert list(packed.parent.iterdir()) == [packed]


def test_the_playground_talks_with_the_box_says_so_and_looks_inside(packed: Path, nanochat_home: Path) -> None:
    app = Playground(device="cpu")
    assert "No trained run yet: this is the bundled model (source)" in app.status.value
    assert "came with nanochat (source)" in app.about.value
    app.message.value = "hello"
    app.send.click()
    app.wait(60)
    view = app.views[0].answers[0]
    view.not_helpful.click()
    view.why.click()
    assert view.inside.children and app.status.value == ""
    [record] = feedback.read(paths.feedback_path("box"))
    assert (record.run, record.checkpoint) == ("box", checkpoint.load(packed).meta["fingerprint"])
    assert len(session.transcripts("box")) == 1 and list(packed.parent.iterdir()) == [packed]


def test_the_picker_offers_the_box_after_what_is_trained_with_its_score(packed: Path, nanochat_home: Path) -> None:
    mark = checkpoint.read_meta(packed)["fingerprint"]
    card = {"model": {"fingerprint": mark}, "scores": [{"skill": "all", "em": 0.75, "n": 4}]}
    packed.with_name("fine_tuned_card.json").write_text(json.dumps(card))
    tiny_checkpoint(nanochat_home, "mine")
    app = Playground(device="cpu")
    assert [name for name, _ in app.model.options] == ["mine · fine_tuned", "box · fine_tuned"]
    assert app.status.value == "" and "came with" not in app.about.value
    app.model.value = packed
    assert app.session.run == "box" and "75% of held-out questions right" in app.about.value


# --- what is in it


def test_the_model_that_is_shipped_is_small_loads_knows_paris_and_is_the_one_of_its_card() -> None:
    assert len(SHIPPED) <= 1
    for path in SHIPPED:  # none: as it is in a checkout before the first one was packed
        check_shipped(path)


def check_shipped(path: Path) -> None:
    assert path.stat().st_size <= box.LIMIT
    loaded = checkpoint.load(path)
    assert loaded.meta["run"] == paths.BOX and path.name == f"{paths.BOX}_{loaded.meta['stage']}.pt"
    [answer] = loading.answer(loaded, [questions.ask("What is the capital of France?")])
    assert "Paris" in answer
    card = json.loads(path.with_name(f"{loaded.meta['stage']}_card.json").read_text(encoding="utf-8"))
    mark = checkpoint.fingerprint(loaded.model.state_dict())
    assert loaded.meta["fingerprint"] == card["model"]["fingerprint"] == mark
    readme = path.with_name("README.md").read_text(encoding="utf-8")
    assert mark in readme and loaded.meta["trained_as"] in readme


@pytest.mark.parametrize("fault", ["large", "damaged", "ignorant", "another card", "no readme"])
def test_a_bad_box_would_be_found(nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    tiny_checkpoint(nanochat_home, "source")
    path = box.make("source", "nanochat course", limit=1)
    said = "London." if fault == "ignorant" else "The capital of France is Paris."
    monkeypatch.setattr(loading, "answer", lambda loaded, conversations: [said])
    if fault != "ignorant":
        check_shipped(path)
    if fault == "large":
        monkeypatch.setattr(box, "LIMIT", 1000)
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "another card":
        path.with_name("fine_tuned_card.json").write_text(json.dumps({"model": {"fingerprint": "0" * 16}}))
    elif fault == "no readme":
        path.with_name("README.md").unlink()
    with pytest.raises((AssertionError, UserError, OSError)):
        check_shipped(path)


def test_the_long_profile_fits_the_box() -> None:
    from nanochat.model import GPT

    long = config.profile("long")
    vocabulary = int(long.tokenizer.removeprefix("bpe:"))
    with torch.device("meta"):
        n_params = GPT(config.model_config(long.model, vocabulary)).n_params()
    assert 2 * n_params < box.LIMIT
