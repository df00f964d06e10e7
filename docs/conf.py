"""Configuration of the documentation site: `make docs` builds it from the Markdown files of the repository."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import toolkit  # noqa: E402

project = "ModeRNN toolkit"
version = release = toolkit.__version__
copyright = "the authors of the ModeRNN toolkit, Apache-2.0"

# The source folder is the root of the repository: links between README.md, docs/ and slurm/ work here as on the forge.
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "slurm/README.md", "benchmarks/*.md"]
exclude_patterns = [".*", "runs", "stores", "site", "build", "dist", "wheels", "tests", "*.egg-info"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4  # as the forge makes them
nb_execution_mode = "off"  # a test executes the notebook; the site shows what is stored in it
nb_merge_streams = True
smartquotes = False
highlight_language = "none"  # of blocks without a language
default_role = "code"  # `x` in a docstring
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sourcelink = False
html_copy_source = False

CONTENTS = {  # pages of the sidebar, by heading; those with a / are outside of docs/
    "Use": ["installation", "quickstart", "configs", "sweeps", "evaluation", "mode-collapse", "forecast", "export"],
    "Data and models": ["shards", "new-dataset", "new-model", "recipes", "trackers"],
    "Reference": ["python", "reference", "config-keys", "metrics", "paper", "troubleshooting"],
    "Clusters and GPUs": ["clusters", "/slurm/README", "gpu", "scaling", "reliability"],
    "Project": ["/CHANGELOG", "/CONTRIBUTING", "/EXPERIMENTS"],
}


def add_contents(_: Any, name: str, source: list[str]) -> None:
    """Add the table of contents to the README, and the measurements below the experiments."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            names = [page[1:] if page.startswith("/") else f"docs/{page}" for page in pages]
            source[0] += contents(f":caption: {caption}", *names)
    elif name == "EXPERIMENTS":
        source[0] += contents(":glob:", "benchmarks/*")


def contents(option: str, *pages: str) -> str:
    """Return a table of contents that only the sidebar shows."""
    return "\n".join(["", "```{toctree}", ":hidden:", option, "", *pages, "```", ""])


def escape_stars(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Keep the * of `[batch, *shape]` in a docstring from being read as emphasis."""
    lines[:] = [re.sub(r"(?<![\\`*\w])\*(?=\w)(?!.*\w\*)", r"\*", line) for line in lines]


def copy_home(app: Any, error: Exception | None) -> None:
    """Copy the page of the README to index.html, which a server shows first."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", escape_stars, priority=900)  # after napoleon
    app.connect("build-finished", copy_home)
