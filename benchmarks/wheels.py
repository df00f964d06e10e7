"""Collect, as wheels, what a machine with a GPU lacks beside its PyTorch; `make gpu OFFLINE=wheels` uses them there.

    python benchmarks/wheels.py wheels
    python benchmarks/wheels.py wheels --python 3.12 --platforms manylinux2014_x86_64 manylinux_2_28_x86_64

Versions are those that this environment has installed. PyTorch is never among them, nor what comes with it or with
usual images for it (PRESENT): pip resolves nothing here. DeepSpeed's wheel is made from its source, as pure Python:
nothing of it is compiled, on this machine or there. A folder that holds other wheels is refused.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
SOURCES = ("deepspeed",)  # there is no wheel of it to fetch
FETCHED = (
    "annotated-types",
    "braceexpand",
    "certifi",
    "cloudpickle",
    "donfig",
    "einops",
    "google-crc32c",
    "h5netcdf",
    "hjson",
    "iniconfig",
    "lpips",
    "msgpack",
    "numcodecs",
    "pluggy",
    "psutil",
    "py-cpuinfo",
    "pydantic",
    "pydantic-core",
    "pyproj",
    "pytest",  # the tests' settings want 9
    "pytest-timeout",
    "submitit",
    "tqdm",
    "typing-extensions",
    "typing-inspection",
    "webdataset",
    "zarr",
)
# Needed too, and taken from the machine: what PyTorch brings, and what images for it have beside it.
PRESENT = (
    "torch",
    "torchvision",  # of lpips, which is never imported
    "jinja2",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "tensorboard",
    "pillow",
    "pyyaml",
    "safetensors",
    "packaging",
    "ninja",
    "h5py",
    "xarray",
    "hypothesis",
    "pygments",
)


def pinned(name: str) -> str:
    """A requirement for the version that is installed here.

    Raises:
        SystemExit: it isn't.
    """
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        raise SystemExit(
            f"{name} is not installed here, and its version is what is to be fetched: make .venv"
        ) from None


def pip(*arguments: str) -> None:
    """Run this environment's pip; its output is the user's to see.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "pip", arguments[0], "--disable-pip-version-check", "--progress-bar=off"]
    done = subprocess.run([*command, *arguments[1:]], env={**os.environ, "DS_BUILD_OPS": "0"}, check=False)
    if done.returncode:
        raise SystemExit(f"pip {arguments[0]} ended with {done.returncode}; what it says is above")


def collect(folder: Path, python: str, platforms: tuple[str, ...]) -> list[Path]:
    """Fill the folder; returns its wheels.

    Raises:
        SystemExit: pip failed, or the folder holds wheels that are not of this set, of which pip would take one or the
            other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = [f"--platform={platform}" for platform in platforms]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *machine]
    pip("download", "--quiet", "--no-deps", *target, f"--dest={folder}", *map(pinned, FETCHED))
    pip("wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", *map(pinned, SOURCES))
    wheels = sorted(folder.glob("*.whl"))
    wanted = {requirement.replace("-", "_").lower() for requirement in map(pinned, (*FETCHED, *SOURCES))}
    found = {"==".join(wheel.name.split("-")[:2]).lower() for wheel in wheels}
    if found != wanted:
        others = ", ".join(sorted(found ^ wanted))
        raise SystemExit(f"{folder}: not exactly what is needed, but different in {others}: empty it, run this again")
    impure = [wheel.name for name in SOURCES for wheel in folder.glob(f"{name}-*") if "-none-any" not in wheel.name]
    if impure:
        raise SystemExit(f"{', '.join(impure)}: built for this machine, and would not run on another")
    return wheels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put them")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine (default 3.12)")
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=PLATFORMS,
        metavar="TAG",
        help=f"of its wheels (default {' '.join(PLATFORMS)})",
    )
    options = parser.parse_args()
    wheels = collect(options.folder, options.python, tuple(options.platforms))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{options.folder}: {len(wheels)} wheels for Python {options.python}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
