"""The reader of GeoTIFF composites, such as FMI's `YYYYmmddHHMM_FIN-DBZ-3067-250M.tif`: 8 or 16 bits, or floats.

Numbers get their meaning by the band's scale and offset, by items of GDAL_METADATA (gain, offset, nodata, undetect,
quantity with its unit, observation time), or by --dbz. A file that names no unit is taken to hold dBZ, which is
reported. rasterio (GDAL) reads files and geokeys. See radar_readers.py for what a reader is.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError, UsageError
from shards.georeference import Grid, grid_of
from shards.manifest import Scale, SourceInfo
from shards.sources.inputs import need, plural, quiet, unreadable
from shards.sources.radar_readers import (
    DBZ,
    PACKED,
    Composite,
    FileName,
    Values,
    bare,
    check_pixels,
    coded,
    content,
    gain_in,
    number_in,
    own_scale,
    rain_to_dbz,
    side_in,
    table_of,
    time_in,
    timestamp,
    unlike,
)
from shards.sources.units import amount_factor, is_ambiguous, rate_factor, says_rain

ITEM = re.compile(r'<Item name="([^"]+)"([^>]*)>([^<]*)</Item>')
NONE = ("", "none", "null", "n/a", "na")
UNSTATED = "dBZ, as the file states no unit (--dbz OFFSET,GAIN or --unit says otherwise)"


@dataclass(frozen=True)
class Meaning:
    """What a band's numbers mean: value = offset + gain * number, in `unit`; `rate` to mm/h, None for dBZ."""

    gain: float
    offset: float
    nodata: float | None
    undetect: float | None
    unit: str
    rate: float | None
    lowest: float = DBZ.offset  # of what was observed without an echo

    def to_dbz(self, numbers: npt.NDArray[Any]) -> Values:
        """Return the dBZ of a band's numbers, NaN where missing."""
        values = self.gain * numbers.astype(np.float64) + self.offset
        if self.nodata is not None:
            values[numbers == self.nodata] = np.nan
        if self.rate is not None:
            values = rain_to_dbz(values * self.rate)
        if self.undetect is not None:
            values[numbers == self.undetect] = self.lowest
        return values


@dataclass(frozen=True)
class GeoTiff:
    """See the module's docstring. `band` counts from 1; `linear` is --dbz's (offset, gain)."""

    band: int | None = None
    linear: tuple[float, float] | None = None
    unit: str | None = None

    name = "geotiff"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "none"
    looks_like = "201609281445_FIN-DBZ-3067-250M.tif"
    suffixes = (".tif", ".tiff")
    source = SourceInfo(
        name="Radar composite in GeoTIFF",
        licence="not stated; FMI open data: CC BY 4.0",
        citation="the service that published the files",
        url="https://www.ogc.org/standard/geotiff",
    )

    def parse(self, name: str) -> FileName | None:
        """Return the time, YYYYmmddHHMM[SS] anywhere."""
        return time_in(name) if bare(name).endswith(self.suffixes) else None

    def read(self, path: Path) -> Composite:
        """Return the asked band, or the only one."""
        with _opened(path) as image:
            band = self._band(path, image)
            items = _items(image, band)
            meaning = self._meaning(path, image, band, items)
            check_pixels(path, (image.height, image.width))
            raw = _read(path, image, band)
            south = image.transform.e > 0
            place = f"{image.crs} {tuple(round(number, 3) for number in tuple(image.transform)[:6])}"
        if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
            table = table_of(meaning.to_dbz(np.arange(256**raw.dtype.itemsize, dtype=raw.dtype)), self.scale)
            codes, clipped = table.apply(raw)
        else:
            codes, clipped = coded(raw, meaning.to_dbz, self.scale)
        time = _time(items)
        facts = {"quantity": items.get("quantity", ("", ""))[0], "unit": meaning.unit, "grid": place}
        return Composite(codes[::-1].copy() if south else codes, clipped, time, facts)

    def own_scale(self, path: Path) -> Scale | None:
        """Return the scale of the file's own reflectivities of 16 bits; None for others."""
        with _opened(path) as image:
            band = self._band(path, image)
            meaning = self._meaning(path, image, band, _items(image, band))
            dtype = np.dtype(image.dtypes[band - 1])
        return own_scale(dtype, meaning.gain, meaning.offset) if meaning.rate is None else None

    def grid(self, path: Path) -> Grid | None:
        """Return the grid by the geokeys. Raises SourceError where the image is turned or has none."""
        with _opened(path) as image:
            transform, crs = image.transform, image.crs
            columns, rows = (side_in(path, "size", side) for side in (image.width, image.height))
        if crs is None:
            return None
        if transform.b or transform.d:
            raise SourceError(f"{path}: its grid is turned against the axes; warp it first (gdalwarp)")
        x = transform.c + transform.a * (np.arange(columns) + 0.5)
        y = transform.f + transform.e * (np.arange(rows) + 0.5)
        epsg = crs.to_epsg()
        return grid_of(x, y[::-1] if transform.e > 0 else y, f"EPSG:{epsg}" if epsg else crs.to_wkt())

    def _band(self, path: Path, image: Any) -> int:
        """Return the band to read, from 1. Raises UsageError that lists them where none is asked for, and there are
        several.
        """
        count = image.count
        if self.band is None and count == 1:
            return 1
        if self.band is None or not 1 <= self.band <= count:
            names = ", ".join(f"{i} {image.descriptions[i - 1] or image.dtypes[i - 1]}" for i in range(1, count + 1))
            raise UsageError(f"{path}: {plural(count, 'band')} ({names}); name one with --band N")
        return self.band

    def _linear(
        self, path: Path, image: Any, band: int, items: dict[str, tuple[str, str]]
    ) -> tuple[float, float, bool]:
        """Return gain and offset, and whether anything states them: --dbz, the band, or else its items."""
        if self.linear is not None:
            return self.linear[1], self.linear[0], True
        gain, offset = image.scales[band - 1], image.offsets[band - 1]
        stated = (gain, offset) != (1.0, 0.0)
        if not stated and {"gain", "offset"} & set(items):
            gain, offset = (items.get(name, (None,))[0] for name in ("gain", "offset"))
            stated = True
        return gain_in(path, "gain", gain, 1.0), number_in(path, "offset", offset, 0.0), stated

    def _meaning(self, path: Path, image: Any, band: int, items: dict[str, tuple[str, str]]) -> Meaning:
        gain, offset, stated = self._linear(path, image, band, items)
        unit = (
            self.unit or image.units[band - 1] or items.get("quantity", ("", ""))[1] or items.get("unit", ("", ""))[0]
        )
        if self.linear is not None:
            unit = "dBZ"
        if not unit and not stated and image.dtypes[band - 1][0] != "f":
            raise SourceError(
                f"{path}: names neither unit nor gain: give the meaning of its numbers with --dbz OFFSET,GAIN "
                "(dBZ = OFFSET + GAIN * number) or --unit; a picture without numbers is for: convert images"
            )
        rate = None
        if unit and unit.strip().lower() not in ("dbz", "db"):
            told = (*items.get("quantity", ()), image.descriptions[band - 1] or "", path.name)
            rate = self._rate(path, unit, told)
        nodata = image.nodatavals[band - 1]
        if nodata is None:
            nodata = _marker(path, "nodata", items)
        return Meaning(
            gain, offset, nodata, _marker(path, "undetect", items), unit or UNSTATED, rate, self.scale.offset
        )

    def _rate(self, path: Path, unit: str, texts: Sequence[str]) -> float:
        """Return what turns `unit` into mm/h. Raises SourceError for a unit that isn't a rain rate's, or for one of
        much else that neither --unit nor any of the texts `texts` calls rain.
        """
        rate = rate_factor(unit)
        if rate is None and amount_factor(unit) is not None:
            raise SourceError(
                f"{path}: is in {unit}, a unit of amounts without their period: if it is rain of 5 minutes, say "
                f"--unit {shlex.quote(f'{unit}/5min')}"
            )
        if rate is None and self.unit is not None:
            raise UsageError(f"--unit {unit}: neither dBZ nor a rain rate such as mm/h")
        if rate is None:
            raise unlike(path, "unit", unit, "dBZ, or a rain rate such as mm/h")
        if self.unit is None and is_ambiguous(unit) and not says_rain(*texts):
            raise SourceError(
                f"{path}: is in {unit}, which rain has, and much else; neither its quantity nor its name says rain: "
                f"if it is a rain rate, say --unit {shlex.quote(unit)}"
            )
        return rate


