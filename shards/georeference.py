"""Where the pixels of a store lie on the earth: an evenly spaced grid in a coordinate reference system (CRS).

The CRS is kept as WKT (OGC 18-010) and, for programs that want it, as PROJ's text; pyproj reads both and gives CF's
parameters of the projection. Coordinates are those of pixel centres, in the CRS's own unit ("m", "degree"), x to the
east. Frames have the north in row 0, so `dy` is below 0.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.errors import ManifestError, SourceError, UsageError
from shards.fields import Fields

if TYPE_CHECKING:
    from pyproj import CRS, Transformer

Axis = npt.NDArray[np.float64]
ROW_ORDER = "north first"
EVEN = 1e-2  # of a pixel: how far a coordinate may lie from an evenly spaced one; float32 rounds by so much
LENGTHS = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometres", "kilometer", "kilometers"), 1000.0),
    **dict.fromkeys(("us survey foot", "us survey feet", "ftus", "us-ft"), 1200 / 3937),
    **dict.fromkeys(("ft", "foot", "feet", "international foot", "international feet"), 0.3048),
}
ANGLES = {
    **dict.fromkeys(("rad", "radian", "radians"), 1.0),
    **dict.fromkeys(("microradian", "microradians", "urad"), 1e-6),
}
LONGLAT = "+proj=longlat +ellps=WGS84 +no_defs"
UNITS = {"metre": "m", "meter": "m", "kilometre": "km", "degree": "degree", "US survey foot": "US_survey_foot"}
MAPPING = "spatial_ref"  # name of the grid mapping variable, the one that rioxarray looks for
_UNNAMED = ("unknown", "undefined", "unnamed")  # what PROJ puts where a CRS has no name
_NAMES = ("reference_ellipsoid_name", "prime_meridian_name", "horizontal_datum_name")
LonLat = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """A grid of `height` x `width` pixels; see the module's docstring.

    Attributes:
        x0, y0: centre of the first column, and of the first row.
        dx, dy: from a pixel to the next one.
        corners: longitude and latitude of the outer corners: upper left, upper right, lower right, lower left.
        metres_per_pixel: across and down; of a grid in degrees, at its centre.
    """

    crs_wkt: str
    proj4: str
    unit: str
    x0: float
    y0: float
    dx: float
    dy: float
    width: int
    height: int
    corners: tuple[LonLat, LonLat, LonLat, LonLat]
    metres_per_pixel: tuple[float, float]
    row_order: str = ROW_ORDER

    @property
    def x(self) -> Axis:
        """Centres of the columns [width]."""
        return self.x0 + self.dx * np.arange(self.width, dtype=np.float64)

    @property
    def y(self) -> Axis:
        """Centres of the rows [height], north first."""
        return self.y0 + self.dy * np.arange(self.height, dtype=np.float64)

    @property
    def geographic(self) -> bool:
        """Whether x and y are longitude and latitude, of the earth or of a rotated pole."""
        return self.unit == "degree"

    def cut(self, top: int, left: int, rows: int, columns: int, shape: tuple[int, int]) -> Grid:
        """Return the grid of `rows` x `columns` pixels from (top, left) on, resized to `shape` (height, width)."""
        height, width = shape
        if (rows, columns, height, width) == (self.height, self.width, self.height, self.width):
            return self
        wide, high = columns / width, rows / height  # old pixels in a new one
        return _grid(
            self.crs_wkt,
            self.x0 + self.dx * (left + wide / 2 - 0.5),
            self.y0 + self.dy * (top + high / 2 - 0.5),
            self.dx * wide,
            self.dy * high,
            width,
            height,
            self.proj4,
        )

    def mapping_attributes(self) -> dict[str, Any]:
        """Return the attributes of a CF grid mapping variable; GDAL reads `spatial_ref` and `GeoTransform`."""
        left, top = self.x0 - self.dx / 2, self.y0 - self.dy / 2
        transform = (left, self.dx, 0.0, top, 0.0, self.dy)
        return {
            **_cf_parameters(self.crs_wkt),
            "crs_wkt": self.crs_wkt,
            "spatial_ref": self.crs_wkt,
            "proj4": self.proj4,
            "GeoTransform": " ".join(f"{number:.12g}" for number in transform),
        }

    def axis_attributes(self, axis: str) -> dict[str, str]:
        """Return the CF attributes of the coordinate "x" or "y"."""
        if self.geographic:
            name, unit = {"x": ("longitude", "degrees_east"), "y": ("latitude", "degrees_north")}[axis]
            if crs_of(self.crs_wkt).is_derived:  # a rotated pole: CF has names of their own for its angles
                name, unit = f"grid_{name}", "degrees"
        else:
            name, unit = f"projection_{axis}_coordinate", self.unit
        return {"standard_name": name, "long_name": name.replace("_", " "), "units": unit, "axis": axis.upper()}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_fields(fields: Fields) -> Grid:
        """Read what `to_json` gave. Raises ManifestError that names the key at fault."""
        texts = (fields.take(name, str) for name in ("crs_wkt", "proj4", "unit"))
        crs_wkt, proj4, unit = texts
        x0, y0, dx, dy = (fields.take(name, float) for name in ("x0", "y0", "dx", "dy"))
        width, height = (fields.take(name, int) for name in ("width", "height"))
        corners = [_pair(corner, fields) for corner in fields.take("corners", list)]
        metres = _pair(fields.take("metres_per_pixel", list), fields)
        row_order = fields.one_of("row_order", (ROW_ORDER,))
        fields.done()
        if len(corners) != 4 or 0 in (dx, dy, width, height):
            raise ManifestError(
                f"{fields.where}: no grid: {len(corners)} corners, {width} x {height} pixels of {dx} x {dy}; convert "
                "the archive again"
            )
        return Grid(
            crs_wkt, proj4, unit, x0, y0, dx, dy, width, height,
            (corners[0], corners[1], corners[2], corners[3]), metres, row_order,
        )  # fmt: skip


def _pair(values: object, fields: Fields) -> LonLat:
    """Two finite numbers of a JSON list."""
    numbers = values if isinstance(values, list) else []
    kept = [float(n) for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e30]
    if len(kept) != 2 or len(numbers) != 2:
        raise ManifestError(
            f"{fields.where}: no grid: {str(values)[:60]!r} aren't two numbers; convert the archive again"
        )
    return kept[0], kept[1]


def grid_of(x: npt.ArrayLike, y: npt.ArrayLike, crs: str | Mapping[str, Any], unit: str = "") -> Grid:
    """Return the grid of pixel centres `x` [width] and `y` [height] (north first).

    Args:
        crs: what pyproj takes: WKT, PROJ's text, "EPSG:3067"; or the attributes of a CF grid mapping.
        unit: of x and y, where it isn't the CRS's own: "km", "m"; of a geostationary view also "rad".

    Raises:
        SourceError: a CRS that pyproj doesn't know, a unit that isn't one of its axes, axes that aren't evenly spaced,
            or corners that lie off the earth.
        UsageError: pyproj isn't installed.
    """
    system = crs_of(crs)
    factor = _unit_factor(system, unit)
    across, down = ((first * factor, step * factor, count) for first, step, count in (_even(x, "x"), _even(y, "y")))
    if down[1] > 0:
        raise SourceError("y ascends, and row 0 is the north: turn the rows")
    return _grid(_wkt(system), across[0], down[0], across[1], down[1], across[2], down[2], _proj4(system))


def _unit_factor(system: CRS, unit: str) -> float:
    """Return what coordinates in `unit` are multiplied by to be in the CRS's own. Raises SourceError."""
    own, unit = system.axis_info[0] if system.axis_info else None, unit.strip()
    if not unit or own is None or unit == own.unit_name:
        return 1.0
    if system.is_geographic and unit.lower().startswith("deg"):
        return 1.0
    if system.is_projected and (length := LENGTHS.get(unit.lower().replace("_", " "))) is not None:
        return length / float(own.unit_conversion_factor)
    height = system.to_cf().get("perspective_point_height") if system.is_projected else None
    if height is not None and unit.lower() in ANGLES:  # scanning angles: PROJ's coordinates are these times the height
        return ANGLES[unit.lower()] * float(height) / float(own.unit_conversion_factor)
    raise SourceError(f"coordinates are in {unit!r}, those of the projection in {own.unit_name}")


