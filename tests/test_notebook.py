"""The notebook of the documentation, executed from its first cell to its last."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/notebooks/quickstart.ipynb"


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("JAXCLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(
        cell.get("outputs") for cell in notebook.cells
    )  # none are kept in the repository
    folder = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=600, resources=folder).execute()
    shown = [cell.outputs for cell in done.cells if cell.source == "classifier.report_"]
    assert shown[0][0].data["text/html"].startswith("<iframe srcdoc=")
    assert done.cells[-1].outputs[-1].data["text/plain"] == "True"
