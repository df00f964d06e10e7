"""Radar composites in their documented forms, made by hand: for readers without a sample, and for grids whose corners
are known. All are of 32 x 40 pixels and begin at 2017-05-30T22:00, five minutes apart, but RADOLAN's, whose grids have
sizes of their own, and MeteoSwiss's, of 640 x 710.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.archives import radar_times, write_bom, write_cf, write_fmi, write_gif, write_knmi

ROWS, COLUMNS = 32, 40
LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84 +units=m"
STEREO = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"  # KNMI's, in kilometres


def corners_of(crs: str, left: float, top: float, dx: float, dy: float) -> dict[str, tuple[float, float]]:
    """Longitudes and latitudes of the outer corners, by pyproj itself."""
    import pyproj

    transform = pyproj.Transformer.from_crs(pyproj.CRS(crs).geodetic_crs, crs, always_xy=True)
    right, bottom = left + COLUMNS * dx, top - ROWS * dy
    places = {"UL": (left, top), "UR": (right, top), "LL": (left, bottom), "LR": (right, bottom)}
    return {name: transform.transform(*place, direction="INVERSE") for name, place in places.items()}


def write_odim(
    folder: Path,
    times: Sequence[datetime],
    fields: dict[str, dict[str, Any]],
    name: str = "T_PAAH21_C_EUOC_{:%Y%m%d%H%M%S}.hdf",
    packed: bool = False,
) -> None:
    """A composite with a dataset for each of `fields`: data [T, 32, 40], and attributes of its `what`."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for i, time in enumerate(times):
        path = folder / name.format(time)
        with h5py.File(path, "w") as file:
            what = file.create_group("what").attrs
            what.update(
                {"object": np.bytes_("COMP"), "version": np.bytes_("H5rad 2.2"), "source": np.bytes_("ORG:247")}
            )
            what.update({"date": np.bytes_(f"{time:%Y%m%d}"), "time": np.bytes_(f"{time:%H%M%S}")})
            where = file.create_group("where").attrs
            where.update(
                {"projdef": np.bytes_(LAEA), "xsize": COLUMNS, "ysize": ROWS, "xscale": 2000.0, "yscale": 2000.0}
            )
            for corner, (lon, lat) in corners_of(LAEA, 0, 0, 2000, 2000).items():
                where.update({f"{corner}_lon": lon, f"{corner}_lat": lat})
            for number, (quantity, field) in enumerate(fields.items(), 1):
                about = {key: value for key, value in field.items() if key != "data"}
                start = time - timedelta(minutes=5)
                about |= {"quantity": np.bytes_(quantity), "product": np.bytes_("COMP")}
                about |= {"startdate": np.bytes_(f"{start:%Y%m%d}"), "starttime": np.bytes_(f"{start:%H%M%S}")}
                about |= {"enddate": np.bytes_(f"{time:%Y%m%d}"), "endtime": np.bytes_(f"{time:%H%M%S}")}
                file.create_group(f"dataset{number}/what").attrs.update(about)
                file[f"dataset{number}/data1/data"] = field["data"][i]
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()


def write_geotiff(
    folder: Path,
    times: Sequence[datetime],
    bands: Sequence[np.ndarray],
    name: str = "{:%Y%m%d%H%M}_FIN-DBZ-3067-250M.tif",
    gain: float | None = None,
    offset: float = 0.0,
    nodata: float | None = None,
    tags: dict[str, str] | None = None,
    unit: str = "",
    south_up: bool = False,
) -> None:
    """`bands` are of the frames [T, 32, 40]."""
    import rasterio

    folder.mkdir(parents=True, exist_ok=True)
    dy = 250.0 if south_up else -250.0
    top = 7_000_000.0 - (ROWS * 250.0 if south_up else 0.0)
    transform = rasterio.Affine(250.0, 0, 300_000.0, 0, dy, top)
    for i, time in enumerate(times):
        options = {"driver": "GTiff", "height": ROWS, "width": COLUMNS, "count": len(bands), "compress": "deflate"}
        options |= {"dtype": bands[0].dtype, "crs": "EPSG:3067", "transform": transform, "nodata": nodata}
        with rasterio.open(folder / name.format(time), "w", **options) as image:
            for number, band in enumerate(bands, 1):
                image.write(band[i], number)
                image.set_band_unit(number, unit)
                image.set_band_description(number, f"band {number}")
            if gain is not None:
                image.scales, image.offsets = [gain] * len(bands), [offset] * len(bands)
            image.update_tags(**(tags or {}))