def crs_of(crs: str | Mapping[str, Any]) -> CRS:
    """Return pyproj's CRS. Raises SourceError for one that it doesn't know or that is neither geographic nor projected,
    UsageError without pyproj.
    """
    try:
        import pyproj
        from pyproj.exceptions import CRSError
    except ImportError as error:
        raise UsageError(
            f"an archive that knows its grid needs the package pyproj ({error}): pip install pyproj"
        ) from None
    try:
        system = pyproj.CRS.from_cf(dict(crs)) if isinstance(crs, Mapping) else pyproj.CRS.from_user_input(crs)
    except (CRSError, KeyError, ValueError, TypeError) as error:
        raise SourceError(f"the projection {crs!r} is unknown to pyproj ({str(error).splitlines()[0]})") from None
    if not (system.is_geographic or system.is_projected):
        raise SourceError(
            f"the coordinate system {system.name!r} ({system.type_name}) is neither geographic nor projected, so its "
            "place on the earth isn't known; give the file the right one (for a GeoTIFF: gdal_edit.py -a_srs EPSG:CODE)"
        )
    return system


def project(crs: str, lon: float, lat: float) -> LonLat:
    """Return x and y of a longitude and a latitude, in the CRS's unit. Raises as `crs_of` does."""
    system = crs_of(crs)
    x, y = _transformer(_lonlat_of(system), system).transform(lon, lat)
    return float(x), float(y)