class _opened:
    """A GeoTIFF, read from its file, or from memory where it is packed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        rasterio = need("rasterio", "geo", "reading GeoTIFF")
        need("rasterio.io", "geo", "reading GeoTIFF")
        self._memory: Any = None
        try:
            with quiet(rasterio):  # of a plain TIFF without geokeys: that there is no grid is reported
                self._open(rasterio)
        except rasterio.errors.RasterioError as error:
            raise unreadable(self._path, error) from None
        if len(self._image.subdatasets) > 1:
            raise unreadable(self._path, f"{len(self._image.subdatasets)} images in one file, and one is one frame")
        return self._image

    def _open(self, rasterio: ModuleType) -> None:
        if self._path.suffix.lower() in PACKED:
            self._memory = rasterio.io.MemoryFile(content(self._path))
            self._image = self._memory.open(driver="GTiff")
        else:
            self._image = rasterio.open(self._path, driver="GTiff")

    def __exit__(self, *_: object) -> None:
        self._image.close()
        if self._memory is not None:
            self._memory.close()


def _read(path: Path, image: Any, band: int) -> npt.NDArray[Any]:
    import rasterio

    try:
        with quiet(rasterio):
            return np.asarray(image.read(band))
    except rasterio.errors.RasterioError as error:
        raise unreadable(path, error) from None


def _marker(path: Path, name: str, items: dict[str, tuple[str, str]]) -> float | None:
    """Return the number that an item says stands for no value; None where it says that there is none."""
    text = items.get(name, ("", ""))[0]
    return None if text.lower() in NONE else number_in(path, name, text, finite=False)


def _items(image: Any, band: int) -> dict[str, tuple[str, str]]:
    """Return the items of a band and of its image, by name in small letters: (text, unit). FMI's are XML inside an item
    of GDAL_METADATA, escaped once more.
    """
    found: dict[str, tuple[str, str]] = {}
    for tags in (image.tags(band), image.tags()):
        for name, text in tags.items():
            found.setdefault(name.lower(), (str(text).strip(), ""))
            plain = html.unescape(html.unescape(str(text)))
            for item, attributes, value in ITEM.findall(plain):
                unit = re.search(r'unit="([^"]*)"', attributes)
                found.setdefault(item.lower(), (value.strip(), unit[1] if unit else ""))
    return found


def _time(items: dict[str, tuple[str, str]]) -> datetime | None:
    text = items.get("observation time", ("", ""))[0]
    return timestamp(re.sub(r"\D", "", text)[:12], "%Y%m%d%H%M")
