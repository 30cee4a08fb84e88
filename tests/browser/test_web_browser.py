"""`nanochat chat --web` in a real browser: the playground alone on a page, served by a real Voilà."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from serving import CHROMIUM, NO_CHROMIUM, SLOW, WAIT, free_port
from tiny import tiny_checkpoint

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("voila", reason="voila is not installed: pip install 'nanochat[app]'")
expect = playwright_api.expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


class Web:
    """A running `nanochat chat --web` with one tiny, slow model."""

    def __init__(self, home: Path):
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        tiny_checkpoint(home)
        (home / "slow").mkdir()
        (home / "slow" / "sitecustomize.py").write_text(
            "import sys\nif any('ipykernel' in word for word in sys.orig_argv):" + SLOW.replace("\n", "\n    ")
        )
        root = Path(__file__).resolve().parents[2]
        places = {"NANOCHAT_HOME": str(home), "PYTHONPATH": os.pathsep.join([str(home / "slow"), str(root)])}
        command = [sys.executable, "-m", "nanochat", "chat", "--web", "--run", "tiny", "--port", str(self.port)]
        self.log = (home / "web.log").open("w")
        self.process = subprocess.Popen(command, env={**os.environ, **places}, stdout=self.log, stderr=self.log)

    def said(self) -> str:
        return (self.home / "web.log").read_text()

    def records(self) -> list[dict]:
        path = self.home / "data" / "feedback" / "tiny.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path)
    yield web
    web.process.kill()
    web.process.wait(60)
    web.log.close()


def test_send_stream_stop_and_rate_on_a_page_that_asks_nobody_else_and_ctrl_c_ends_it(web: Web) -> None:
    expect.set_options(timeout=WAIT)
    elsewhere, failures = [], []
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on(
            "response", lambda response: response.url.startswith(("data:", web.url)) or elsewhere.append(response.url)
        )
        for _ in range(WAIT // 500):
            if web.url in web.said():
                break
            page.wait_for_timeout(500)
        page.goto(web.url)
        page.get_by_role("button", name="Send", exact=True).wait_for()
        assert "import" not in page.locator("body").inner_text(), "the code is not for visitors"

        page.get_by_label("Message").click()
        page.keyboard.type("count")
        page.keyboard.press("Enter")
        writing = page.locator(".nc-writing")
        expect(writing).to_contain_text("two")
        expect(writing).to_contain_text("three")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_text("· stopped")).to_be_visible()
        expect(page.locator(".nc-bot")).not_to_contain_text("sixteen")
        helpful = page.get_by_role("button", name="Helpful", exact=True)
        helpful.click()
        expect(helpful).to_have_class(re.compile("mod-success"))
        browser.close()
    assert [(r["kind"], r["value"], r["run"]) for r in web.records()] == [("thumb", 1, "tiny")]
    assert (elsewhere, failures) == ([], [])

    web.process.send_signal(signal.SIGINT)
    assert web.process.wait(60) == 0
    assert f"The playground is at {web.url} (Ctrl-C ends it)." in web.said()
    assert web.said().rstrip().endswith("The playground is closed.") and "Traceback" not in web.said()
