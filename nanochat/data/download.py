"""Downloads: several tries, resumed where they broke off, verified, and one at a time for each file."""

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
    """`folder/name`, downloaded from `url` unless it is there already; a file put there by hand is as good.

    `expected` is the sha256 that a download must have; without one the first download is trusted. What it has is kept
    in `name.sha256`, and the file is compared with that each time. An interrupted download is resumed if the server
    can. If another thread or process is downloading the same file, waits for it. Raises UserError if the download
    fails or is not what is expected, or if the file has changed since.
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
                    f"what {url} sends is not the expected file (sha256 {digest} instead of {expected}); "
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
    """`target`; raises UserError if it is not what was downloaded."""
    checksum = _checksum(target)
    if checksum.is_file() and checksum.read_text(encoding="ascii").split()[:1] != [sha256(target)]:
        raise UserError(f"{target} is not as it was downloaded; delete it, or {checksum.name} to keep it")
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
    """Bring all of `url` into `part`: several tries, each resuming where the one before broke off."""
    import requests

    for attempt in range(TRIES):
        try:
            return _receive(url, part)
        except requests.RequestException as error:
            if attempt == TRIES - 1 or not _passing(error):
                raise
            pause = _pause(error, attempt)
            print(f"{url}: {_reason(error)}; next try in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _passing(error: requests.RequestException) -> bool:
    """Whether another try may succeed."""
    import requests

    if error.response is not None:
        return error.response.status_code == 429 or error.response.status_code >= 500
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing)


def _pause(error: requests.RequestException, attempt: int) -> float:
    """How many seconds to wait: as many as the server asks for, in seconds or by a date, else longer each time."""
    asked = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    seconds = PAUSE * 2**attempt
    if asked.isdecimal():
        seconds = float(asked)
    elif date := email.utils.parsedate_tz(asked):
        with contextlib.suppress(ValueError, OverflowError):  # digits enough, but no day there is
            seconds = email.utils.mktime_tz(date) - time.time()
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP status {response.status_code}"
    return getattr(error, "strerror", None) or type(error).__name__


def _receive(url: str, part: Path) -> None:
    """Get the rest of `part`; all of it where the server does not say that its file is still the same one."""
    import requests
    from tqdm import tqdm

    etag = part.with_suffix(".etag")
    start = part.stat().st_size if part.is_file() and etag.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # so that the lengths are those of the file
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag.read_text(encoding="latin-1")}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing comes after `start`: we had it all, or it is shorter now
            etag.unlink()
            raise requests.ConnectionError("the rest of the download is not there")
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
        raise requests.ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")


def sha256(path: Path) -> str:
    """The hex digest of a file, computed once for each state of it."""
    status = path.stat()
    return _sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()
