"""Downloads: broken off, refused, of an unexpected file, and several at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.config import UserError
from nanochat.data import download
from nanochat.data.download import fetch
from nanochat.data.sources import CORPORA, QA_SETS, documents, resolve

BODY = bytes(range(256)) * 2000  # half a megabyte: more than one read on either side


class Server(ThreadingHTTPServer):
    """A local file server that can refuse, break off and be slow, and that records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag = BODY, '"first"'
        self.breaks: list[int] = []  # each answer in turn ends after so many bytes; then answers are whole
        self.refusals: list[int] = []  # the status of each answer in turn; then answers are 200
        self.retry_after = ""
        self.asked: list[str | None] = []  # the Range header of each request
        self.slow = False  # the first answer stops half-way, until `go_on` or a second request
        self.half_way, self.go_on = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/text.txt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        if self.server.refusals:
            self.send_response(self.server.refusals.pop(0))
            if self.server.retry_after:
                self.send_header("Retry-After", self.server.retry_after)
            self.end_headers()
            return
        body, start = self.server.body, 0
        if asked and self.headers["If-Range"] == self.server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start < len(body) else 416)
        else:
            self.send_response(200)
        body = body[start:]
        self.send_header("Content-Length", str(len(body)))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # of whoever asked and was killed
            if self.server.slow and len(self.server.asked) == 1:
                half, body = body[: len(body) // 2], body[len(body) // 2 :]
                self.wfile.write(half)
                self.server.half_way.set()
                self.server.go_on.wait(60)
            self.server.go_on.set()
            self.wfile.write(body[: self.server.breaks.pop(0)] if self.server.breaks else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds before each retry, without really waiting; the clock stands at a billion seconds after 1970."""
    pauses: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=pauses.append, time=lambda: 1e9))
    return pauses


def leftovers(folder: Path) -> list[str]:
    """The content of a folder without empty lock files."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once_and_its_checksum_remembered(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path / "downloads", "text.txt")
    assert path == tmp_path / "downloads" / "text.txt" and path.read_bytes() == BODY
    assert (tmp_path / "downloads" / "text.txt.sha256").read_text().split() == [
        hashlib.sha256(BODY).hexdigest(),
        "text.txt",
    ]
    assert fetch(server.url, tmp_path / "downloads", "text.txt") == path
    assert server.asked == [None]
    assert leftovers(path.parent) == ["text.txt", "text.txt.sha256"]


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [200_000, 100_000]
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    first, *starts = [int((asked or "bytes=0-")[6:-1]) for asked in server.asked]
    assert first == 0 and 100_000 < starts[0] < starts[1] < 300_000 and len(starts) == 2
    assert leftovers(tmp_path) == ["text.txt", "text.txt.sha256"]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_firm_etag_a_broken_download_begins_again(server: Server, tmp_path: Path, etag: str) -> None:
    server.etag, server.breaks = etag, [200_000]
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    assert server.asked == [None, None]


def test_a_file_that_changed_meanwhile_is_not_pieced_together(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000] * download.TRIES
    with pytest.raises(UserError):
        fetch(server.url, tmp_path, "text.txt")
    server.body, server.etag = BODY[::-1], '"second"'
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY[::-1]


def test_half_a_download_is_never_taken_for_the_file_and_is_used_the_next_time(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000] * download.TRIES
    with pytest.raises(UserError, match=r"cannot download .*text\.txt \(\w+Error\); save it by hand as .*text\.txt"):
        fetch(server.url, tmp_path, "text.txt")
    assert leftovers(tmp_path) == [".text.txt.etag", ".text.txt.part"]
    server.asked.clear()
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    assert len(server.asked) == 1 and server.asked[0] not in (None, "bytes=0-")
    assert leftovers(tmp_path) == ["text.txt", "text.txt.sha256"]


def test_a_download_that_was_complete_but_not_put_in_place_is_mended(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".text.txt.part").write_bytes(BODY)
    (tmp_path / ".text.txt.etag").write_text(server.etag)
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY)}-", None]


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_refusal_names_url_and_place_and_leaves_nothing(server: Server, tmp_path: Path, status: int) -> None:
    server.refusals = [status]
    with pytest.raises(UserError) as caught:
        fetch(server.url, tmp_path / "downloads", "text.txt")
    message = str(caught.value)
    assert server.url in message and f"status {status}" in message
    assert str(tmp_path / "downloads" / "text.txt") in message and "\n" not in message
    assert server.asked == [None]  # asking again would not help
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_faulty_server_is_asked_again_and_for_the_last_time(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.refusals = [status] * download.TRIES
    with pytest.raises(UserError, match=f"HTTP status {status}"):
        fetch(server.url, tmp_path, "text.txt")
    assert len(server.asked) == download.TRIES
    server.refusals = [status] * (download.TRIES - 1)
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7.0),
        ("86400", download.LONGEST_PAUSE),
        (formatdate(1e9 + 30, usegmt=True), 30.0),
        (formatdate(1e9 - 30, usegmt=True), 0.0),
        (formatdate(4e9, usegmt=True), download.LONGEST_PAUSE),
        ("Mon, 99 Foo 99999 99:99:99 GMT", 0.25),
        ("soon", 0.25),
        ("", 0.25),
    ],
)
def test_a_busy_server_is_given_the_time_that_it_asks_for(
    server: Server,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    retry_after: str,
    pause: float,
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.25)
    server.refusals, server.retry_after = [429], retry_after
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    assert pauses == [pause]
    assert f"{server.url}: HTTP status 429; next try in {pause:.0f} s\n" in capsys.readouterr().err


