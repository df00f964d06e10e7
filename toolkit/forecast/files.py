"""Write a forecast as CF netCDF or Zarr, atomically.

Dimensions: realization (ensembles), time (valid times; `lead` if the archive has no time stamps), channel (if there are
several), y, x. Coordinates: forecast_reference_time, lead_time, and y and x of the archive with their grid mapping, if
it has them. A pixel without an observation in the context is NaN. Attributes record model, run, step and version.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.sources.inputs import need
from toolkit import __version__
from toolkit.atomic import clear_leftovers, replacing_tree
from toolkit.errors import ConfigError
from toolkit.forecast.make import Forecast

if TYPE_CHECKING:
    import xarray

SUFFIXES = (".nc", ".zarr")
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
        import shards.zarr_store  # noqa: F401  raises an error without zarr 3
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"--out {path}: exists; choose another name, or pass --overwrite")


def write_forecast(forecast: Forecast, path: Path) -> None:
    """Write to a temporary name, flush it to disk, and rename it to `path`; an existing file is replaced."""
    data = as_dataset(forecast)
    clear_leftovers(path.parent)
    name = str(next(iter(data.data_vars)))
    try:
        with replacing_tree(path) as temporary:
            if path.suffix == ".nc":
                packed = {"zlib": True, "complevel": 4, "shuffle": True, "_FillValue": np.float32(np.nan)}
                data.to_netcdf(temporary, engine="h5netcdf", encoding={name: packed})
            else:
                data.to_zarr(
                    temporary, zarr_format=3, consolidated=False, encoding={name: {"_FillValue": np.float32(np.nan)}}
                )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}): choose another --out") from None


def as_dataset(forecast: Forecast) -> xarray.Dataset:
    """Return the forecast as an xarray Dataset with one variable; see the docstring of the module.

    Raises:
        ShardError: xarray is not installed.
    """
    xarray: Any = need("xarray", "cf", "writing forecasts")
    values, dims = _trimmed(forecast)
    scale, trained = forecast.scale, forecast.trained
    attributes = {"long_name": f"forecast of {scale.quantity}", "units": scale.physical_unit}
    if scale.quantity in STANDARD_NAMES:
        attributes["standard_name"] = STANDARD_NAMES[scale.quantity]
    variables: dict[str, Any] = {}
    if forecast.grid is not None and forecast.grid.projection:
        attributes["grid_mapping"] = "projection"
        variables["projection"] = ((), np.int32(0), dict(forecast.grid.projection))
    name = re.sub(r"\W+", "_", scale.quantity).strip("_").lower() or "forecast"
    return xarray.Dataset(
        {name: (dims, values, attributes), **variables},
        coords={**_times(forecast), **_axes(forecast), **_members(forecast)},
        attrs={
            "Conventions": "CF-1.10",
            "title": f"Forecast of {scale.quantity}",
            "source": f"ModeRNN toolkit {__version__}: {trained.title}",
            "model": trained.config.model.name,
            "run": trained.config.name,
            "run_hash": trained.config.hash8(),
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
    values = forecast.values
    dims = ["realization", "time" if forecast.reference is not None else "lead", "channel", "y", "x"]
    for axis, name in ((2, "channel"), (0, "realization")):
        if values.shape[axis] == 1:
            values = values.squeeze(axis)
            dims.remove(name)
    return values, tuple(dims)


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
    degrees = grid.units.startswith("degree")
    names = ("longitude", "latitude") if degrees else ("projection_x_coordinate", "projection_y_coordinate")
    units = ("degrees_east", "degrees_north") if degrees else (grid.units, grid.units)
    return {
        axis: (axis, values, {"standard_name": name, "units": unit})
        for axis, values, name, unit in zip(("x", "y"), (grid.x, grid.y), names, units, strict=True)
    }


def _members(forecast: Forecast) -> dict[str, Any]:
    count = forecast.values.shape[0]
    if count == 1:
        return {}
    return {"realization": ("realization", np.arange(count, dtype=np.int32), {"standard_name": "realization"})}
