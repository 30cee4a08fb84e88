from __future__ import annotations

import errno
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import ARCHS, ids, small_config, small_model
from talks import TOK

from nanochat import checkpoint, paths
from nanochat.config import UserError

VOCAB = TOK.vocab_size
META = {"run": "r", "stage": "base_model", "step": 3, "val_loss": 1.5, "val_bpb": None, "parent": None}


def model_of(arch: str = "modern", seed: int = 0):
    return small_model(arch, seed=seed, vocab_size=VOCAB)


def saved(run: str = "r", stage: str = "base_model", seed: int = 0):
    path = paths.checkpoint_path(run, stage)
    checkpoint.save(path, model_of(seed=seed), TOK, {**META, "run": run, "stage": stage})
    return path


def raising(error: Exception):
    def fail(*args, **options):
        raise error

    return fail


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.pt"
    checkpoint.save(path, model_of(), TOK, META)
    return path.read_bytes()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_loaded_model_says_what_the_saved_one_said(tmp_path, arch):
    model = model_of(arch)
    mark = checkpoint.save(tmp_path / "m.pt", model, TOK, META)
    loaded = checkpoint.load(tmp_path / "m.pt")
    assert torch.equal(loaded.model(ids(2, 8)), model(ids(2, 8)))
    assert loaded.model.config == model.config
    assert loaded.tokenizer.fingerprint == TOK.fingerprint
    assert loaded.tokenizer.encode("a b") == TOK.encode("a b")
    assert loaded.path == tmp_path / "m.pt"
    names = {"fingerprint": mark, "tokenizer": TOK.name, "tokenizer_fingerprint": TOK.fingerprint}
    assert loaded.meta == {**META, **names}


def test_a_loaded_model_is_in_evaluation_mode(tmp_path):
    model = small_model(vocab_size=VOCAB, dropout=0.5).train()
    checkpoint.save(tmp_path / "m.pt", model, TOK, META)
    assert not checkpoint.load(tmp_path / "m.pt").model.training
    assert model.training


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tied_head_is_stored_once_and_is_still_tied(tmp_path, arch):
    model = model_of(arch)
    checkpoint.save(tmp_path / "m.pt", model, TOK, META)
    assert 4 * model.n_params() < (tmp_path / "m.pt").stat().st_size < 4 * model.n_params() + VOCAB * 32 * 4
    loaded = checkpoint.load(tmp_path / "m.pt").model
    assert loaded.lm_head.weight is loaded.wte.weight


def test_the_same_model_makes_the_same_fingerprint_and_any_changed_weight_another():
    model = small_model()
    before = checkpoint.fingerprint(model.state_dict())
    assert before == checkpoint.fingerprint(small_model().state_dict())
    assert len(before) == 16
    int(before, 16)
    for p in model.parameters():
        with torch.no_grad():
            p.view(-1)[-1].add_(1e-3)
        after = checkpoint.fingerprint(model.state_dict())
        assert after != before
        before = after


def test_meta_can_be_read_without_building_the_model(nanochat_home, monkeypatch):
    path = saved()
    monkeypatch.setattr(checkpoint, "GPT", None)
    meta = checkpoint.read_meta(path)
    assert meta["step"] == 3
    assert meta["config"]["n_layer"] == 2


