"""Paths in a config: `~` and `$NAME` in them are expanded, so that a job finds what the user meant."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator


def expanded(path: str) -> str:
    """Return a path with ~ and $NAME replaced; a URL as it is.

    Raises:
        ValueError: a name that is not set, a user without a home directory.
    """
    if "://" in path:
        return path
    path = os.path.expandvars(path)
    if unset := re.findall(r"\$\w+|\$\{[^}]*\}", path):
        raise ValueError(f"{', '.join(unset)} is not set in the environment: export it, or write the path")
    home = os.path.expanduser(path)
    if home.startswith("~"):
        raise ValueError(f"{home.partition('/')[0]} has no home directory here: write the path")
    return home


def _checked(path: str) -> str:
    expanded(path)
    return path


ExpandedPath = Annotated[str, AfterValidator(expanded)]
WrittenPath = Annotated[str, AfterValidator(_checked)]
"""Kept as it is written, and checked: for `expanded` where it is used. A run's identity does not depend on $HOME."""
