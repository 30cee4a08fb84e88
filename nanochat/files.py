"""The one door through which files are written: nobody ever sees half of one, and what has its name is on the disk."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["append_line", "atomic_write", "flush_folder", "go_on_writing", "make_folder", "move", "scratch"]


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` only when the block ends well.

    It is written under a temporary name and flushed, then it gets its name, and the folder is flushed.

    On any exception the temporary file is removed and what was at `path` before is untouched.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to the end of a file, durably and in one write, so that several processes can share it.

    A last line without its newline was torn by somebody's crash or a full disk: ours then starts with one. (Should that
    writer still be at work, the result is an empty line, which readers pass over.) Raises OSError if the disk will not
    have the whole line.
    """
    content = line.encode() + b"\n"
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
        if end:
            os.lseek(fd, end - 1, os.SEEK_SET)
            if os.read(fd, 1) != b"\n":
                content = b"\n" + content
        if os.write(fd, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)
    if not end:  # the file is new
        flush_folder(path.parent)


@contextmanager
def go_on_writing(path: Path, *, keep: bool) -> Iterator[IO[bytes]]:
    """Open a file that is unfinished until somebody moves it to its name, after what it holds already if `keep`.

    It is flushed when the block ends well; on an exception, what was written stays, to be gone on from.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if keep else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, 0o644), "ab" if keep else "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def scratch(folder: Path | None = None) -> IO[bytes]:
    """A file without a name in `folder` (else where the system keeps such), gone when it is closed."""
    if folder is not None:
        make_folder(folder)
    return tempfile.TemporaryFile(dir=folder)


def move(source: Path, target: Path) -> None:
    """Give a finished file another name, in place of what had that name, and flush the folders."""
    os.replace(source, target)
    flush_folder(target.parent)
    if source.parent != target.parent:
        flush_folder(source.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that they are there after a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(path: Path) -> None:
    """Put on the disk which files a folder has: until then a power cut can take a new one, however well it was flushed.

    Does nothing where the system cannot open folders, as on Windows, or cannot flush them, as on some shared disks.
    Raises OSError if the disk fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
