"""How much of a split was observed: the shares of its pixels that are missing, were clipped, or are missing in one
frame and not in the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shards.manifest import SHARES, Manifest, SplitInfo, rounded_share
from shards.writer import WrittenEvent

MUCH = 0.01  # of the pixels: from here on a share is worth a warning


def shares_of(events: Sequence[WrittenEvent]) -> dict[str, float]:
    """Return the SHARES of a split from the metadata of its events, each weighted by its frames.

    They are rounded as in the metadata.
    """
    frames = sum(event.planned.length for event in events)
    sums: dict[str, float] = {}
    for event in events:
        data: dict[str, Any] = json.loads(event.metadata)
        found = {**data.get("details", {}), **{share: data[share] for share in SHARES if share in data}}
        for share in SHARES:
            if isinstance(value := found.get(share), int | float):
                sums[share] = sums.get(share, 0.0) + value * event.planned.length
    return {share: rounded_share(total / frames) for share, total in sums.items()}


def text_of(split: SplitInfo) -> str:
    """Return "missing 12.1 %, clipped 0.3 %", or "" where nothing is."""
    words = [f"{share} {_percent(value)}" for share in SHARES[:2] if (value := getattr(split, share))]
    return ", ".join(words)


def _percent(share: float) -> str:
    """Return "12.1%"; below 0.1 % one digit that isn't 0: "0.0001%"."""
    return f"{share:.1%}" if share >= 0.001 else f"{float(f'{100 * share:.1g}'):.4f}".rstrip("0") + "%"


def warnings_of(manifest: Manifest) -> list[str]:
    """Return what a user should know before training on the store."""
    found = []
    for name, split in manifest.splits.items():
        if split.mask_changes is not None and split.mask_changes > MUCH:
            found.append(
                f"{name}: {split.mask_changes:.2%} of the pixels change between missing and observed from one frame to "
                "the next: if missing means 'no echo' in this archive, convert it with --no-echo zero"
            )
    return found
