"""The playground in a real JupyterLab, used like a person would: by typing, clicking and pressing keys.

Set NANOCHAT_SCREENSHOTS to a folder to keep the screenshots taken along the way.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from serving import CHROMIUM, NO_CHROMIUM, SLOW, WAIT, answers, free_port
from tiny import ANSWERS, tiny_checkpoint

from nanochat.config import UserError
from nanochat.evaluation import card_text
from nanochat.widgets import fallback
from nanochat.widgets.labels import unavailable

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]
SHOW = "from nanochat.widgets import playground\nplayground('tiny')"
EXPLORE = """
import numpy as np
from nanochat.data import questions
from nanochat import loading
from nanochat.widgets import attention, batches, monitor, next_token, tokens, compare

loaded = loading.load("tiny")
model, tok = loaded.model, loaded.tokenizer
rows = np.arange(64).reshape(2, 32)
tokens.explore([tok], "hello hello", "hello")
batches.view(tok, lambda step: (rows, rows))
next_token.explore(model, tok, "hello", chat=True)
compare.compare({"tiny": loaded}, [questions.ask("hello")])
attention.explore(model, tok, "hello")
monitor.watch(lambda **options: iter(()))
"""
# What can be operated in the explorers: (role, name), as a screen reader says it
CONTROLS = (
    ("textbox", "Text"), ("textbox", "Word"), ("spinbutton", "Merges"),
    ("spinbutton", "Step"), ("spinbutton", "Row"), ("spinbutton", "Position"),
    ("checkbox", "ask it as a question, in the chat template"), ("spinbutton", "Temperature"),
    ("spinbutton", "Top-k (0: off)"), ("spinbutton", "Top-p (1: off)"),
    ("button", "Draw a token"), ("button", "Take it back"),
    ("textbox", "Question"), ("textbox", "Passage"),
    ("combobox", "Layer"), ("combobox", "Head"),
    ("button", "Start"), ("button", "Stop"), ("button", "Resume"),
    ("button", "Loss"), ("button", "Learning rate"), ("button", "Speed"), ("button", "Memory"),
)  # fmt: skip
# The names of everything in an output that can be operated, as the browser computes them; "" for one that has none
NAMES = """
root => [...root.querySelectorAll(
  "button, input:not([type=hidden]), textarea, select, [role=slider], [contenteditable=true]")]
  .filter(e => e.checkVisibility())
  .map(e => e.getAttribute("aria-label") || [...(e.labels || [])].map(l => l.textContent).join(" ").trim()
    || (e.tagName == "BUTTON" ? e.textContent.trim() : ""))
