"""Shared by all tests."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from shards import log
from tests.support.fakes import Fakes
from tests.support.process import ROOT, asks_for_gpus

settings.register_profile("busy", deadline=None)  # other processes may have the cores
settings.load_profile("busy")

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that aren't of GPUs: they compare numbers with a CPU's, and start more ranks than there are
    cards. CUDA looks at the variable at its first use, which is after this."""
    if not asks_for_gpus(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    log.configure()  # as the commands do, whose mains tests call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; they are no part of the project, so tests that need them may be skipped."""
    folder = Path(os.environ.get("MODERNN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name their folder in MODERNN_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16x16 sequences of 8 frames, made by the real command."""
    path = tmp_path_factory.mktemp("stores") / "tiny"
    command = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(path)]
    options = ["--train", "7", "--val", "2", "--test", "3", "--modes", "1,2", "--size", "16", "--length", "8"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, capture_output=True)
    return path


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """Stand-ins for train.py and evaluate.py, and a base for sweeps over a store that exists."""
    shutil.copytree(ROOT / "tests" / "support" / "scripts", tmp_path / "scripts")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    (tmp_path / "base.yaml").write_text("model: {name: modernn}\ndata: {store: store}\ntrain: {steps: 3}\n")
    return Fakes(tmp_path)
