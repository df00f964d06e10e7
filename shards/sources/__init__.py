"""The archives that can be converted, by the name that `python -m shards convert` knows them by.

A new source is one module with a class that satisfies `base.Source` and an `ENTRY`, plus its line in the table below;
or a file outside the package (custom.py, docs/new-dataset.md).
"""

from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources import (
    arrays,
    cf,
    cikm,
    hko7,
    images,
    kth,
    moving_mnist,
    moving_mnist_file,
    radar,
    sevir,
    video,
)
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry

SOURCES: dict[str, SourceEntry] = {
    "moving-mnist": moving_mnist.ENTRY,
    "moving-mnist-file": moving_mnist_file.ENTRY,
    "kth": kth.ENTRY,
    "radar": radar.ENTRY,
    "sevir": sevir.ENTRY,
    "hko7": hko7.ENTRY,
    "cikm": cikm.ENTRY,
    "cf": cf.ENTRY,
    "images": images.ENTRY,
    "video": video.ENTRY,
    "arrays": arrays.ENTRY,
}

__all__ = [
    "SOURCES",
    "Description",
    "FrameSpec",
    "Plan",
    "PlannedEvent",
    "RawEvent",
    "Scale",
    "Source",
    "SourceEntry",
    "SourceInfo",
]