def test_pauses_become_longer(
    server: Server, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSE", 1.0)
    server.refusals = [500, 502, 503]
    fetch(server.url, tmp_path, "text.txt")
    assert pauses == [1.0, 2.0, 4.0]


def test_an_address_that_cannot_be_one_is_not_tried_again(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(UserError, match="InvalidURL"):
        fetch("http://", tmp_path, "text.txt")
    assert pauses == []


def test_no_network_is_one_error_that_says_where_to_put_the_file(
    server: Server, nanochat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.server_close()
    with pytest.raises(UserError, match="ConnectionError"):
        resolve(server.url).path  # noqa: B018
    assert leftovers(nanochat_home / "data") == []


def test_a_full_disk_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"\(No space left on device\)"):
        fetch(server.url, tmp_path, "text.txt")


def test_a_changed_download_is_noticed(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path, "text.txt")
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"has changed since its download.*text\.txt\.sha256"):
        fetch(server.url, tmp_path, "text.txt")
    (tmp_path / "text.txt.sha256").unlink()
    assert fetch(server.url, tmp_path, "text.txt") == path


def test_a_url_is_downloaded_and_read(server: Server, nanochat_home: Path) -> None:
    server.body = b"one\n<|endoftext|>\ntwo"
    assert list(documents(server.url)) == ["one", "two"]
    assert list(documents(server.url)) == ["one", "two"]
    assert len(server.asked) == 1
    assert resolve(server.url).name == "text"


# --- the expected file ---


def test_a_download_that_is_not_the_expected_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch(server.url, tmp_path, "text.txt", expected="0" * 64)
    message = str(caught.value)
    assert server.url in message and "not the expected file" in message and str(tmp_path / "text.txt") in message
    assert "\n" not in message
    assert leftovers(tmp_path) == []


def test_the_expected_file_is_kept(server: Server, tmp_path: Path) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetch(server.url, tmp_path, "text.txt", expected=digest).read_bytes() == BODY
    assert leftovers(tmp_path) == ["text.txt", "text.txt.sha256"]


def test_a_damaged_beginning_is_not_resumed_for_ever(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".text.txt.part").write_bytes(b"damaged")
    (tmp_path / ".text.txt.etag").write_text(server.etag)
    digest = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(UserError, match="not the expected file"):
        fetch(server.url, tmp_path, "text.txt", expected=digest)
    assert fetch(server.url, tmp_path, "text.txt", expected=digest).read_bytes() == BODY


def test_a_file_put_there_by_hand_need_not_be_the_expected_one(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("by hand")
    assert fetch("http://127.0.0.1/text.txt", tmp_path, "text.txt", expected="0" * 64).read_text() == "by hand"


PINNED = {
    **{name: CORPORA for name, source in CORPORA.items() if source.sha256},
    **{name: QA_SETS for name, source in QA_SETS.items() if source.sha256},
}


def test_files_that_never_change_are_pinned() -> None:
    assert set(PINNED) == {"tiny_shakespeare", "squad_v2", "squad_v2_dev", "alpaca"}
    assert all(re.fullmatch("[0-9a-f]{64}", registry[name].sha256) for name, registry in PINNED.items())


@pytest.mark.parametrize("name", PINNED)
def test_another_file_than_the_pinned_one_is_refused(
    server: Server, nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    registry = PINNED[name]
    monkeypatch.setitem(registry, name, replace(registry[name], url=server.url))
    with pytest.raises(UserError, match=f"not the expected file.*{registry[name].sha256}"):
        resolve(name, "corpus" if registry is CORPORA else "qa").path  # noqa: B018


# --- several at a time ---

CHILD = """
import pathlib, sys
from nanochat.data.download import fetch
fetch(sys.argv[1], pathlib.Path(sys.argv[2]), "text.txt")
"""


def child(server: Server, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, server.url, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


class Screen(io.StringIO):
    """A stderr that releases a slow server once a process says that it is waiting."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def write(self, text: str) -> int:
        if "waiting for text.txt" in text:
            self.server.go_on.set()
        return super().write(text)


def test_a_second_thread_waits_for_the_download_of_the_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.slow = True
    screen = Screen(server)
    monkeypatch.setattr(sys, "stderr", screen)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: fetch(server.url, tmp_path, "text.txt").read_bytes())
        assert server.half_way.wait(60)
        second = pool.submit(lambda: fetch(server.url, tmp_path, "text.txt").read_bytes())
    assert first.result() == second.result() == BODY
    assert server.asked == [None]
    assert screen.getvalue() == "waiting for text.txt, which is being downloaded already\n"


def test_a_second_process_waits_for_the_download_of_the_first(server: Server, tmp_path: Path) -> None:
    server.slow = True
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: fetch(server.url, tmp_path, "text.txt").read_bytes())
        assert server.half_way.wait(60)
        with child(server, tmp_path) as second:
            said = second.stderr.readline()
            server.go_on.set()
            said += second.stderr.read()
    assert second.returncode == 0 and first.result() == BODY
    assert server.asked == [None]
    assert said == "waiting for text.txt, which is being downloaded already\n"
    assert leftovers(tmp_path) == ["text.txt", "text.txt.sha256"]


def test_a_process_that_was_killed_keeps_nobody_waiting(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.slow = True
    with child(server, tmp_path) as killed:
        assert server.half_way.wait(60)
        killed.kill()
    assert fetch(server.url, tmp_path, "text.txt").read_bytes() == BODY
    assert len(server.asked) == 2 and "waiting" not in capsys.readouterr().err
    assert leftovers(tmp_path) == ["text.txt", "text.txt.sha256"]
