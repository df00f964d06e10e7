"""The documentation site, built as `make docs` builds it, and the notebook on it, executed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.process import ROOT

QUICKSTART = ROOT / "docs" / "quickstart.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("sphinx", "myst_nb", "furo", "nbclient") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[docs]')")


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command of `make docs`: with -W, a warning is an error."""
    made = (ROOT / "Makefile").read_text()
    rule = re.search(r"^docs: .*\n\t\$\(BIN\)/sphinx-build (.*) site/html$", made, re.MULTILINE)
    assert rule is not None and "-W" in rule[1].split()
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", *rule[1].split(), "-d", str(folder / "doctrees"), str(folder / "html")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_there_and_its_links_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for source in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), QUICKSTART, ROOT / "slurm" / "README.md"):
        assert site / source.relative_to(ROOT).with_suffix(".html") in pages
    assert (site / "index.html").read_text(encoding="utf-8").count("docs/quickstart.html")
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {link}"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = Page(path.read_text(encoding="utf-8")).loaded
        assert loaded
        assert not [address for address in loaded if urlsplit(address).netloc], path
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", path.read_text(encoding="utf-8")), (
            path
        )


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "reference.html").read_text(encoding="utf-8"))
    assert text.count("Return the forecast of the frames that follow the latest ones of an archive") == 1
    for anchor in ("toolkit.load", "toolkit.evaluate_run", "shards.store.Store.read", "toolkit.testing.check_model"):
        assert f'id="{anchor}"' in (site / "docs" / "reference.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 500])  # Chromium's windows are at least 500 wide
def test_pages_fit_a_screen(site: Path, tmp_path: Path, width: int) -> None:
    probe = (
        "<script>addEventListener('load', () => document.title = `${document.documentElement.scrollWidth} px`)</script>"
    )
    for name in ("index", "docs/config-keys", "docs/quickstart", "docs/reference"):
        page = site / f"{name}.probe.html"
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
        command = [
            *(
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
            ),
            *("--enable-logging=stderr", "--virtual-time-budget=3000", f"--window-size={width},1200", "--dump-dom"),
        ]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=200, check=True)
        page.unlink()
        title = re.search(r"<title>(\d+) px</title>", done.stdout)
        assert title and int(title[1]) <= width, name
        assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def cells_of(path: Path) -> list[tuple[str, list[str]]]:
    """Source and kinds of output of each cell."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    kinds = [sorted({key for output in cell.get("outputs", []) for key in kinds_of(output)}) for cell in notebook.cells]
    return [(cell.source, kind) for cell, kind in zip(notebook.cells, kinds, strict=True)]


def kinds_of(output: Any) -> list[str]:
    return [output.name] if output.output_type == "stream" else [output.output_type, *output.data]


@pytest.mark.timeout(1200)
def test_the_quickstart_runs_and_its_outputs_are_those_of_its_cells(tmp_path: Path) -> None:
    done = tmp_path / "done.ipynb"
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `toolkit` of this environment
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.notebook", str(done)],
        cwd=ROOT,
        env={**os.environ, "PATH": search, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert cells_of(QUICKSTART) == cells_of(done), "python -m tests.support.notebook writes the outputs again"
    text = done.read_text(encoding="utf-8")
    assert text.count('"image/png"') == 4
    mse = {name: float(value) for name, value in re.findall(r"(ModeRNN|persistence)[^\n\"]*? mse ([\d.]+)", text)}
    assert mse["ModeRNN"] < 0.7 * mse["persistence"]


def test_the_stored_notebook_is_small_and_names_no_machine() -> None:
    stored = QUICKSTART.read_text(encoding="utf-8")
    assert 20_000 < len(stored) < 200_000
    assert not re.findall(r"(?:/home|/root|/tmp|/work|/Users)/", stored)
