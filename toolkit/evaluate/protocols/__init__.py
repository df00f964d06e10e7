"""Protocols: one short file each, found by its name; `paper` is the default. Does not import torch."""

from __future__ import annotations

import importlib
import pkgutil

from toolkit.errors import ConfigError
from toolkit.evaluate.protocols.base import Protocol
from toolkit.wording import nearest

__all__ = ["Protocol", "known_protocols", "load_protocol"]


def known_protocols() -> list[str]:
    """Return the names of the protocols in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_protocol(name: str) -> Protocol:
    """Return the protocol with this name.

    Raises:
        ConfigError: there is no such protocol; lists the known ones.
    """
    known = known_protocols()
    if name not in known:
        hint = nearest(name, known)
        raise ConfigError(
            f"eval.protocol: unknown protocol {name!r}; {hint}{' ' * bool(hint)}known: {', '.join(known)}"
        )
    protocol = importlib.import_module(f"{__name__}.{name}").PROTOCOL
    assert isinstance(protocol, Protocol), name
    return protocol
