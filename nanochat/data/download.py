"""Downloads with retries, resuming, verification, and a lock for each file."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import UserError
from ..files import atomic_write, make_folder, move, open_partial

if TYPE_CHECKING:
    import requests

__all__ = ["fetch", "sha256"]

TRIES = 4
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 60.0  # seconds, however long a server asks us to wait
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte


def fetch(url: str, folder: Path, name: str, *, expected: str = "") -> Path:
    """The path `folder/name`, downloaded from `url` unless it exists; a file saved there by hand is used as it is.

    `expected` is the SHA-256 that a download must have; without it, the first download is trusted. The digest is saved in
    `name.sha256` and checked each time. An interrupted download is resumed if the server supports it. If another thread
    or process is downloading the same file, waits for it. Raises UserError if the download fails or has another digest
    than expected, or if the file has changed since.
    """
    target = Path(folder) / name
    if target.is_file():
        return _unchanged(target)
    if not url.startswith(("http://", "https://")):
        raise UserError(f"cannot download {url}, only http and https; save it by hand as {target}")
    import requests

    part = target.with_name(f".{name}.part")
    try:
        with _one_at_a_time(part.with_suffix(".lock"), name):
            if target.is_file():  # somebody else's download has just finished
                return _unchanged(target)
            _download(url, part)
            digest = sha256(part)
            if expected and digest != expected:
                part.unlink()
                part.with_suffix(".etag").unlink(missing_ok=True)
                raise UserError(
                    f"{url} is not the expected file (sha256 {digest} instead of {expected}); "
                    f"try again later, or save the file by hand as {target}"
                )
            with atomic_write(_checksum(target), "w") as file:  # first: no download is there that cannot be checked
                file.write(f"{digest}  {name}\n")
            move(part, target)
            part.with_suffix(".etag").unlink(missing_ok=True)
    except (requests.RequestException, OSError) as error:
        raise UserError(f"cannot download {url} ({_reason(error)}); save it by hand as {target}") from error
    return target


def _checksum(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _unchanged(target: Path) -> Path:
    """`target` if it has not changed since its download; raises UserError otherwise."""
    checksum = _checksum(target)
    if checksum.is_file() and checksum.read_text(encoding="ascii").split()[:1] != [sha256(target)]:
        raise UserError(f"{target} has changed since its download; delete it, or {checksum.name} to keep it")
    return target


@contextlib.contextmanager
def _one_at_a_time(path: Path, name: str) -> Iterator[None]:
    """Hold the lock file `path`, which the operating system releases if this process dies."""
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(path)  # a new one each time, so that threads exclude each other too
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {name}, which is being downloaded already", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url: str, part: Path) -> None:
    """Download `url` into `part`, with several tries, each of which resumes where the previous one stopped."""
    import requests

    for attempt in range(TRIES):
        try:
            return _receive(url, part)
        except requests.RequestException as error:
            if attempt == TRIES - 1 or not _temporary(error):
                raise
            pause = _pause(error, attempt)
            print(f"{url}: {_reason(error)}; next try in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _temporary(error: requests.RequestException) -> bool:
    """Whether the error may be temporary, so that another try may succeed."""
    import requests

    if error.response is not None:
        return error.response.status_code == 429 or error.response.status_code >= 500
    temporary = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, temporary)


def _pause(error: requests.RequestException, attempt: int) -> float:
    """How many seconds to wait: what the server asks for, as seconds or a date, or else twice as long after each try."""
    asked = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    seconds = PAUSE * 2**attempt
    if asked.isdecimal():
        seconds = float(asked)
    elif date := email.utils.parsedate_tz(asked):
        with contextlib.suppress(ValueError, OverflowError):  # not an existing date
            seconds = email.utils.mktime_tz(date) - time.time()
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP status {response.status_code}"
    return getattr(error, "strerror", None) or type(error).__name__


def _receive(url: str, part: Path) -> None:
    """Download the rest of `part`, or all of it unless the server confirms that its file is unchanged."""
    import requests
    from tqdm import tqdm

    etag = part.with_suffix(".etag")
    start = part.stat().st_size if part.is_file() and etag.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # so that lengths are those of the uncompressed file
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag.read_text(encoding="latin-1")}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing after `start`: it was complete, or the file is shorter now
            etag.unlink()
            raise requests.ConnectionError("the server does not have the rest of the file")
        response.raise_for_status()
        start = start if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        with (
            open_partial(part, keep=start > 0) as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem[1:], disable=None) as bar,
        ):
            tag = response.headers.get("ETag", "W/")
            if tag.startswith("W/"):  # a weak tag does not promise the same bytes
                etag.unlink(missing_ok=True)
            else:
                with atomic_write(etag) as kept:
                    kept.write(tag.encode("latin-1"))
            for block in response.iter_content(1 << 16):
                bar.update(file.write(block))
    # requests also works with urllib3 1.26, which takes a connection that was closed early for the end of the file.
    if total not in (None, part.stat().st_size) and "Content-Encoding" not in response.headers:
        raise requests.ConnectionError(f"stopped after {part.stat().st_size} of {total} bytes")


def sha256(path: Path) -> str:
    """The SHA-256 of a file as hex digits, cached until the file changes."""
    status = path.stat()
    return _sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()
