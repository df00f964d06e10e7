"""Execute docs/quickstart.ipynb: `python -m tests.support.notebook [FILE]` writes it, or FILE, with its outputs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


def execute(source: Path, target: Path, folder: Path) -> None:
    """Run all cells in a folder, with this Python as kernel; raise CellExecutionError for the first that fails."""
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(
        notebook, timeout=400, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    nbformat.write(notebook, target)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        execute(QUICKSTART, Path(*sys.argv[1:2] or [QUICKSTART]), Path(made))
