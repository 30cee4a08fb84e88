"""The playground as a web page: Voilà serves a notebook that contains nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint, files, paths
from ..config import UserError

if TYPE_CHECKING:
    from tornado.routing import Rule

# These display widgets; other installed extensions are meant for JupyterLab.
_EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8"]
HOST = "127.0.0.1"  # only users of this machine can open the page
_NAMES = (HOST, "localhost", "[::1]")  # Host names in requests from this machine's own browsers
# Seconds after which a kernel (about 300 MB for each visitor) without a connection is shut down
_IDLE = 600
# Voilà's page loads icons, unused here, from a remote server; this policy makes browsers contact no server but this one.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: data:"


def notebook(run: str | None, stage: str | None) -> str:
    """The JSON of a notebook that only shows the playground.

    Not notebook 05, whose visitors would have to wait until the whole lesson has run.
    """
    source = f"from nanochat.widgets import playground\nplayground({run!r}, {stage!r})"
    cell = {"id": "playground", "cell_type": "code", "source": source, "metadata": {}, "outputs": []}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps(
        {
            "cells": [{**cell, "execution_count": None}],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def free_port(port: int = 0) -> int:
    """`port` if it is free, or any free port for 0. Raises UserError if it is taken."""
    with socket.socket() as probe:
        if os.name == "posix":  # a port used a moment ago counts as free, as it does for the server
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}); leave out --port to use a free one"
            ) from None
        return probe.getsockname()[1]


def serve(run: str | None, stage: str | None, port: int = 0, say: Callable[[str], None] = print) -> None:
    """Serve the playground on this machine until Ctrl-C. Raises UserError if Voilà or the model is missing."""
    if importlib.util.find_spec("voila") is None:
        raise UserError("the web page needs voila; install it with: pip install 'nanochat[app]'")
    checkpoint.find(run, stage)
    port = free_port(port)
    # The kernels run in a temporary folder but must find this project and this package.
    os.environ["NANOCHAT_HOME"] = str(paths.home())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *_python_path()])

    from tornado.ioloop import IOLoop
    from traitlets.config import Config
    from voila.app import Voila

    class Local(Voila):  # type: ignore[misc] # voila says nothing of its types
        def init_handlers(self) -> list[Any]:
            return [_refuse_other_names(), *super().init_handlers()]

    with tempfile.TemporaryDirectory(prefix="nanochat-") as folder:
        file = Path(folder) / "nanochat.ipynb"
        with files.atomic_write(file, "w") as page:
            page.write(notebook(run, stage))
        app = Local(config=Config(_options(port)))
        app.initialize([str(file)])
        IOLoop.current().add_callback(say, f"The playground is at http://{HOST}:{port}/ (Ctrl-C ends it).")
        app.start()  # returns after Ctrl-C, when its kernels have ended
    say("\nThe playground is closed.")


def _refuse_other_names() -> Rule:
    """A routing rule, to be placed first, that answers 403 unless the Host header names this machine's loopback.

    This prevents DNS rebinding: a website can point its own domain to 127.0.0.1, so that browsers let its scripts read
    this page. The Host header reveals it, for pages and WebSockets alike.
    """
    from tornado.httputil import HTTPServerRequest
    from tornado.routing import Matcher, Rule
    from tornado.web import ErrorHandler

    class Refusal(ErrorHandler):
        def write_error(self, status_code: int, **details: Any) -> None:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"this page only serves the machine it runs on; open it there as http://{HOST}:PORT/\n")

    class OtherName(Matcher):
        def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
            return None if request.host_name in _NAMES else {}

    return Rule(OtherName(), Refusal, {"status_code": 403})


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _options(port: int) -> dict[str, dict[str, Any]]:
    voila = {
        "ip": HOST, "port": port, "port_retries": 0, "open_browser": False, "log_level": "ERROR",
        "tornado_settings": {"headers": {"Content-Security-Policy": _POLICY}},
    }  # fmt: skip
    # On Linux kernels can listen on this user's files instead of on ports, which every user of the machine could reach.
    transport = "ipc" if sys.platform.startswith("linux") else "tcp"
    return {
        "Voila": voila,
        "VoilaConfiguration": {"extension_allowlist": _EXTENSIONS},
        "MappingKernelManager": {"cull_idle_timeout": _IDLE, "cull_interval": 60},
        "KernelManager": {"transport": transport},
    }
