"""Decoding video files through PyAV, frame by frame: how many there are, and those of a range.

Counting reads the packets and decodes nothing. A range is found by its time stamp, from the key frame before it, where
the file has one for every frame; else by decoding from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import SourceError
from shards.manifest import Codes
from shards.sources.inputs import need

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
# FFmpeg goes by what is in a file, not by its name, and some formats are lists of other files and URLs to open.
CONTAINERS = {
    "format_whitelist": "avi,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,mpegvideo,m4v",
    "protocol_whitelist": "file",
}
ADVICE = "is it whole? Write it again with: ffmpeg -i IN -c:v libx264 -qp 0 -bf 0 OUT.mp4"


@dataclass(frozen=True)
class VideoInfo:
    """What the packets say. `stamps` are every frame's, ascending, in the stream's unit; None if one lacks its."""

    frames: int
    height: int
    width: int
    rate: float | None  # frames per second
    stamps: tuple[int, ...] | None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """(PyAV, container, its first video stream). One thread: workers run side by side."""
    av = need("av", "video", "reading video")
    if not path.is_file():
        raise SourceError(f"{path}: this file is absent; the archive has changed, convert again")
    try:
        with av.open(str(path), options=CONTAINERS) as container:
            if not container.streams.video:
                raise SourceError(f"{path}: no video stream in it; move it away, and convert again")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield av, container, stream
    except (av.error.FFmpegError, EOFError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: unreadable video ({error}); {ADVICE}") from None


def probe(path: Path) -> VideoInfo:
    """Count the frames. Raises SourceError for a file that is no video."""
    with _opened(path) as (_, container, stream):
        packets = [packet.pts for packet in container.demux(stream) if packet.size]
        rate = float(stream.average_rate) if stream.average_rate else None
        height, width = stream.codec_context.height, stream.codec_context.width
    stamps = None if None in packets or len(set(packets)) < len(packets) else tuple(sorted(packets))
    if not packets or not height or not width:
        raise SourceError(f"{path}: no frames in it ({len(packets)} packets of {width}x{height} pixels); {ADVICE}")
    return VideoInfo(len(packets), height, width, rate, stamps)


def read_frames(path: Path, channels: int, first: int, count: int, stamp: int | None = None) -> Codes:
    """Read frames [first, first + count), uint8 [count, channels, height, width]; 1 channel is grey of the full range,
    3 are RGB. `stamp` is the time stamp of frame `first`, if known. Raises SourceError if there are fewer.
    """
    frames = list(_decoded(path, channels, first, count, stamp))
    if len(frames) < count:
        raise SourceError(
            f"{path}: {first + len(frames)} frames could be decoded, {first + count} were expected; {ADVICE}"
        )
    pixels = np.stack(frames)
    return pixels[:, None] if channels == 1 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _decoded(path: Path, channels: int, first: int, count: int, stamp: int | None) -> Iterator[Codes]:
    with _opened(path) as (av, container, stream):
        reformatter = av.video.reformatter.VideoReformatter()  # one for all frames: making it costs more than using it
        skip = first
        if stamp is not None and first > 0:
            container.seek(stamp, stream=stream, backward=True)
            skip = 0
        given = 0
        for frame in container.decode(stream):
            if skip > 0 or (stamp is not None and frame.pts is not None and frame.pts < stamp):
                skip -= 1
                continue
            yield reformatter.reformat(frame, format="gray" if channels == 1 else "rgb24").to_ndarray()
            given += 1
            if given == count:
                return