def write_radolan(
    folder: Path, times: Sequence[datetime], cells: Sequence[np.ndarray], product: str = "RY", packed: str = ""
) -> None:
    """`cells` are [rows, columns] as the file has them, south first: uint8 of RX, EX, WX, else uint16."""
    import bz2

    folder.mkdir(parents=True, exist_ok=True)
    for time, array in zip(times, cells, strict=True):
        rows, columns = array.shape
        middle = "PR E+00" if product in ("RX", "WX") else "PR E-02"
        text = f"{product}{time:%d%H%M}10000{time:%m%y}BY{array.nbytes + 120:7d}VS 3SW   2.28.1{middle}INT   5"
        text += f"GP{rows:4d}x{columns:4d}MS 70<asb,boo,ros,hnr,umd,pro,ess,fld,drs,neu,nhb,oft,eis,tur,isn,fbg,mem> "
        data = text.encode() + b"\x03" + array.astype(array.dtype.newbyteorder("<")).tobytes()
        pack: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[packed]
        (folder / f"raa01-{product.lower()}_10000-{time:%y%m%d%H%M}-dwd---bin{packed}").write_bytes(pack(data))


FMI_HEADER = {
    "composite_area": "FIN",
    "projection_name": "SUOMI1",
    "producttype": "CAPPI",
    "productname": "LOWEST",
    "param": "CorrectedReflectivity",
    "metersperpixel_x": "999.674053",
    "metersperpixel_y": "999.62859",
    "projection": "radar {",
    "type": "stereographic",
    "centrallongitude": "25",
    "centrallatitude": "90",
    "truelatitude": "60",
    "bottomleft": "18.600000 57.930000",
    "topright": "34.903000 69.005000",
    "missingval": "255",
}


def write_fmi_header(folder: Path, times: Sequence[datetime], frames: Sequence[np.ndarray], **header: str) -> None:
    """FMI's PGM with the comments that its files have (pysteps' tests list them)."""
    write_fmi(folder, times, frames)
    for path, time, frame in zip(sorted(folder.iterdir()), times, frames, strict=True):
        lines = [
            f"# {name} {value}" for name, value in {"obstime": f"{time:%Y%m%d%H%M}", **FMI_HEADER, **header}.items()
        ]
        text = "\n".join(["P5", *lines, f"{frame.shape[1]} {frame.shape[0]}", "255", ""])
        path.write_bytes(gzip.compress(text.encode() + frame.tobytes(), mtime=0))


def write_mrms(
    folder: Path, times: Sequence[datetime], values: Sequence[np.ndarray], product: str = "PrecipRate_00.00"
) -> None:
    """GRIB2 on a grid of 0.01 degrees, by eccodes: PrecipRate is 209/6/1 in NSSL's tables, reflectivity 209/10/0."""
    import eccodes

    folder.mkdir(parents=True, exist_ok=True)
    for time, field in zip(times, values, strict=True):
        handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        keys: dict[str, Any] = {"discipline": 209, "parameterCategory": 6 if product.startswith("Precip") else 10}
        keys |= {"parameterNumber": 1 if product.startswith("Precip") else 0, "Ni": COLUMNS, "Nj": ROWS}
        keys |= {"dataDate": int(f"{time:%Y%m%d}"), "dataTime": int(f"{time:%H%M}"), "bitsPerValue": 24}
        keys |= {"latitudeOfFirstGridPointInDegrees": 40.0, "latitudeOfLastGridPointInDegrees": 40 - 0.01 * (ROWS - 1)}
        keys |= {"longitudeOfFirstGridPointInDegrees": 260.0}
        keys |= {"longitudeOfLastGridPointInDegrees": 260 + 0.01 * (COLUMNS - 1)}
        keys |= {"iDirectionIncrementInDegrees": 0.01, "jDirectionIncrementInDegrees": 0.01}
        for key, value in keys.items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, field.astype(np.float64).ravel())
        (folder / f"{product}_{time:%Y%m%d-%H%M%S}.grib2").write_bytes(eccodes.codes_get_message(handle))
        eccodes.codes_release(handle)


