"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.table import Row, Table


def render(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table; columns of numbers stand right, empty columns are left out, lines are cut at `width`."""
    return Table(header, [Row(row) for row in rows]).to_text(width)
