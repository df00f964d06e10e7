"""Where the pixels of an archive lie on the earth, for those archives that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from shards.sources.geometry import Geometry

Axis = npt.NDArray[np.floating]

# proj's names of projections and parameters -> CF's (CF conventions, appendix F)
_NAMES = {
    "stere": "polar_stereographic",
    "aea": "albers_conical_equal_area",
    "laea": "lambert_azimuthal_equal_area",
    "lcc": "lambert_conformal_conic",
    "longlat": "latitude_longitude",
}
_PARAMETERS = {
    "lat_0": "latitude_of_projection_origin",
    "lat_ts": "standard_parallel",
    "a": "semi_major_axis",
    "b": "semi_minor_axis",
    "x_0": "false_easting",
    "y_0": "false_northing",
}


@dataclass(frozen=True)
class Grid:
    """Pixel centres: `x` of columns [W], `y` of rows [H], north first, in `units` ("m", "km" or "degrees").

    `projection` holds the attributes of a CF grid mapping; proj's text, where it is known, is one of them: `proj4`.
    """

    x: Axis
    y: Axis
    units: str
    projection: Mapping[str, object]

    def cut(self, geometry: Geometry) -> Grid:
        """The grid of frames after a crop and a size; resized axes are taken to be evenly spaced."""
        crop = geometry.crop
        x, y = self.x[crop.left : crop.left + crop.width], self.y[crop.top : crop.top + crop.height]
        height, width = geometry.shape
        return Grid(_respaced(x, width), _respaced(y, height), self.units, self.projection)


@runtime_checkable
class Gridded(Protocol):
    """A source that may know where its frames lie."""

    def grid(self) -> Grid | None:
        """Of the frames that `read` gives; None where the archive doesn't say."""


def _respaced(axis: Axis, count: int) -> Axis:
    if len(axis) in (1, count):
        return axis
    place = (np.arange(count) + 0.5) * (len(axis) / count) - 0.5
    return np.asarray(axis[0] + place * (axis[-1] - axis[0]) / (len(axis) - 1))


def from_proj(text: str) -> dict[str, object]:
    """CF's attributes for a proj text such as "+proj=stere +lat_0=90 ..."; what CF has no name for is in `proj4` only.

    A figure of the earth in kilometres, as KNMI writes it, is given in CF's metres.
    """
    given = dict(part.lstrip("+").partition("=")[::2] for part in text.split())
    attributes: dict[str, object] = {"proj4": text}
    name = _NAMES.get(given.get("proj", ""))
    if name is None:
        return attributes
    attributes["grid_mapping_name"] = name
    for key, value in given.items():
        if key in _PARAMETERS:
            number = float(value)
            metres = 1000.0 if key in ("a", "b") and number < 1e5 else 1.0
            attributes[_PARAMETERS[key]] = number * metres
    if "lon_0" in given:
        vertical = name == "polar_stereographic"
        central = "straight_vertical_longitude_from_pole" if vertical else "longitude_of_central_meridian"
        attributes[central] = float(given["lon_0"])
    return attributes
