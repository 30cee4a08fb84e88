"""Regenerate the pictures in the README: python tests/browser/pictures.py

Those of the notebooks are committed outputs as JupyterLab displays them; no notebook is run. playground.png shows a chat
with the assistant trained by `nanochat course`; without one it is left unchanged.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from serving import CHROMIUM, WAIT, answers
from test_playground_browser import Lab, finished, open_and_run, say
from tour import CELLS, LARGEST, PICTURES, ROOT, fingerprint, shown

from nanochat import paths

CHAT = ("Hello!", "What is the capital of Japan?", "who wrote 1984")


def save(png: bytes, name: str, source: str = "") -> None:
    """Save with 256 colors, a white margin so that it is readable on a dark page too, and the fingerprint of its source."""
    shot = Image.open(io.BytesIO(png)).convert("RGB")
    framed = Image.new("RGB", (shot.width + 32, shot.height + 32), "white")
    framed.paste(shot, (16, 16))
    path = PICTURES / f"{name}.png"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("source", source)
    framed.quantize(256).save(path, optimize=True, pnginfo=notes)
    assert path.stat().st_size <= LARGEST, f"{path.name} has {path.stat().st_size:,} bytes"
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def lesson(lab: Lab, page: Page, name: str) -> None:
    """Take the picture of one cell's output, alone in a notebook."""
    notebook = shown(name)
    nbformat.write(notebook, lab.work / f"{name}.ipynb")
    page.goto(f"{lab.url}/doc/tree/{name}.ipynb?reset")
    output = page.locator(".jp-OutputArea").first
    output.wait_for()
    page.wait_for_timeout(2000)  # pictures and fonts
    save(output.screenshot(), name[:2], fingerprint(notebook))


def playground(lab: Lab, page: Page, run: str = "nano") -> None:
    trained = paths.home() / "out" / run
    if not list(trained.glob("*_fine_tuned.pt")):
        print(f"playground.png stays: there is no assistant in {trained}")
        return
    shutil.rmtree(lab.home / "out")
    shutil.copytree(trained, lab.home / "out" / run, ignore=lambda folder, names: {n for n in names if n[-3:] != ".pt"})
    show = nbformat.v4.new_code_cell(f"from nanochat.widgets import playground\nplayground({run!r})", id="show")
    notebook = nbformat.read(lab.work / "play.ipynb", as_version=4)
    notebook.cells = [show]
    nbformat.write(notebook, lab.work / "play.ipynb")
    open_and_run(lab, page)
    for n, message in enumerate(CHAT, start=1):
        say(page, message)
        finished(page, n)
    save(page.locator(".nc").first.screenshot(), "playground")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        lab = Lab(Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 1000}, device_scale_factor=1.5)
            page.set_default_timeout(WAIT)
            while not answers(f"{lab.url}/api/status"):
                page.wait_for_timeout(500)
            for name in CELLS:
                lesson(lab, page, name)
            playground(lab, page)
        finally:
            lab.process.terminate()
            lab.process.wait(60)
            lab.log.close()


if __name__ == "__main__":
    main()
