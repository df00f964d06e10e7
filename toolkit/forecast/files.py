"""Write a forecast as CF netCDF or Zarr, atomically.

Dimensions: realization (ensembles), time (valid times; `lead` if the archive has no time stamps), channel (if there are
several), y, x. Coordinates: forecast_reference_time, lead_time, and y and x of the archive with their grid mapping, if
it has them. Products (products.py) are further variables: `exceedance_probability` [threshold, time, ...], and
`accumulation`, whose time `accumulation_time` has bounds. Missing pixels (no observation in the context, or inflow) are
NaN. Attributes record model, run, step and version.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.georeference import MAPPING
from shards.sources.inputs import need
from toolkit import __version__
from toolkit.atomic import FileWriteError, clear_leftovers, replacing_tree
from toolkit.errors import ConfigError
from toolkit.forecast.make import Forecast
from toolkit.forecast.products import DRY, Products, accumulation, probability
from toolkit.wording import count, first_line

if TYPE_CHECKING:
    import xarray

SUFFIXES = (".nc", ".zarr")
NO_PRODUCTS = Products()
ACCUMULATED = "accumulation_time"
SQUEEZED = ("realization", "channel")
STANDARD_NAMES = {"radar reflectivity": "equivalent_reflectivity_factor"}


def check_output(path: Path, overwrite: bool = False) -> None:
    """Check suffix, required packages and that no file would be overwritten, before anything is computed.

    Raises:
        ConfigError: an unknown suffix, or the file exists.
        ShardError: xarray or h5netcdf is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out {path}: the suffix is {path.suffix or 'missing'}, use {' or '.join(SUFFIXES)}")
    need("xarray", "cf", "writing forecasts")
    if path.suffix == ".nc":
        need("h5netcdf", "cf", "writing netCDF")
    else:
        import shards.zarr_writer  # noqa: F401  raises an error without zarr 3
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"--out {path}: exists; choose another name, or pass --overwrite")


def write_forecast(forecast: Forecast, path: Path, products: Products = NO_PRODUCTS) -> None:
    """Write to a temporary name, flush it to disk, and rename it to `path`; an existing file is replaced."""
    data = as_dataset(forecast, products)
    clear_leftovers(path.parent)
    encoding = _encoding(data)
    try:
        with replacing_tree(path) as temporary:
            if path.suffix == ".nc":
                for name in (name for name in data.data_vars if data[name].dtype.kind == "f"):
                    encoding[str(name)] |= {"zlib": True, "complevel": 4, "shuffle": True}
                data.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
            else:
                with warnings.catch_warnings():
                    # zarr v3's text doesn't have consolidated metadata yet; xarray looks for them, and warns without.
                    warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
                    data.to_zarr(temporary, zarr_format=3, consolidated=True, encoding=encoding)
    except RuntimeError as error:  # HDF5's own, where a disk fills up while it closes a file
        raise FileWriteError(OSError(0, f"{first_line(error)} ({data.nbytes:,} bytes of values)"), path) from None


def _encoding(data: xarray.Dataset) -> dict[str, dict[str, Any]]:
    """Return the encodings: NaN is missing in the forecast; coordinates have no missing values, and so no fill value
    (CF 2.5.1).
    """
    encoding: dict[str, dict[str, Any]] = {str(name): {"_FillValue": None} for name in data.variables}
    for name in data.data_vars:
        if data[name].dtype.kind == "f":
            encoding[str(name)]["_FillValue"] = np.float32(np.nan)
    for name in data.variables:
        if data[name].dtype.kind == "M":
            encoding[str(name)] |= {"dtype": "int64", "units": "seconds since 1970-01-01 00:00:00"}
    return encoding


def as_dataset(forecast: Forecast, products: Products = NO_PRODUCTS) -> xarray.Dataset:
    """Return the forecast and its products as an xarray Dataset; see the docstring of the module.

    Raises:
        ConfigError: see `Products.check`.
        ShardError: xarray is not installed.
    """
    xarray: Any = need("xarray", "cf", "writing forecasts")
    values, dims = _trimmed(forecast)
    scale, trained = forecast.scale, forecast.trained
    attributes = {"long_name": f"forecast of {scale.quantity}", "units": scale.physical_unit}
    if scale.quantity in STANDARD_NAMES:
        attributes["standard_name"] = STANDARD_NAMES[scale.quantity]
    names = trained.target_names
    if len(names) == 1:
        attributes["channel"] = names[0]
    if forecast.inflow.any():
        attributes["comment"] = "missing where the motion leads back to outside of the observed area"
    variables: dict[str, Any] = {}
    channels = {"channel": ("channel", np.array(names), {"long_name": "channel"})} if len(names) > 1 else {}
    name = re.sub(r"\W+", "_", scale.quantity).strip("_").lower() or "forecast"
    coordinates = {**_times(forecast), **_axes(forecast), **_members(forecast), **channels}
    products.check(scale, forecast.step_seconds)
    fields = {name: (dims, values, attributes)}
    for wanted, make in ((products.thresholds, _probability), (products.accumulation, _accumulation)):
        if wanted:
            made, own = make(forecast, products)
            fields, coordinates = fields | made, coordinates | own
    if forecast.grid is not None:
        variables[MAPPING] = ((), np.int32(0), forecast.grid.mapping_attributes())
        for field_dims, _, described in fields.values():
            described |= {"grid_mapping": MAPPING} if "x" in field_dims else {}
    return xarray.Dataset(
        {**fields, **variables},
        coords=coordinates,
        attrs={
            "Conventions": "CF-1.10",
            "title": f"Forecast of {scale.quantity}",
            "source": f"ModeRNN toolkit {__version__}: {trained.title}",
            "model": trained.config.model.name,
            "run": trained.config.name,
            "run_hash": trained.run_hash,
            "training_step": trained.step,
            "toolkit_version": __version__,
            "observations": forecast.source,
            "observations_licence": forecast.licence,
            "observations_used": len(forecast.context),
            "history": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} written by modernn-toolkit",
        },
    )