# --- files that are not what they should be ------------------------------------------------------


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.load_file, checkpoint.read_meta])
@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, read, kind):
    path, target = tmp_path / "m.pt", tmp_path / "owned"
    content = {"format": 1, "config": {}, "model": {}, "tokenizer": {}, "meta": Bomb(target)}
    with path.open("wb") as file:
        (torch.save if kind == "torch" else pickle.dump)(content, file)
    with pytest.raises(UserError, match="damaged or not a nanochat checkpoint"):
        read(path)
    assert not target.exists()


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_meta])
@pytest.mark.parametrize(
    "content",
    [
        {"format": 1},
        {"no": "format"},
        {"format": 1, "config": {}, "model": {}, "tokenizer": {}, "meta": None},
        {"format": 1, "config": None, "model": 3, "tokenizer": 4, "meta": 5},
        [1, 2],
        torch.zeros(3),
        "text",
    ],
    ids=str,
)
def test_a_torch_file_of_something_else_is_refused(tmp_path, read, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match="damaged or not a nanochat checkpoint"):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x00" * 100])
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    for read in (checkpoint.load, checkpoint.read_meta):
        with pytest.raises(UserError, match="damaged or not a nanochat checkpoint") as error:
            read(tmp_path / "m.pt")
        assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint m\.pt in .*; train that stage first"):
        checkpoint.load(tmp_path / "m.pt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path, whole, share):
    (tmp_path / "m.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="damaged or not a nanochat checkpoint"):
        checkpoint.load(tmp_path / "m.pt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(at=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3), bits=st.integers(1, 255))
def test_a_flipped_byte_is_found_or_is_one_that_means_nothing(tmp_path, whole, at, bits):
    content = bytearray(whole)
    for place in at:
        content[int(place * len(whole))] ^= bits
    (tmp_path / "m.pt").write_bytes(content)
    try:
        loaded = checkpoint.load(tmp_path / "m.pt")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(torch.equal(p, q) for p, q in zip(loaded.model.parameters(), model_of().parameters(), strict=True))
        assert loaded.meta["step"] == 3


def test_a_flipped_weight_is_found(tmp_path, whole):
    weight = model_of().wte.weight.detach().numpy().tobytes()
    content = bytearray(whole)
    content[whole.index(weight) + 100] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "m.pt")


def test_a_file_of_another_format_says_which(tmp_path):
    torch.save({"format": 99}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=f"has format 99, this version reads {checkpoint.FORMAT}"):
        checkpoint.load(tmp_path / "m.pt")


def test_weights_of_another_shape_are_refused(tmp_path):
    checkpoint.save(tmp_path / "m.pt", model_of(), TOK, META)
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    content["config"]["n_layer"] = 3
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path / "m.pt")


def test_a_tokenizer_that_is_not_the_models_is_refused_naming_both(tmp_path):
    checkpoint.save(tmp_path / "m.pt", model_of(), TOK, META)
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    content["tokenizer"]["pattern"] = r"\w+|\W+"
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match=f"trained with tokenizer {TOK.fingerprint} but carries [0-9a-f]{{16}}"):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 6442450944 bytes. Error code 12"
        ),
        RuntimeError("unable to mmap 123456 bytes from file <m.pt>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_meta])
def test_a_lack_of_memory_while_reading_is_no_damage(nanochat_home, monkeypatch, read, failure):
    path = saved()
    monkeypatch.setattr(torch, "load", raising(failure))
    with pytest.raises(UserError, match="does not fit into the free memory; close other programs") as error:
        read(path)
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)


def test_a_model_too_large_for_the_memory_is_no_damaged_one(tmp_path):
    checkpoint.save(tmp_path / "m.pt", model_of(), TOK, META)
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    content["config"]["vocab_size"] = 10**13
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match="does not fit into the free memory") as error:
        checkpoint.load(tmp_path / "m.pt")
    assert "train that stage again" not in str(error.value)


def test_a_gpu_too_small_for_the_model_is_told_as_a_lack_of_memory(nanochat_home, monkeypatch):
    path = saved()
    monkeypatch.setattr(checkpoint.GPT, "to", raising(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(UserError, match="does not fit into the free memory"):
        checkpoint.load(path, "cpu")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_meta])
def test_a_file_that_the_system_does_not_hand_out_is_not_called_damaged_but_says_why(
    nanochat_home, monkeypatch, read, number
):
    path = saved()
    for module, name in ((zipfile, "ZipFile"), (torch, "load")):
        monkeypatch.setattr(module, name, raising(OSError(number, os.strerror(number))))
    with pytest.raises(UserError, match=rf"cannot be read \({os.strerror(number)}\)") as error:
        read(path)
    assert "train" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bug", [AttributeError("no such thing"), RuntimeError("mat1 and mat2"), KeyError("ranks")], ids=repr
)
@pytest.mark.parametrize("place", ["tokenizer", "model"])
def test_a_mistake_in_the_program_is_not_taken_for_a_damaged_file(nanochat_home, monkeypatch, place, bug):
    path = saved()
    if place == "tokenizer":
        monkeypatch.setattr(checkpoint.Tokenizer, "from_state", raising(bug))
    else:
        monkeypatch.setattr(checkpoint, "GPT", raising(bug))
    with pytest.raises(type(bug)) as error:
        checkpoint.load(path)
    assert error.value is bug


def test_a_save_that_fails_leaves_the_model_that_was_there(nanochat_home, monkeypatch):
    path = saved()
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, small_model(seed=1, vocab_size=VOCAB), TOK, META)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# --- what there is -------------------------------------------------------------------------------


