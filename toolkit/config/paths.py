"""Paths in a config: `~` and `$NAME` are expanded when it is read, so that a job finds what the user meant."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator


def _expanded(path: str) -> str:
    """Return a path with ~ and $NAME replaced; a URL as it is."""
    if "://" in path:
        return path
    path = os.path.expandvars(path)
    if unset := re.findall(r"\$\w+|\$\{[^}]*\}", path):
        raise ValueError(f"{', '.join(unset)} is not set in the environment: export it, or write the path")
    home = os.path.expanduser(path)
    if home.startswith("~"):
        raise ValueError(f"{home.partition('/')[0]} has no home directory here: write the path")
    return home


ExpandedPath = Annotated[str, AfterValidator(_expanded)]
