"""The pieces of HTML that more than one section uses."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape


def score_table(head: str, rows: Iterable[str]) -> str:
    """A table of numbers that scrolls sideways on a narrow screen; `head` and `rows` are whole <tr> elements."""
    table = f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def facts_list(facts: Mapping[str, str]) -> str:
    """Names and their descriptions (HTML)."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{text}</dd>' for name, text in facts.items())}</dl>"


def notice(title: str, items: Sequence[str]) -> str:
    """A box that a reader should see; items are HTML."""
    return f'<div class="notice"><h3>{escape(title)}</h3><ul>{"".join(f"<li>{item}</li>" for item in items)}</ul></div>'


def chart(svg: str, text: str, caption: str) -> str:
    """A figure; the SVG goes in as an image, so that its ids and styles stay its own."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}">'
    return f'<figure><div class="chart">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'
