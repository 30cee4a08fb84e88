"""Model files: written atomically, loaded without ever running code from them, each naming what it was made from."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import devices, files, paths
from .config import ModelConfig, UserError
from .model import GPT
from .tokenizer import Tokenizer

FORMAT = 1


@dataclass
class Checkpoint:
    """A loaded model with its tokenizer. `meta` holds run, stage, step, val_loss, val_bpb, parent and fingerprints."""

    model: GPT
    tokenizer: Tokenizer
    meta: dict[str, Any]
    path: Path


def fingerprint(weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any weight changes, but not with the precision in which it is stored."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write plain values and tensors to `path`, atomically. Raises OSError if the disk will not have them."""
    with files.atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # what the archive's writer makes of a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_file(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read a file of save_file with `weights_only=True`, on the CPU. Raises UserError if it is missing or not ours.

    Every byte of the tensors is checked against the file's checksums, which torch.load does not do. `check=False` leaves
    that out and maps the tensors instead of reading them: for looking at what is beside them.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path.name} in {path.parent}; train that stage first")
    with _readable(path):
        if check:
            with zipfile.ZipFile(path) as archive:
                if (bad := archive.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {bad}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not check)
    if not isinstance(content, dict) or "format" not in content:
        raise _damaged(path)
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}; train it again")
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or no nanochat checkpoint; train that stage again")


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn a lack of memory, which Python and PyTorch report in several ways, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not devices.out_of_memory(error):
            raise
        raise UserError(
            f"{path} does not fit into the memory that is free; close other programs or use a machine with more"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what zipfile and torch.load raise while they read `path` into a UserError that says what is wrong.

    A damaged file makes them raise nearly any type, so only their calls belong inside: what code of ours raises is no
    damage.
    """
    try:
        with _room_for(path):
            yield
    except UserError:
        raise
    except Exception as error:
        # an OSError without a number comes from a decompressor; EINVAL from seeking to a place that a damaged file names
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(
                f"{path} cannot be read ({error.strerror}), which does not mean that it is damaged; mend that and try again"
            ) from error
        raise _damaged(path) from error


def _parts(path: Path, *, check: bool = True) -> dict[str, dict[str, Any]]:
    """The content of a model file; raises UserError like load_file, and if something else was saved there."""
    content = load_file(path, check=check)
    if not all(isinstance(content.get(name), dict) for name in ("config", "model", "tokenizer", "meta")):
        raise _damaged(path)
    return content


def save(path: Path, model: GPT, tokenizer: Tokenizer, meta: dict[str, Any]) -> str:
    """Write a model with everything needed to talk to it; returns the fingerprint of its weights."""
    weights = model.state_dict()
    mark = fingerprint(weights)
    meta = {**meta, "fingerprint": mark, "tokenizer": tokenizer.name, "tokenizer_fingerprint": tokenizer.fingerprint}
    save_file(path, {"config": asdict(model.config), "model": weights, "tokenizer": tokenizer.to_state(), "meta": meta})
    return mark


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a model, in float32 and in evaluation mode.

    Raises UserError if the file is missing or damaged, does not fit together, or not into memory.
    """
    content = _parts(path)
    try:
        config = ModelConfig(**content["config"])
    except TypeError as error:  # other fields than a model's shape has
        raise _damaged(path) from error
    with _room_for(path):
        model = GPT(config)
        try:
            model.load_state_dict(content["model"])
        except RuntimeError as error:  # weights are missing, or of another shape
            if devices.out_of_memory(error):
                raise
            raise _damaged(path) from error
        model = model.to(device).eval()
    tokenizer = Tokenizer.from_state(content["tokenizer"])
    meta = content["meta"]
    if tokenizer.fingerprint != meta.get("tokenizer_fingerprint"):
        raise UserError(
            f"{path.name} was trained with tokenizer {meta.get('tokenizer_fingerprint')} but carries "
            f"{tokenizer.fingerprint}; train it again"
        )
    return Checkpoint(model, tokenizer, meta, path)


def read_meta(path: Path) -> dict[str, Any]:
    """Only the meta of a model file, with `config` beside it; raises UserError like load_file."""
    content = _parts(path, check=False)
    return {**content["meta"], "config": content["config"]}


def available() -> list[tuple[str, str, Path]]:
    """(run, stage, path) of every model that can be loaded: newest run first, later stages first; then the box, and last
    the stand-ins, which were never meant to be good.
    """
    return [(run, stage, path) for run, stage, path, _ in _models()]


def _models() -> list[tuple[str, str, Path, dict[str, Any]]]:
    """The same with the meta of each."""
    out, box = paths.home() / "out", paths.box_dir()
    trained = [folder for folder in out.iterdir() if folder.name != paths.BOX] if out.is_dir() else []
    stages = tuple(reversed(paths.STAGES))
    files = [folder / f"{folder.name}_{stage}.pt" for folder in trained for stage in stages]
    folders = dict.fromkeys(path.parent for path in paths.newest_first(files))
    found = [
        (folder.name, stage, folder / f"{folder.name}_{stage}.pt") for folder in (*folders, box) for stage in stages
    ]
    models = [(run, stage, path, meta) for run, stage, path in found if (meta := _meta(path)) is not None]
    return sorted(models, key=lambda model: is_standin(model[3]))  # stable


def is_standin(meta: dict[str, Any]) -> bool:
    """Whether a model only stands where a trained one is missing."""
    return bool(meta.get("standin"))


def orphaned(path: Path, meta: dict[str, Any]) -> str:
    """What to say of a model whose parent, the model it was trained from, is not in its folder any more; "" if it is."""
    parent = meta.get("parent")
    at = paths.STAGES.index(meta["stage"])
    if in_box(path) or parent is None or at == 0:
        return ""
    before = {}
    for stage in reversed(paths.STAGES[:at]):
        file = path.with_name(f"{meta['run']}_{stage}.pt")
        if file.is_file() and (meta_before := _meta(file)) is not None:
            before[file.name] = meta_before.get("fingerprint")
    if parent in before.values():
        return ""
    now = " and ".join(f"{name} is {mark}" for name, mark in before.items()) or "no earlier stage is there"
    return (
        f"{path.name} was trained from a model {parent} that is not in its run any more ({now}); train that stage again"
    )


def in_box(path: Path) -> bool:
    """Whether this model came with the package."""
    return path.parent == paths.box_dir()


def _meta(path: Path) -> dict[str, Any] | None:
    """The meta of a model file; None for one that cannot be loaded."""
    try:
        return _parts(path, check=False)["meta"]
    except UserError:
        return None


def find(run: str | None = None, stage: str | None = None) -> Path:
    """The model file that `run` and `stage` mean; without a stage the latest stage, without a run the newest run.

    The model in the box is meant by run "box", and without a run as long as nothing is trained; a stand-in only by its
    name. Raises UserError when there is none, naming what there is.
    """
    if run is not None:
        paths.safe_name(run)
    if stage is not None:
        paths.stage_name(stage)
    models = _models()
    trained, boxed = ([m for m in models if in_box(m[2]) == inside] for inside in (False, True))
    real = [model for model in trained if not is_standin(model[3])]
    for other, at, path, _ in models if run else real or boxed:
        if run in (None, other) and stage in (None, at):
            return path
    wanted = (f" of run {run!r}" if run else "") + (f" at stage {stage!r}" if stage else "")
    have = ", ".join(f"{other} ({at})" for other, at, _, _ in trained) or "nothing yet"
    have += f"; with nanochat came: {', '.join(f'{other} ({at})' for other, at, _, _ in boxed)}" if boxed else ""
    raise UserError(f"there is no trained model{wanted}; trained so far: {have}; `nanochat course` trains one")
