"""The page in a real browser, from file://: it loads without an error, and its pictures are there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.predict import main
from tests.support.forecasts import MakeRun

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
window.addEventListener("load", () => {
  const images = [...document.images];
  images.forEach(image => image.loading = "eager");
  document.querySelectorAll("details").forEach(one => one.open = true);
  Promise.all(images.map(image => image.decode())).then(() => {
    const wide = images.filter(image => image.naturalWidth > 20).length;
    document.title = `shown ${wide} of ${images.length}, ${document.documentElement.scrollWidth} px`;
  }, error => document.title = `failed: ${error}`);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 500])
def test_the_page_loads_in_a_browser(make_run: MakeRun, radar: Path, tmp_path: Path, width: int) -> None:
    pytest.importorskip("xarray")
    folder = tmp_path / "page"
    words = ["--run", str(make_run()), "--input", str(radar), "--page", str(folder), "--probability", "30"]
    assert main([*words, "--at", "2016-07-11T21:30"]) == 0
    page = folder / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--window-size={width},1200", "--dump-dom"),
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    title = re.search(r"<title>shown (\d+) of (\d+), (\d+) px</title>", done.stdout)
    assert title, re.search(r"<title>.*", done.stdout)
    shown, images, scrolled = map(int, title.groups())
    assert shown == images >= 10  # observation, forecast and probability at three lead times, and the curves
    assert scrolled <= width
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
