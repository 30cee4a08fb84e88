"""Every file is written here: no reader ever sees half of one, and a file with its final name is on the disk."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["append_line", "atomic_write", "flush_folder", "make_folder", "move", "open_partial", "scratch"]


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only when the block ends without an exception.

    It is written under a temporary name, flushed, renamed, and then the folder is flushed. On an exception the temporary
    file is removed and what was at `path` before is untouched.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _umask() -> int:
    """The permissions that this user's new files do not get; the system tells only when it is set."""
    before = os.umask(0o077)
    os.umask(before)
    return before


def append_line(path: Path, line: str) -> None:
    """Append one line to a file in a single write, then flush it, so that several processes can share the file.

    If the file does not end with a newline, a writer crashed in the middle of a line or the disk was full, so this line
    starts with a newline. (If that writer is still running, the result is an empty line, which readers skip.) Raises
    OSError if the line cannot be written whole.
    """
    content = line.encode() + b"\n"
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
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
def open_partial(path: Path, *, keep: bool) -> Iterator[IO[bytes]]:
    """Open a partial file, to be given its name by `move` when it is complete; with `keep`, write after its content.

    It is flushed when the block ends without an exception; after one, what was written stays, so that it can be resumed.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if keep else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, 0o666), "ab" if keep else "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def scratch(folder: Path | None = None) -> IO[bytes]:
    """A temporary file in `folder`, or in the system's own folder for these; it is gone when closed."""
    if folder is not None:
        make_folder(folder)
    return tempfile.TemporaryFile(dir=folder)


def move(source: Path, target: Path) -> None:
    """Rename a finished file, replacing what had that name, and flush the folders."""
    os.replace(source, target)
    flush_folder(target.parent)
    if source.parent != target.parent:
        flush_folder(source.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and flush them, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(path: Path) -> None:
    """Flush a folder's list of files: until then a power cut can lose a new file, even one that was flushed itself.

    Does nothing where the system cannot open folders, as on Windows, or flush them, as on some network disks.
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