def _transformer(source: CRS | None, target: CRS | None) -> Transformer:
    import pyproj
    from pyproj.exceptions import ProjError

    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise SourceError(f"the projection can't be used: {str(error).splitlines()[0]}") from None


def _lonlat_of(system: CRS) -> CRS | None:
    """Return the CRS of longitude and latitude below a projection, or below a rotated pole."""
    base = system.geodetic_crs
    return base.source_crs if base is not None and base.is_derived else base


def _even(values: npt.ArrayLike, name: str) -> tuple[float, float, int]:
    """First, step and count of an axis. Raises SourceError where it isn't evenly spaced."""
    axis = np.asarray(values, dtype=np.float64)
    if axis.ndim != 1 or len(axis) < 2 or not np.isfinite(axis).all():
        raise SourceError(f"{name} has the shape {axis.shape}, expected two finite numbers or more")
    step = (axis[-1] - axis[0]) / (len(axis) - 1)
    off = np.abs(axis - (axis[0] + step * np.arange(len(axis)))).max()
    if step == 0 or off > EVEN * abs(step):
        raise SourceError(f"{name} isn't evenly spaced: a pixel lies {off:g} away from where steps of {step:g} lead")
    return float(axis[0]), float(step), len(axis)


def _grid(wkt: str, x0: float, y0: float, dx: float, dy: float, width: int, height: int, proj4: str) -> Grid:
    system = crs_of(wkt)
    lonlat = _transformer(system, _lonlat_of(system))
    left, top = x0 - dx / 2, y0 - dy / 2
    right, bottom = left + dx * width, top + dy * height
    lons, lats = lonlat.transform([left, right, right, left], [top, top, bottom, bottom])
    if not np.isfinite([lons, lats]).all():
        raise SourceError("a corner lies off the earth in its projection, as in an image of the full disk")
    corners = [(round(float(lon), 6), round(float(lat), 6)) for lon, lat in zip(lons, lats, strict=True)]
    unit = UNITS.get(system.axis_info[0].unit_name, system.axis_info[0].unit_name) if system.axis_info else "m"
    geod = system.get_geod()
    if system.is_geographic and geod is not None:
        x, y = (left + right) / 2, (top + bottom) / 2
        metres = geod.inv(x, y, x + dx, y)[2], geod.inv(x, y, x, y + dy)[2]
    else:
        factor = system.axis_info[0].unit_conversion_factor if system.axis_info else 1.0
        metres = abs(dx) * factor, abs(dy) * factor
    return Grid(
        wkt, proj4, unit, x0, y0, dx, dy, width, height,
        (corners[0], corners[1], corners[2], corners[3]),
        (round(float(metres[0]), 3), round(float(metres[1]), 3)),
    )  # fmt: skip


def _wkt(system: CRS) -> str:
    return str(system.to_wkt())


def _proj4(system: CRS) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it says less than WKT: the WKT is kept beside it
        return str(system.to_proj4())


@functools.lru_cache(maxsize=8)
def _cf_cached(wkt: str) -> tuple[tuple[str, Any], ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what CF has no parameter for is in the WKT
        return tuple(crs_of(wkt).to_cf().items())


def _cf_parameters(wkt: str) -> dict[str, Any]:
    """CF's parameters of a projection; none where CF has no name for it (gnomonic), which leaves the WKT."""
    found = {key: value for key, value in _cf_cached(wkt) if key != "crs_wkt" and value not in (None, *_UNNAMED)}
    if any(name not in found for name in _NAMES):  # CF wants all of them or none
        found = {key: value for key, value in found.items() if key not in _NAMES}
    if found.get("grid_mapping_name") == "polar_stereographic":
        pole = float(np.copysign(90.0, found.get("standard_parallel", 90.0)))
        found.setdefault("latitude_of_projection_origin", pole)
    if "azimuth_of_central_line" in found:
        found["azimuth"] = found["azimuth_of_central_line"]  # the IOOS checker asks for it by this name
    return found
