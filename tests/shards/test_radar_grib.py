"""GRIB2 that isn't made of sections is refused before eccodes sees it, which some of it would end the process of."""

from types import SimpleNamespace
from typing import Any

import pytest

from shards.sources.radar_grib import opened


def section(number: int, content: bytes) -> bytes:
    return (len(content) + 5).to_bytes(4, "big") + bytes([number]) + content


def message(body: bytes, more: int = 0, end: bytes = b"7777") -> bytes:
    return b"GRIB\0\0\0\2" + (20 + len(body) + more).to_bytes(8, "big") + body + end


BODY = section(1, bytes(16)) + section(3, bytes(67)) + section(7, b"\1\2\3")
eccodes: Any = SimpleNamespace(codes_new_from_message=len)


@pytest.mark.parametrize("after", [b"", message(BODY), b"\n"], ids=["one", "two", "padded"])
def test_whole_messages_are_eccodes(after: bytes) -> None:
    data = message(BODY) + after
    assert opened(eccodes, data) == len(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GRIB\xff\xff\xd1\x02\0", "no GRIB2 message"),  # ends a process with eccodes 2.50
        (b"", "no GRIB2 message"),
        (b"GRIB\0\0\0\1" + bytes(40), "no GRIB2 message"),
        (message(BODY)[:60], "of 60, without 7777"),
        (message(BODY, more=9), "without 7777"),
        (message(BODY, more=1 << 62), "without 7777"),
        (message(BODY, end=b"7770"), "without 7777"),
        (message(section(1, bytes(16)) + b"\0\0\0\0\3"), "section 3 of 0 bytes at byte 37"),
        (message(section(9, bytes(16))), "section 9 of 21 bytes at byte 16"),
        (message(section(1, b"")[:3] + b"\x90\1" + bytes(9)), "without 7777"),
    ],
)
def test_others_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        opened(eccodes, data)
