"""Checkpoints: model files written atomically, loaded without running code from them, and naming their origin."""

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
    """A loaded model with its tokenizer.

    `meta` holds run, stage, step, val_loss, val_bpb, parent (the fingerprint of the model it was trained from, or None)
    and the fingerprints of its weights and tokenizer.
    """

    model: GPT
    tokenizer: Tokenizer
    meta: dict[str, Any]
    path: Path


def fingerprint(weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over all weights as float32: storing them in a wider type changes nothing."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write plain values and tensors to `path` atomically. Raises OSError if the disk fails."""
    with files.atomic_write(path) as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:  # what the archive's writer makes of a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_file(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read a file written by save_file, onto the CPU and with `weights_only=True`.

    All tensors are verified against the file's checksums, which torch.load does not do. `check=False` skips this and
    memory-maps the tensors, for reading only the values next to them. Raises UserError if the file is missing, damaged,
    of another kind or format, or does not fit into memory.
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
        raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}; train that stage again")
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or not a nanochat checkpoint; train that stage again")


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn out-of-memory errors, which Python and PyTorch report in several ways, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not devices.out_of_memory(error):
            raise
        raise UserError(
            f"{path} does not fit into the free memory; close other programs or use a machine with more"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what zipfile and torch.load raise while reading `path` into a UserError that says what is wrong.

    A damaged file makes them raise almost any exception. Other calls must stay outside, or their bugs would be reported
    as damage.
    """
    try:
        with _room_for(path):
            yield
    except UserError:
        raise
    except Exception as error:
        # in a damaged file, decompressors raise OSError without errno, and seeking to a wrong offset raises EINVAL
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(
                f"{path} cannot be read ({error.strerror}); the file may be intact: fix access to it and try again"
            ) from error
        raise _damaged(path) from error


def _parts(path: Path, *, check: bool = True) -> dict[str, dict[str, Any]]:
    """The content of a model file. Raises UserError like load_file, and if the file holds no model."""
    content = load_file(path, check=check)
    if not all(isinstance(content.get(name), dict) for name in ("config", "model", "tokenizer", "meta")):
        raise _damaged(path)
    run = path.parent.name
    if path.name.startswith(f"{run}_"):  # a person may have renamed the run, folder and files
        content["meta"]["run"] = run
    return content


def save(path: Path, model: GPT, tokenizer: Tokenizer, meta: dict[str, Any]) -> str:
    """Write a model with its configuration, tokenizer and metadata; returns the fingerprint of its weights."""
    weights = model.state_dict()
    digest = fingerprint(weights)
    meta = {**meta, "fingerprint": digest, "tokenizer": tokenizer.name, "tokenizer_fingerprint": tokenizer.fingerprint}
    save_file(path, {"config": asdict(model.config), "model": weights, "tokenizer": tokenizer.to_state(), "meta": meta})
    return digest


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model onto `device`, in float32 and evaluation mode.

    Raises UserError if the file is missing, damaged or inconsistent, or does not fit into memory.
    """
    content = _parts(path)
    try:
        config = ModelConfig(**content["config"])
    except TypeError as error:  # missing or unknown fields
        raise _damaged(path) from error
    with _room_for(path):
        model = GPT(config)
        try:
            model.load_state_dict(content["model"])
        except RuntimeError as error:  # missing weights or other shapes
            if devices.out_of_memory(error):
                raise
            raise _damaged(path) from error
        model = model.to(device).eval()
    tokenizer = Tokenizer.from_state(content["tokenizer"])
    meta = content["meta"]
    if tokenizer.fingerprint != meta.get("tokenizer_fingerprint"):
        raise UserError(
            f"{path.name} was trained with tokenizer {meta.get('tokenizer_fingerprint')} but carries "
            f"{tokenizer.fingerprint}; train that stage again"
        )
    return Checkpoint(model, tokenizer, meta, path)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a model file, with its configuration as `config`. Raises UserError like load_file."""
    content = _parts(path, check=False)
    return {**content["meta"], "config": content["config"]}


def available() -> list[tuple[str, str, Path]]:
    """(run, stage, path) of every model that can be loaded: newest run first and later stages first, then the bundled
    model, and last the stand-ins, which only keep the notebooks running.
    """
    return [(run, stage, path) for run, stage, path, _ in _models()]


def _models() -> list[tuple[str, str, Path, dict[str, Any]]]:
    """`available`, with the metadata of each model."""
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


def misnamed() -> str:
    """A message about model files not named after their folder, which are therefore ignored; "" if there are none.

    They come about when a run's folder is renamed but not the files in it.
    """
    out, sentences = paths.home() / "out", []
    for folder in sorted(out.iterdir()) if out.is_dir() else ():
        if folder.name == paths.BOX:
            continue
        renames = [
            f"{file.name} to {folder.name}_{stage}.pt"
            for stage in paths.STAGES
            for file in sorted(folder.glob(f"*_{stage}.pt"))
            if not (folder / f"{folder.name}_{stage}.pt").exists()
        ]
        if renames:
            sentences.append(f"models in out/{folder.name} must be named after it; rename {', '.join(renames)}")
    return "; ".join(sentences)


def is_standin(meta: dict[str, Any]) -> bool:
    """Whether a model is only a stand-in for a missing trained one."""
    return bool(meta.get("standin"))


def orphaned(path: Path, meta: dict[str, Any]) -> str:
    """A message if the parent of a model, the one it was trained from, is no longer in its folder; "" if it is."""
    parent = meta.get("parent")
    at = paths.STAGES.index(meta["stage"])
    if in_box(path) or parent is None or at == 0:
        return ""
    earlier = {}
    for stage in reversed(paths.STAGES[:at]):
        file = path.with_name(f"{meta['run']}_{stage}.pt")
        if file.is_file() and (other := _meta(file)) is not None:
            earlier[file.name] = other.get("fingerprint")
    if parent in earlier.values():
        return ""
    now = " and ".join(f"{name} is {digest}" for name, digest in earlier.items()) or "no earlier stage is there"
    return f"{path.name} was trained from a model {parent} that is no longer in its run ({now}); train that stage again"


def in_box(path: Path) -> bool:
    """Whether this is the path of the bundled model."""
    return path.parent == paths.box_dir()


def _meta(path: Path) -> dict[str, Any] | None:
    """The metadata of a model file; None if it cannot be loaded."""
    try:
        return _parts(path, check=False)["meta"]
    except UserError:
        return None


def find(run: str | None = None, stage: str | None = None) -> Path:
    """The path of the model of a run and stage: by default the newest run and its latest stage.

    Run "box" is the bundled model, which is also the default until something has been trained; a stand-in is only found
    by its name. Raises UserError if there is no such model, naming those there are.
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
    have += f"; {hint}" if (hint := misnamed()) else ""
    raise UserError(f"there is no trained model{wanted}; trained so far: {have}; `nanochat course` trains one")