def test_an_empty_project_offers_nothing(nanochat_home):
    assert checkpoint.available() == []
    with pytest.raises(UserError, match="there is no trained model; trained so far: nothing yet"):
        checkpoint.find()


def test_only_what_can_be_loaded_is_offered(nanochat_home):
    path = saved("good")
    for run, content in (("empty", None), ("broken", b"PK\x03\x04 no model"), ("cut", path.read_bytes()[:3000])):
        paths.run_dir(run).mkdir(parents=True)
        if content is not None:
            paths.checkpoint_path(run, "base_model").write_bytes(content)
    (paths.run_dir("good") / "other_base_model.pt").write_bytes(path.read_bytes())  # a name that is not the run's
    (nanochat_home / "out" / "README.md").write_text("models go here")
    checkpoint.save_file(paths.checkpoint_path("good", "aligned"), {"step": 3})  # a state, not a model
    assert checkpoint.available() == [("good", "base_model", path)]


def test_the_newest_run_comes_first_and_its_last_stage_before_the_others(nanochat_home):
    times = {("old", "aligned"): 100, ("new", "base_model"): 300, ("new", "fine_tuned"): 200}
    for (run, stage), time in times.items():
        os.utime(saved(run, stage), (time, time))
    assert [(run, stage) for run, stage, _ in checkpoint.available()] == [
        ("new", "fine_tuned"), ("new", "base_model"), ("old", "aligned")
    ]  # fmt: skip
    assert checkpoint.find() == paths.checkpoint_path("new", "fine_tuned")
    assert checkpoint.find("old") == paths.checkpoint_path("old", "aligned")
    assert checkpoint.find(stage="base_model") == paths.checkpoint_path("new", "base_model")
    assert checkpoint.find("new", "base_model") == paths.checkpoint_path("new", "base_model")


def test_of_runs_saved_at_the_same_moment_the_first_by_name_counts_as_the_newest(nanochat_home):
    for run, stage in (("b", "base_model"), ("a", "base_model"), ("a", "fine_tuned")):
        os.utime(saved(run, stage), (100, 100))
    assert [(run, stage) for run, stage, _ in checkpoint.available()] == [
        ("a", "fine_tuned"), ("a", "base_model"), ("b", "base_model")
    ]  # fmt: skip


def test_asking_for_what_there_is_not_says_what_there_is(nanochat_home):
    saved("mine")
    message = r"no trained model of run 'yours' at stage 'aligned'; trained so far: mine \(base_model\)"
    with pytest.raises(UserError, match=message):
        checkpoint.find("yours", "aligned")
    with pytest.raises(UserError, match="cannot be the name of a run"):
        checkpoint.find("../mine")
    with pytest.raises(UserError, match="unknown stage"):
        checkpoint.find("mine", "finetuned")


def rename(old: str, new: str) -> None:
    paths.run_dir(old).rename(paths.run_dir(new))


def test_the_models_of_a_renamed_folder_are_named_with_the_names_they_need(nanochat_home):
    for stage in ("base_model", "fine_tuned"):
        saved("nano", stage)
    rename("nano", "mine")
    renames = "rename nano_base_model.pt to mine_base_model.pt, nano_fine_tuned.pt to mine_fine_tuned.pt"
    message = f"nothing yet; models in out/mine must be named after it; {renames};"
    for run in (None, "mine", "nano"):
        with pytest.raises(UserError, match=message):
            checkpoint.find(run)


def test_a_run_renamed_with_its_files_has_its_new_name_in_everything(nanochat_home):
    base = saved("nano")
    parent = checkpoint.read_meta(base)["fingerprint"]
    tuned = paths.checkpoint_path("nano", "fine_tuned")
    checkpoint.save(tuned, model_of(), TOK, {**META, "run": "nano", "stage": "fine_tuned", "parent": parent})
    rename("nano", "mine")
    for stage in ("base_model", "fine_tuned"):
        (paths.run_dir("mine") / f"nano_{stage}.pt").rename(paths.checkpoint_path("mine", stage))
    loaded = checkpoint.load(checkpoint.find("mine"))
    assert loaded.meta["run"] == "mine" and checkpoint.read_meta(loaded.path)["run"] == "mine"
    assert checkpoint.orphaned(loaded.path, loaded.meta) == ""


def test_config_round_trips_through_plain_values(nanochat_home):
    meta = checkpoint.read_meta(saved())
    assert small_config(vocab_size=VOCAB).__class__(**meta["config"]) == small_config(vocab_size=VOCAB)