def wet(count: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Frames uint8 [count, rows, columns] of 40..140, nowhere equal to their neighbours in time."""
    place = np.add.outer(np.arange(rows), np.arange(columns))
    return np.stack([40 + (place + 3 * i) % 100 for i in range(count)]).astype(np.uint8)


# What every reader's archive says of its corners: upper left (x, y), and lower right, in the CRS named.
Place = tuple[str, tuple[float, float], tuple[float, float]]


def _fmi_place() -> Place:
    import pyproj

    crs = "+proj=stere +lon_0=25 +lat_0=90 +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920"
    transform = pyproj.Transformer.from_crs(pyproj.CRS(crs).geodetic_crs, crs, always_xy=True)
    (left, bottom), (right, top) = transform.transform(18.6, 57.93), transform.transform(34.903, 69.005)
    return crs, (left, top), (right, bottom)


def place_archive(folder: Path, reader: str, count: int = 8) -> Place:
    """An archive of `count` frames that knows its grid, and where its corners lie."""
    times, frames = radar_times(count), wet(count)
    if reader == "meteoswiss":
        for time, frame in zip(times, wet(count, 640, 710), strict=True):
            write_gif(folder, time, frame)
        return "EPSG:21781", (255e3, 480e3), (965e3, -160e3)
    if reader == "knmi":
        write_knmi(folder, times, frames)
        _place_knmi(folder)
        return STEREO.replace("6378.137", "6378137").replace("6356.752", "6356752"), (0, -3650e3), (40e3, -3682e3)
    if reader == "bom":
        write_bom(folder, times, frames, 300)
        _place_bom(folder)
        crs = "+proj=aea +lat_1=-18 +lat_2=-36 +lon_0=144.752 +lat_0=-37.852 +a=6378137 +rf=298.2572221"
        return crs, (-128.25e3, 128.25e3), (-108.25e3, 112.25e3)
    if reader == "fmi":
        write_fmi_header(folder, times, list(frames))
        return _fmi_place()
    if reader == "odim":
        write_odim(folder, times, {"DBZH": {"data": frames, "gain": 0.5, "offset": -32.0, "nodata": 255.0}})
        return LAEA, (0, 0), (80e3, -64e3)
    if reader == "geotiff":
        write_geotiff(folder, times, [frames], gain=0.5, offset=-32.0, nodata=255)
        return "EPSG:3067", (300_000, 7_000_000), (310_000, 6_992_000)
    if reader == "radolan":
        write_radolan(folder, times, wet(count, 900, 900), "RX")
        crs = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +R=6370040"
        # The corners that DWD's description of composites gives, in kilometres.
        return crs, (-523.4622e3, -3758.645e3), (376.5378e3, -4658.645e3)
    if reader == "mrms":
        write_mrms(folder, times, frames / 10.0)
        return "EPSG:4326", (-100.005, 40.005), (-99.605, 39.685)
    assert reader == "cf"
    write_cf(folder / "a.nc", times, frames / 10.0, "mm/h")
    _place_cf(folder / "a.nc")
    return LAEA, (0, 0), (80e3, -64e3)


PLACED = ("meteoswiss", "knmi", "bom", "fmi", "odim", "geotiff", "radolan", "mrms", "cf")


def _place_knmi(folder: Path) -> None:
    import h5py

    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            about = file.create_group("geographic").attrs
            about.update({"geo_number_columns": [COLUMNS], "geo_number_rows": [ROWS], "geo_column_offset": [0.0]})
            about.update({"geo_row_offset": [3650.0], "geo_pixel_size_x": [1.0], "geo_pixel_size_y": [-1.0]})
            file.create_group("geographic/map_projection").attrs["projection_proj4_params"] = np.bytes_(STEREO)


def _place_bom(folder: Path) -> None:
    import h5py

    mapping = {"standard_parallel": np.array([-18.0, -36.0]), "longitude_of_central_meridian": [144.752]}
    mapping |= {"latitude_of_projection_origin": [-37.852], "semi_major_axis": [6378137.0]}
    mapping |= {"inverse_flattening": [298.2572221], "false_easting": [0.0], "false_northing": [0.0]}
    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            file["x"], file["y"] = -128 + 0.5 * np.arange(COLUMNS), 128 - 0.5 * np.arange(ROWS)
            file["x"].attrs["units"] = file["y"].attrs["units"] = np.bytes_("km")
            file["proj"] = np.int8(0)
            file["proj"].attrs["grid_mapping_name"] = np.bytes_("albers_conical_equal_area")
            file["proj"].attrs.update(mapping)


def _place_cf(path: Path) -> None:
    import pyproj
    import xarray

    with xarray.open_dataset(path) as data:
        data = data.load()
    data = data.assign_coords(x=1000 + 2000.0 * np.arange(COLUMNS), y=-1000 - 2000.0 * np.arange(ROWS))
    data["x"].attrs["units"] = data["y"].attrs["units"] = "m"
    data["rain"].attrs["grid_mapping"] = "crs"
    data["crs"] = ((), 0, pyproj.CRS(LAEA).to_cf())
    path.unlink()
    data.to_netcdf(path, engine="h5netcdf")


def need_reader(reader: str) -> None:
    """Skip where the package that writes the archive of a reader is absent."""
    pytest.importorskip("pyproj")  # before eccodes: see shards/sources/radar_grib.py
    pytest.importorskip({"mrms": "eccodes", "geotiff": "rasterio", "cf": "xarray"}.get(reader, "h5py"))


def physical(source, event) -> np.ndarray:
    return source.describe().scale.to_physical(source.read(event).frames)[:, 0]


def dbz(rate: np.ndarray) -> np.ndarray:
    """Independent of the readers: Z = 200 R^1.6 within 0..63.5 dBZ."""
    return np.clip(10 * np.log10(np.maximum(200 * np.asarray(rate, np.float64) ** 1.6, 1.0)), 0, 63.5)


def only_event(source):
    (event,) = [event for events in source.plan().splits.values() for event in events]
    return event


ONE_SPLIT = ("--val-fraction", "0", "--test-fraction", "0", "--crop", "none")
