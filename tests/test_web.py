"""The playground as a web page, without the browser: what is served, where, and what is said if it cannot be."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import nbformat
import pytest
from tiny import tiny_checkpoint

from nanochat import cli, web


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
    assert (status, out) == (2, "") and f"port {port} cannot be used" in err and "leave --port out" in err


def test_a_free_port_is_found_or_the_named_one_taken() -> None:
    port = web.free_port()
    assert 1024 < port < 65536 and web.free_port(port) == port


def test_it_listens_on_this_machine_only_and_its_pages_may_ask_nobody_else() -> None:
    options = web._options(8866)
    assert (options["Voila"]["ip"], options["Voila"]["port"]) == ("127.0.0.1", 8866)
    policy = options["Voila"]["tornado_settings"]["headers"]["Content-Security-Policy"]
    assert "http" not in policy and "*" not in policy and "default-src 'self'" in policy
    json.dumps(options)
