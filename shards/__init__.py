"""Sequence stores: any archive of frames in, one kind of store out (contract 1, stated in manifest.py).

    python -m shards convert moving-mnist stores/mmnist     make a store
    python -m shards verify stores/mmnist                   check it
    python -m shards info stores/mmnist                     see what it holds

    from shards import open_store
    store = open_store("stores/mmnist")
    frames = store.read("train", 0, 0, 20)                  # codes, uint8 or uint16 [20, C, H, W]

This package knows numpy, Pillow, webdataset's layout and zarr; it imports neither torch nor toolkit nor launch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.errors import ManifestError, ShardError, SourceError, StoreError, TransportError, UsageError
    from shards.manifest import FrameSpec, Manifest, Scale, ShardInfo, SplitInfo
    from shards.store import Event, Store, open_store
    from shards.stream import decode_npy, stream_events

__version__ = "0.1.0"

__all__ = [
    "Event",
    "FrameSpec",
    "Manifest",
    "ManifestError",
    "Scale",
    "ShardError",
    "ShardInfo",
    "SourceError",
    "SplitInfo",
    "Store",
    "StoreError",
    "TransportError",
    "UsageError",
    "decode_npy",
    "open_store",
    "stream_events",
]

# A command that only logs (`shards.log`) starts without numpy: names are imported at their first use (PEP 562).
_MODULES = {
    "errors": ("ManifestError", "ShardError", "SourceError", "StoreError", "TransportError", "UsageError"),
    "manifest": ("FrameSpec", "Manifest", "Scale", "ShardInfo", "SplitInfo"),
    "store": ("Event", "Store", "open_store"),
    "stream": ("decode_npy", "stream_events"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"shards.{module}"), name)
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