def _trimmed(forecast: Forecast) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return the values without singleton channel and member axes, and the names of the dimensions."""
    return _squeezed(forecast.values, ("realization", _time_axis(forecast), "channel", "y", "x"))


def _time_axis(forecast: Forecast) -> str:
    return "lead" if forecast.reference is None else "time"


def _squeezed(values: np.ndarray[Any, Any], dims: Sequence[str]) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    alone = [axis for axis, name in enumerate(dims) if name in SQUEEZED and values.shape[axis] == 1]
    return values.squeeze(tuple(alone)), tuple(name for axis, name in enumerate(dims) if axis not in alone)


def _probability(forecast: Forecast, products: Products) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variable of the probabilities and its coordinate, by name."""
    scale, members = forecast.scale, forecast.values.shape[0]
    side = products.side(members)
    found = np.stack([probability(forecast, threshold, side) for threshold in products.thresholds])
    values, dims = _squeezed(found, ("threshold", _time_axis(forecast), "channel", "y", "x"))
    ways = [f" over {members} members"] if members > 1 else []
    ways += [f" over the {side} x {side} pixels around each pixel"] if side > 1 else []
    attributes = {
        "long_name": f"probability that {scale.quantity} reaches the threshold",
        "units": "1",
        "comment": "share of values at or above the threshold" + " and".join(ways),
    }
    if side > 1:
        attributes["cell_methods"] = "area: mean"
    about = {"long_name": f"threshold of {scale.quantity}", "units": scale.unit}
    if scale.quantity in STANDARD_NAMES:
        about["standard_name"] = STANDARD_NAMES[scale.quantity]
    coordinates = {"threshold": ("threshold", np.array(products.thresholds), about)}
    return {"exceedance_probability": (dims, values, attributes)}, coordinates


def _accumulation(forecast: Forecast, products: Products) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variable of the accumulation with the bounds of its time, and this time, by name."""
    assert forecast.reference is not None
    total = accumulation(forecast, products.zr)[:, None]
    values, dims = _squeezed(total, ("realization", ACCUMULATED, "channel", "y", "x"))
    a, b = products.zr
    relation = f" from Z = {a:g} R^{b:g}" if forecast.scale.physical_unit == "dBZ" else ""
    frames = count(forecast.values.shape[1], "forecast frame")
    attributes = {
        "standard_name": "lwe_thickness_of_precipitation_amount",
        "long_name": "accumulated precipitation",
        "units": "mm",
        "cell_methods": f"{ACCUMULATED}: sum",
        "comment": f"sum of rain rate{relation} x time step over {frames}; rates below {DRY:g} mm/h count as 0",
    }
    ends = np.array([forecast.reference, forecast.valid()[-1]], dtype="datetime64[ns]")
    about = {"standard_name": "time", "long_name": "end of the accumulation", "bounds": f"{ACCUMULATED}_bounds"}
    bounds: dict[str, Any] = {f"{ACCUMULATED}_bounds": ((ACCUMULATED, "bounds"), ends[None], {})}
    return {"accumulation": (dims, values, attributes), **bounds}, {ACCUMULATED: (ACCUMULATED, ends[1:], about)}


def _times(forecast: Forecast) -> dict[str, Any]:
    """Return valid times, reference time and lead times; lead times in frames if there are no time stamps."""
    count = forecast.values.shape[1]
    steps = np.arange(1, count + 1, dtype=np.int32)
    if forecast.reference is None or forecast.step_seconds is None:
        return {"lead": ("lead", steps, {"long_name": "frames after the last observation", "units": "1"})}
    valid = np.array(forecast.valid(), dtype="datetime64[ns]")
    reference = np.datetime64(forecast.reference, "ns")
    lead = steps * forecast.step_seconds
    return {
        "time": ("time", valid, {"standard_name": "time", "long_name": "valid time"}),
        "forecast_reference_time": ((), reference, {"standard_name": "forecast_reference_time"}),
        "lead_time": ("time", lead, {"standard_name": "forecast_period", "units": "s"}),
    }


def _axes(forecast: Forecast) -> dict[str, Any]:
    grid = forecast.grid
    if grid is None:
        return {}
    return {axis: (axis, values, grid.axis_attributes(axis)) for axis, values in (("x", grid.x), ("y", grid.y))}


def _members(forecast: Forecast) -> dict[str, Any]:
    count = forecast.values.shape[0]
    if count == 1:
        return {}
    return {
        "realization": ("realization", np.arange(count, dtype=np.int32), {"standard_name": "realization", "units": "1"})
    }
