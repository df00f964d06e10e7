"""Contract 1: what a sequence store is.

A store is a folder with `manifest.json`. It holds *events*: frames [L, C, H, W] of codes in time order, each kept once.
Codes are uint8, or uint16 where 256 of them are too few. Windows of T frames are cut at reading. A *run* is an unbroken
sequence in time; a run too long for one event is stored as consecutive events of the same split, and a window may span
two of them (`run` and `run_offset` of an event say which part it is).

Two formats hold the same events, byte for byte:

- `webdataset`: `SPLIT/000000.tar` with the members `KEY.frames.npy` and `KEY.json`, and `SPLIT/000000.idx` beside it
  (see tar_store.py). Plain webdataset reads it; so does tar.
- `zarr`: a zarr v3 group per split, its frames in one array along time (see zarr_store.py). xarray reads it.

`encoding` says whether the frames lie there raw or compressed (see encoding.py); what is read is the same.

The manifest states what no file alone can: the frames' shape and time step, the physical scale, how much every split
and shard holds and its SHA-256, the mode labels (for analysis and scoring, never shown to training), the source with
its licence, and the exact arguments of the conversion. It holds no clock time and no path but those that the user
typed: converting the same input twice gives the same bytes.

Codes and values. A pixel is a code 0..max_code, or `missing_code` where nothing was observed. Its value is
offset + gain * code, in `unit`; where an archive defines a physical value that isn't linear in its codes, `mapping`
names the further step (mappings.py), and `unit` is that of the archive's own numbers. What a model is fed is
code / max_code, in 0..1, with 0 where missing (`Scale.normalise`); stores keep the codes, and whoever feeds a device
sends codes there and divides on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ManifestError, NoStoreError, UsageError
from shards.fields import Fields, parse_json
from shards.files import LARGEST, read_regular
from shards.files import Codes as Codes
from shards.georeference import Grid
from shards.mappings import MAPPINGS, nearest

FORMAT_VERSION = 1
FORMATS = ("webdataset", "zarr")
ENCODINGS = ("raw", "zstd", "lz4")
MANIFEST_NAME = "manifest.json"
SHARES = ("missing", "clipped", "mask_changes")  # of a split's pixels
SHARE_DIGITS = 6
LARGEST_SIDE = 1 << 16  # pixels, or channels
DTYPES = ("uint8", "uint16")  # of codes
_CODE_TYPES: dict[str, np.dtype[np.unsignedinteger[Any]]] = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
GENERATOR = "modernn-toolkit shards 0.1.0"

# Names that become parts of paths (splits) or of tar member names (keys; webdataset cuts a name at its first dot).
SPLIT_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
LONGEST_KEY = 80
KEY_PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{LONGEST_KEY - 1}}}")
CHANNEL_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")  # never a number, which would be an index

Values = npt.NDArray[np.float32]


def rounded_share(share: float) -> float:
    """Return a share of pixels with SHARE_DIGITS digits; what is above 0 stays so."""
    return max(round(share, SHARE_DIGITS), 10**-SHARE_DIGITS) if share > 0 else 0.0


@dataclass(frozen=True)
class FrameSpec:
    """The shape of one frame, [channels, height, width], and the type of its codes."""

    channels: int
    height: int
    width: int
    dtype: str = "uint8"
    names: tuple[str, ...] = ()  # of the channels; empty: they have none

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        return (self.channels, self.height, self.width)

    @property
    def bytes(self) -> int:
        """Return the bytes of one frame."""
        return self.channels * self.height * self.width * self.code_type.itemsize

    @property
    def code_type(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the type of the codes; in files they are little-endian."""
        return _CODE_TYPES[self.dtype]


