"""Tables for terminals."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?[\d,.:/%e+-]+")


def render(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table; columns of numbers stand right, empty columns are left out, lines are cut at `width`."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)] if rows else range(len(header))
    lines = [[header[column] for column in used]] + [[row[column] for column in used] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    right = [
        all(_NUMBER.fullmatch(line[place]) for line in lines[1:] if line[place] not in ("", "-"))
        for place in range(len(lines[0]))
    ]
    texts = []
    for line in lines:
        cells = [
            text.rjust(size) if flush else text.ljust(size)
            for text, size, flush in zip(line, widths, right, strict=True)
        ]
        texts.append("  ".join(cells)[:width].rstrip())
    return texts