"""


class Lab:
    """A separate JupyterLab, with a project folder that has one tiny model."""

    def __init__(self, folder: Path):
        self.home, self.work, self.settings = folder / "home", folder / "work", folder / "settings"
        tiny_checkpoint(self.home)
        self.work.mkdir()
        self.theme("Light")
        cells = [nbformat.v4.new_code_cell(SLOW, id="slow"), nbformat.v4.new_code_cell(SHOW, id="show")]
        for name, sources in {"play": cells, "explore": [nbformat.v4.new_code_cell(EXPLORE, id="explore")]}.items():
            notebook = nbformat.v4.new_notebook(cells=sources)
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, self.work / f"{name}.ipynb")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = (folder / "lab.log").open("w")
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
        ]
        options = [
            "--ServerApp.token=",
            "--ServerApp.password=",
            "--LabApp.news_url=None",
            f"--ServerApp.root_dir={self.work}",
        ]
        root = Path(__file__).resolve().parents[2]
        places = {
            "NANOCHAT_HOME": str(self.home),
            "JUPYTERLAB_SETTINGS_DIR": str(self.settings),
            "PYTHONPATH": str(root),
        }
        self.process = subprocess.Popen(
            [*command, *options], env={**os.environ, **places}, stdout=self.log, stderr=subprocess.STDOUT
        )

    def theme(self, name: str) -> None:
        folder = self.settings / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "themes.jupyterlab-settings").write_text(json.dumps({"theme": f"JupyterLab {name}"}))
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (folder / "notification.jupyterlab-settings").write_text(json.dumps(quiet))

    def records(self) -> list[dict]:
        path = self.home / "data" / "feedback" / "tiny.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.process.terminate()
    lab.process.wait(60)
    lab.log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright_api.Browser]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(lab: Lab, browser: playwright_api.Browser) -> Iterator[playwright_api.Page]:
    """A page with the notebook, run in a fresh kernel."""
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    failures = []

    def answer(dialog: playwright_api.Dialog) -> None:
        if dialog.type != "beforeunload":  # JupyterLab's own question, about changes that are not saved
            failures.append(f"a script ran: {dialog.message}")
        dialog.accept()

    page.on("dialog", answer)
    page.on("pageerror", lambda error: failures.append(str(error)))
    for _ in range(WAIT // 500):
        if answers(f"{lab.url}/api/status"):
            break
        page.wait_for_timeout(500)
    open_and_run(lab, page)
    yield page
    page.close()
    assert failures == []


def open_and_run(lab: Lab, page: playwright_api.Page, notebook: str = "play", button: str = "Send") -> None:
    page.goto(f"{lab.url}/lab/tree/{notebook}.ipynb?reset")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.get_by_role("button", name=button, exact=True).wait_for()


def press(page: playwright_api.Page, name: str, which: int = -1) -> playwright_api.Locator:
    buttons = page.get_by_role("button", name=name, exact=True)
    button = buttons.nth(which) if which >= 0 else buttons.last
    button.click()
    return button


def say(page: playwright_api.Page, text: str) -> None:
    """Type at full speed and press Enter at once."""
    page.get_by_label("Message").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def finished(page: playwright_api.Page, n: int) -> None:
    """Wait until n answers have their feedback buttons."""
    expect(page.get_by_role("button", name="Helpful", exact=True)).to_have_count(n)
    expect(page.locator(".nc-writing")).to_have_count(0)


def picture(page: playwright_api.Page, name: str) -> None:
    if folder := os.environ.get("NANOCHAT_SCREENSHOTS"):
        page.locator(".nc").first.screenshot(path=Path(folder) / f"{name}.png")


def test_send_stream_stop_rate_comment_and_compare(page: playwright_api.Page, lab: Lab):
    say(page, "count")
    writing = page.locator(".nc-writing")
    expect(writing).to_contain_text("two")
    expect(writing).to_contain_text("three")
    press(page, "Stop")
    finished(page, 1)
    expect(page.locator(".nc-bot")).not_to_contain_text("sixteen")
    expect(page.get_by_text("· stopped")).to_be_visible()

    say(page, "html")
    finished(page, 2)
    say(page, "<img src=x onerror=alert(1)><script>alert(2)</script>")
    finished(page, 3)
    expect(page.locator(".nc-user").last).to_have_text("<img src=x onerror=alert(1)><script>alert(2)</script>")

    expect(press(page, "Helpful")).to_have_class(re.compile("mod-success"))
    press(page, "Comment")
    page.get_by_label("Comment").last.fill("made up")
    page.get_by_label("Better answer").last.fill("I do not know that.")
    press(page, "Save")
    expect(page.get_by_text("Saved, thank you.")).to_be_visible()
    press(page, "Why this word?")
    expect(page.locator(".nc-tokens")).to_be_visible()

    page.get_by_label("Message").click()
    page.keyboard.type("hello")
    press(page, "Compare")
    finished(page, 5)
    expect(press(page, "B is better")).to_have_class(re.compile("mod-success"))

    records = lab.records()
    assert [(r["kind"], r["value"], r["text"]) for r in records] == [
        ("thumb", 1, ""), ("comment", None, "made up"), ("correction", None, "I do not know that."), ("choice", 1, ""),
    ]  # fmt: skip
    assert records[0]["conversation"]["turns"][-1]["text"].startswith("<img")

    page.get_by_role("tab", name="Feedback").click()
    expect(page.locator(".nc-table").last).to_contain_text("made up")
    press(page, "Export preferences")
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    picture(page, "playground-feedback")


def test_everything_can_be_reached_by_keyboard(page: playwright_api.Page):
    page.get_by_label("Message").click()
    page.keyboard.type("hello")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    finished(page, 1)
    expect(page.get_by_label("Message")).to_be_focused()
    expect(page.locator(".nc-user")).to_have_text("hello")
    expect(page.locator(".nc-bot")).to_have_text(ANSWERS["hello"])
    reached = []
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert {"Helpful", "Not helpful", "Comment", "Why this word?"} <= set(reached)


def test_a_chat_comes_back_after_the_kernel_was_restarted(page: playwright_api.Page, lab: Lab):
    say(page, "wave")
    finished(page, 1)
    press(page, "Not helpful")
    open_and_run(lab, page)
    chats = page.get_by_label("Chats")
    chats.select_option(index=1)
    expect(page.locator(".nc-bot")).to_have_text(ANSWERS["wave"])
    expect(page.get_by_role("button", name="Not helpful")).to_have_class(re.compile("mod-warning"))


def test_every_control_of_the_explorers_has_a_name(page: playwright_api.Page, lab: Lab):
    open_and_run(lab, page, "explore", "Resume")
    for role, name in CONTROLS:
        expect(page.get_by_role(role, name=name, exact=True).first).to_be_attached()
    named = [name for output in page.locator(".jp-OutputArea-output").all() for name in output.evaluate(NAMES)]
    assert len(named) > len(CONTROLS) and "" not in named, "a control without a name"
    assert set(named) == {name for _, name in CONTROLS}


def test_prices_are_not_typeset_as_latex(page: playwright_api.Page, lab: Lab):
    price, latex = "$31 or \\(32\\) … $135", "LaTeX is $31$"
    outputs = [fallback.output(f"<p>{price}</p><p>{price}</p>", ""), unavailable(UserError(price))]
    outputs += [{"text/markdown": card_text._table(("a", "b"), [(price, price)])}, {"text/plain": price}]
    # What is LaTeX comes last: where it has been typeset, so would have been what stands before it.
    outputs += [{"text/html": f"<p>{latex}</p>"}]
    shown = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    cells = [nbformat.v4.new_code_cell("", id="prices", outputs=shown)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.work / "prices.ipynb")
    page.goto(f"{lab.url}/lab/tree/prices.ipynb?reset")
    found = page.locator(".jp-OutputArea-output")
    expect(found.last.locator("mjx-container")).to_have_count(1)
    assert page.locator("mjx-container").count() == 1
    assert [text.count(price) for text in found.all_inner_texts()] == [2, 1, 2, 1, 0]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_both_themes_and_a_narrow_page_show_everything(lab: Lab, browser, page: playwright_api.Page, theme: str):
    lab.theme(theme)
    open_and_run(lab, page)
    say(page, "hello")
    finished(page, 1)
    press(page, "Helpful")
    press(page, "Why this word?")
    page.get_by_label("Message").click()
    page.keyboard.type("wave")
    press(page, "Compare")
    finished(page, 3)
    colours = page.locator(".nc-bot .nc-bubble").first.evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    ink, paper = (sum(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in colours)
    assert abs(ink - paper) > 250, f"hard to read: {colours}"
    assert (ink < paper) == (theme == "Light")
    picture(page, f"playground-{theme.lower()}")
    page.set_viewport_size({"width": 560, "height": 1000})
    press(page, "Settings")
    expect(page.get_by_label("Temperature")).to_be_visible()
    overflow = page.locator(".nc").first.evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 1, "something is wider than the page"
    picture(page, f"playground-{theme.lower()}-narrow")
