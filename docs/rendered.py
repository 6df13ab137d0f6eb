"""Run notebooks and write a picture of each, with its outputs, to a folder: `make notebooks`.

Code hosts show neither the thumbnails nor the drawings of a notebook's HTML outputs, so the copies that the README
links to are pictures, taken by a headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH = 1000  # pixels
COLOURS = 128  # of a picture: enough for text, charts and thumbnails, at a third of the size


def executed(path: Path) -> str:
    """A notebook's page after it ran; outputs of cells tagged ``hide-output``, progress bars, are left out."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="")
    exporter.register_preprocessor(TagRemovePreprocessor(remove_all_outputs_tags={"hide-output"}), enabled=True)
    return exporter.from_notebook_node(notebook)[0]


def main() -> None:
    """Render the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the pictures")
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        parser.error("there is no Chromium: install it, for example with `apt install chromium`")
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for notebook in chosen.notebooks:
            page = Path(folder, f"{notebook.stem}.html")
            page.write_text(executed(notebook), encoding="utf-8")
            tab = browser.new_page(viewport={"width": WIDTH, "height": 800})
            tab.goto(page.as_uri(), wait_until="load")
            shot = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
            tab.close()
            picture = chosen.output / f"{notebook.stem}.png"
            shot.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)
            print(f"{picture}: {shot.width} x {shot.height}, {picture.stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