@dataclass(frozen=True)
class Scale:
    """How codes and physical values belong together: value = offset + gain * code, for codes 0..max_code.

    With a `mapping` the physical value is that function of the value, in `physical_unit`.
    """

    quantity: str  # what is measured, in words: "radar reflectivity"
    unit: str  # of `value`; "1" for a bare intensity
    offset: float
    gain: float
    max_code: int = 255  # the greatest code that stands for a value
    missing_code: int | None = None  # the code of a pixel without observation, or None where every pixel has one
    mapping: str | None = None  # a name in mappings.MAPPINGS, or None where values are physical as they are

    @property
    def physical_unit(self) -> str:
        """Return the unit of what `to_physical` gives."""
        return self.unit if self.mapping is None else MAPPINGS[self.mapping].unit

    @property
    def code_type(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the smallest type that holds all codes."""
        return np.min_scalar_type(max(self.max_code, self.missing_code or 0))

    def to_physical(self, codes: Codes) -> Values:
        """Return physical values of `codes` in `physical_unit`, float32 of the same shape, NaN where missing."""
        values = np.asarray(self.offset + self.gain * codes.astype(np.float32), dtype=np.float32)
        if self.mapping is not None:
            values = MAPPINGS[self.mapping].physical(values)
        if self.missing_code is not None:
            values[codes == self.missing_code] = np.nan
        return values

    def to_code(self, values: npt.ArrayLike) -> Codes:
        """Return the nearest codes of physical `values`, clipped to 0..max_code; NaN becomes the missing code. Of
        codes with one physical value the least.

        Raises UsageError for NaN where the scale has no missing code.
        """
        exact = np.asarray(values, dtype=np.float64)
        absent = np.isnan(exact)
        exact = np.where(absent, 0.0, exact)
        if self.mapping is None:
            codes = np.clip(np.rint((exact - self.offset) / self.gain), 0, self.max_code)
        else:
            codes = nearest(self.to_physical(np.arange(self.max_code + 1, dtype=self.code_type)), exact)
        if absent.any():
            if self.missing_code is None:
                raise UsageError(
                    f"{int(absent.sum())} values are NaN, but this scale of {self.quantity} has no code for it"
                )
            codes[absent] = self.missing_code
        return codes.astype(self.code_type)

    def normalise(self, codes: Codes) -> Values:
        """Return what models are fed: code / max_code in 0..1, float32 of the same shape, 0 where missing."""
        scaled = codes.astype(np.float32) / np.float32(self.max_code)
        if self.missing_code is not None:
            scaled[codes == self.missing_code] = 0.0
        return scaled


@dataclass(frozen=True)
class ShardInfo:
    """One shard: a file of whole events (webdataset), or of whole chunks of the split's array (zarr)."""

    file: str  # below the store, with forward slashes
    bytes: int
    events: int  # that begin in this shard
    sha256: str
    index_sha256: str | None = None  # of the .idx beside a tar; zarr has its index inside the file


@dataclass(frozen=True)
class FileInfo:
    """A file that is neither a shard nor the index of one: zarr's metadata and coordinates."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """What one split holds, and which share of its pixels is missing, was clipped to the codes' range, or changes
    between missing and observed from a frame to the next; None where it isn't known.
    """

    events: int
    frames: int
    shards: tuple[ShardInfo, ...]
    missing: float | None = None
    clipped: float | None = None
    mask_changes: float | None = None


@dataclass(frozen=True)
class SourceInfo:
    """Where the frames come from and on what terms."""

    name: str
    licence: str
    citation: str
    url: str


@dataclass(frozen=True)
class Manifest:
    """See the module's docstring. `conversion` is plain JSON: the arguments, and the digest of what they were applied
    to.
    """

    format: str
    name: str
    frames: FrameSpec
    step_seconds: float | None  # None: the frames have no clock
    scale: Scale
    splits: Mapping[str, SplitInfo]
    modes: tuple[str, ...]
    source: SourceInfo
    conversion: Mapping[str, Any]
    files: tuple[FileInfo, ...] = ()
    encoding: str = "raw"
    grid: Grid | None = None  # where the frames lie on the earth
    generator: str = GENERATOR
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of manifest.json; its last key is a digest of all the others."""
        data: dict[str, Any] = {"format_version": self.format_version, "format": self.format}
        data.update((key, value) for key, value in dataclasses.asdict(self).items() if key not in data)
        if self.grid is None:
            del data["grid"]
        if not self.frames.names:
            del data["frames"]["names"]
        for split in data["splits"].values():
            for share in SHARES:
                if split[share] is None:
                    del split[share]
        data["digest"] = manifest_digest(data)
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """Return what names the store wherever it lies: the last key of manifest.json."""
        return str(json.loads(self.to_json())["digest"])

    @staticmethod
    def from_json(text: str, where: str = MANIFEST_NAME, sealed: bool = True) -> Manifest:
        """Read what `to_json` wrote. Raises ManifestError that names `where` and the key at fault, and, if it must be
        `sealed`, where the digest isn't that of the rest: an edited scale or shape would give other values in silence.
        """
        fields = Fields(parse_json(text, where), where)
        data = dict(fields.data)
        version = fields.take("format_version", int)
        if version != FORMAT_VERSION:
            raise ManifestError(
                f"{where}: format_version is {version}, this program reads {FORMAT_VERSION}; "
                "convert the archive again, or read the store with the version that wrote it"
            )
        frames = read_frames(fields.inner("frames"))
        manifest = Manifest(
            format=fields.one_of("format", FORMATS),
            encoding=fields.one_of("encoding", ENCODINGS) if "encoding" in fields.data else "raw",  # older stores
            name=fields.take("name", str),
            frames=frames,
            step_seconds=fields.optional("step_seconds", float),
            scale=read_scale(fields.inner("scale"), int(np.iinfo(frames.code_type).max)),
            splits={name: _split(inner, name) for name, inner in fields.inner("splits").each()},
            modes=fields.texts("modes"),
            source=fields.inner("source").flat(SourceInfo),
            conversion=fields.plain("conversion"),
            files=tuple(inner.flat(FileInfo) for inner in fields.items("files")),
            grid=Grid.from_fields(fields.inner("grid")) if "grid" in fields.data else None,
            generator=fields.take("generator", str),
        )
        digest = fields.take("digest", str)
        fields.done()
        manifest._check(where)
        if sealed and digest != manifest_digest(data):
            raise ManifestError(
                f"{where}: was edited or damaged: its digest doesn't match its contents; fetch it again from a good "
                "copy, or convert the archive again"
            )
        return manifest

    def _check(self, where: str) -> None:
        """Raise ManifestError where fields that are right by themselves can't be together."""
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise ManifestError(f"{where}: step_seconds is {self.step_seconds:g}, should be above 0")
        if self.grid is not None and (self.grid.height, self.grid.width) != self.frames.shape[1:]:
            raise ManifestError(f"{where}: a grid of {self.grid.height}x{self.grid.width} for other frames")
        shards = [shard for split in self.splits.values() for shard in split.shards]
        tars = self.format == "webdataset"
        for shard in shards:
            if (shard.index_sha256 is not None) != tars or shard.file.endswith(".tar") != tars:
                raise ManifestError(f"{where}: {shard.file!r} is no shard of format {self.format}, or has no index")

    @staticmethod
    def load(store: Path, sealed: bool = True) -> Manifest:
        """Read the manifest of the store in folder `store`. Raises ManifestError, as `from_json` does."""
        path = store / MANIFEST_NAME
        try:
            text = read_regular(path, LARGEST).decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            what = f"it has no {MANIFEST_NAME}" if store.is_dir() else "there is no such folder"
            raise NoStoreError(
                f"{store} is not a store: {what}; make one with: python -m shards convert --help"
            ) from None
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: not UTF-8 text ({error}); convert the archive again") from None
        except OSError as error:
            raise ManifestError(f"{path}: can't be read ({error.strerror}); grant access, or fetch it again") from None
        return Manifest.from_json(text, str(path), sealed)


def manifest_digest(data: Mapping[str, object]) -> str:
    """Return the SHA-256 over everything in a manifest but its own `digest`: an edited manifest no longer matches."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_channel_names(names: Sequence[str], channels: int) -> None:
    """Raise UsageError unless there is one name for each channel, all different and of CHANNEL_PATTERN."""
    if len(names) != channels or len(set(names)) < len(names):
        raise UsageError(
            f"channel names {', '.join(names)}: should be {channels} different names, one for each channel of a frame"
        )
    for name in names:
        if not CHANNEL_PATTERN.fullmatch(name):
            raise UsageError(f"channel name {name!r}: write a letter, then at most 63 letters, digits, _, . or -")


def read_frames(fields: Fields) -> FrameSpec:
    """Return the frames that a manifest or an export describes. Raises ManifestError."""
    names = fields.texts("names") if "names" in fields.data else ()
    sides = (fields.take("channels", int), fields.take("height", int), fields.take("width", int))
    spec = FrameSpec(*sides, fields.take("dtype", str), names)
    fields.done()
    if names:
        try:
            check_channel_names(names, spec.channels)
        except UsageError as error:
            raise ManifestError(f"{fields.where}: {error}") from None
    sides_fit = 1 <= min(spec.shape) <= max(spec.shape) <= LARGEST_SIDE
    if spec.dtype not in DTYPES or not sides_fit or spec.bytes > 1 << 32:
        raise ManifestError(
            f"{fields.where}: frames should be {' or '.join(DTYPES)} with sides of 1..{LARGEST_SIDE}, found {spec}"
        )
    return spec


def read_scale(fields: Fields, largest: int) -> Scale:
    """Return the scale that a manifest or an export describes; `largest` code of the frames. Raises ManifestError."""
    scale = Scale(
        quantity=fields.take("quantity", str),
        unit=fields.take("unit", str),
        offset=fields.take("offset", float),
        gain=fields.take("gain", float),
        max_code=fields.take("max_code", int),
        missing_code=fields.optional("missing_code", int),
        mapping=fields.optional("mapping", str) if "mapping" in fields.data else None,  # older stores have none
    )
    fields.done()
    if scale.mapping is not None and scale.mapping not in MAPPINGS:
        raise ManifestError(
            f"{fields.where}: the mapping {scale.mapping!r} is unknown, should be one of {', '.join(MAPPINGS)}; "
            "written by a newer version?"
        )
    codes_fit = 1 <= scale.max_code <= largest and 0 <= (scale.missing_code or 0) <= largest
    if not codes_fit or abs(scale.gain) < 1e-30:
        raise ManifestError(
            f"{fields.where}: max_code should be 1..{largest}, gain not 0 and missing_code 0..{largest}, found {scale}"
        )
    return scale


def _split(fields: Fields, name: str) -> SplitInfo:
    if not SPLIT_PATTERN.fullmatch(name):
        raise ManifestError(f"{fields.where}: {name!r} is not a name for a split (small letters, digits, - and _)")
    split = SplitInfo(
        events=fields.take("events", int),
        frames=fields.take("frames", int),
        shards=tuple(item.flat(ShardInfo) for item in fields.items("shards")),
        **{share: fields.take(share, float) for share in SHARES if share in fields.data},
    )
    fields.done()
    if split.events > split.frames or (split.events > 0) != bool(split.shards):
        raise ManifestError(
            f"{fields.where}: {split.events} events of {split.frames} frames in {len(split.shards)} shards can't be"
        )
    return split
