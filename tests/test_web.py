"""The playground as a web page, without a browser: what is served, where, and the error messages."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import nbformat
import pytest
from tiny import tiny_checkpoint

from nanochat.chat import web
from nanochat.cli import parser as cli


def nanochat(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    return cli.main(words), *capsys.readouterr()


def test_the_notebook_shows_the_playground_and_nothing_else() -> None:
    notebook = nbformat.reads(web.notebook("na'no", None), as_version=4)
    nbformat.validate(notebook)
    [cell] = notebook.cells
    assert cell.source == """from nanochat.widgets import playground\nplayground("na'no", None)"""


def test_without_voila_the_extra_is_named(nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tiny_checkpoint(nanochat_home)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "voila" else real(name))
    status, out, err = nanochat(capsys, "chat", "--web")
    assert (status, out, err.count("\n")) == (2, "", 1) and "pip install 'nanochat[app]'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--web"], "`nanochat course` trains one"),
        (["--port", "8866"], "add --web"),
        (["--web", "--port", "65536"], "is not a port"),
        (["--web", "--port", "http"], "is not a port"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    nanochat_home: Path, monkeypatch, capsys, words: list[str], said: str
) -> None:
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: object())
    status, out, err = nanochat(capsys, "chat", *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err
    assert not list(nanochat_home.iterdir())


def test_a_port_in_use_is_told(nanochat_home: Path, monkeypatch, capsys) -> None:
    tiny_checkpoint(nanochat_home)
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: object())
    with socket.socket() as other:
        other.bind((web.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        status, out, err = nanochat(capsys, "chat", "--web", "--port", str(port))
    assert (status, out) == (2, "") and f"port {port} cannot be used" in err and "leave out --port" in err


def test_a_free_port_is_found_or_the_named_one_taken() -> None:
    port = web.free_port()
    assert 1024 < port < 65536 and web.free_port(port) == port


def test_it_listens_on_this_machine_only_and_its_pages_may_ask_nobody_else() -> None:
    options = web._options(8866)
    assert (options["Voila"]["ip"], options["Voila"]["port"]) == ("127.0.0.1", 8866)
    policy = options["Voila"]["tornado_settings"]["headers"]["Content-Security-Policy"]
    assert "http" not in policy and "*" not in policy and "default-src 'self'" in policy
    json.dumps(options)


# The real server, with a notebook that shows nothing: its kernels start quickly.
SERVE = """
import sys
from nanochat.chat import web
real = web.notebook
web.notebook = lambda run, stage: real(run, stage).replace("from nanochat.widgets import playground", "import sys").replace(
    "playground(", "print(")
web.serve(None, None, say=lambda text: print(text, flush=True))
"""


@pytest.fixture
def port(nanochat_home: Path) -> Iterator[int]:
    """The port of a running server."""
    pytest.importorskip("voila", reason="voila is not installed: pip install 'nanochat[app]'")
    tiny_checkpoint(nanochat_home)
    places = {**os.environ, "PYTHONPATH": str(Path(web.__file__).parents[1])}
    with (nanochat_home / "web.log").open("w") as log:
        command = [sys.executable, "-c", SERVE]
        process = subprocess.Popen(command, env=places, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        yield int(re.search(r":(\d+)/", process.stdout.readline())[1])
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait(60)


def get(port: int, path: str, host: str, **headers: str) -> tuple[int, str]:
    """Status and text of the server's response to a request with the Host header `host`."""
    connection = HTTPConnection(web.HOST, port, timeout=60)
    connection.request("GET", path, headers={"Host": host, **headers})
    answer = connection.getresponse()
    text = "" if answer.status == 101 else answer.read().decode()
    connection.close()
    return answer.status, text


def test_only_the_names_of_this_machine_reach_the_page_and_its_kernel(port: int) -> None:
    status, page = get(port, "/", f"127.0.0.1:{port}")
    assert status == 200
    channels = f"/api/kernels/{re.search(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', page)[0]}/channels"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    for host in ("127.0.0.1", "localhost", "[::1]", "LocalHost"):
        for name in (host, f"{host}:{port}", f"{host}:80"):
            # Browsers write names in lower case, and tornado before 6.6 takes an Origin with no other Host.
            assert get(port, channels, name.lower(), Origin=f"http://{name.lower()}", **upgrade)[0] == 101
            assert get(port, "/voila/templates/lab/static/voila.js", name)[0] == 200
    for host in ("attacker.example", "127.0.0.1.attacker.example", "localhost.attacker.example", "192.168.0.2", "::1"):
        for name in (host, f"{host}:{port}"):
            for path in ("/", "/voila/templates/lab/static/voila.js", "/nowhere", channels):
                status, text = get(port, path, name)
                assert status == 403 and f"http://{web.HOST}" in text and text.count("\n") == 1
            assert get(port, channels, name, Origin=f"http://{name}", **upgrade)[0] == 403
