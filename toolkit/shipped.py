"""The configs, cluster profiles and commands that come with the toolkit. Does not import torch.

In a checkout they are `configs/` and `slurm/profiles/` beside the packages; `pip install .` puts them into this one.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.wording import nearest

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "setup.py").is_file() else None  # None: installed
CONFIGS = PACKAGE / "configs" if CHECKOUT is None else CHECKOUT / "configs"
PROFILES = PACKAGE / "profiles" if CHECKOUT is None else CHECKOUT / "slurm" / "profiles"


def is_installed() -> bool:
    """Return whether commands are typed as `toolkit NAME`: it is installed, or was called by that name."""
    return CHECKOUT is None or Path(sys.argv[0]).stem == "toolkit"


def command(name: str, *arguments: object) -> str:
    """Return a command as it is typed here: `python launch/train.py` in a checkout, `toolkit train` from a wheel.

    Args:
        name: of the command, as in `toolkit NAME`.
        arguments: of it, quoted for a shell where they need it.
    """
    words = [shlex.quote(str(argument)) for argument in arguments]
    return " ".join([f"toolkit {name}" if is_installed() else f"python launch/{name}.py", *words])


def find_config(path: Path, folder: Path | None = None) -> Path:
    """Return the config file that `path` refers to.

    Args:
        path: as it was typed, or written under `base:`.
        folder: what it is relative to; None: the working directory.

    Returns:
        The path in `folder`; where there is nothing and it begins with `configs/`, the file of that name which comes
        with the toolkit, if there is one.

    Raises:
        ConfigError: it can't be the name of a file.
    """
    here = path if folder is None else folder / path
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is no name of a file")
    if not os.path.exists(here) and path.parts[:1] == ("configs",):
        ours = CONFIGS.joinpath(*path.parts[1:])
        if os.path.exists(ours):
            return ours
    return here


def instead_of(path: Path) -> str:
    """Describe alternatives to a missing YAML file: the files in its folder, and the most similar name."""
    beside = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))[:12]) or "no YAML file"
    text = f"That folder holds: {beside}" if path.parent.is_dir() else f"There is no folder {path.parent} either"
    ours = ["configs/" + file.relative_to(CONFIGS).as_posix() for file in sorted(CONFIGS.rglob("*.yaml"))]
    near = nearest("/".join(path.parts[-3:]), ours)
    return text + (f"; {near.removesuffix('?')}, which comes with the toolkit?" if near else "")
