"""Every notebook runs from its first cell to its last on a small run, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWN = {
    "01_retrieval": ["<img"],
    "02_pretrain": ["<svg", "<img", "guesses"],
    "03_new_pretext_task": ["<svg", "untrained", "<class 'rotation.Rotation'>"],
    "04_benchmarks": ["| model |", "\\begin{tabular}"],
    "05_own_catalogue": ["<img", "lost.jpg", "malformed"],
    "06_behaviour": ["<img", "cold"],
}
"""What a notebook's outputs hold when it showed what it is for."""


def test_every_notebook_is_known():
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("CATALIGN_RUN", str(tiny_run.path.resolve()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "ssl"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "\n".join(str(output.get("data") or output.get("text")) for output in outputs)
    for part in SHOWN[path.stem]:
        assert part in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None, cell.source
