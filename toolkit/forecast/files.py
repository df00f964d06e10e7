"""A forecast as CF netCDF or Zarr, written whole or not at all.

Dimensions: realization (of an ensemble), time (valid times; `lead` where the archive has no clock), channel (where
there are several), y, x. Coordinates: forecast_reference_time, lead_time, and the archive's own y and x with their grid
mapping, where it has them. A pixel that was never observed is NaN. Attributes say which model, run, step and version
made it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.files import flush
from shards.georeference import MAPPING
from shards.sources.inputs import need
from toolkit import __version__
from toolkit.errors import ConfigError
from toolkit.forecast.make import Forecast
from toolkit.rundir.heartbeat import alive

if TYPE_CHECKING:
    import xarray

SUFFIXES = (".nc", ".zarr")
STANDARD_NAMES = {"radar reflectivity": "equivalent_reflectivity_factor"}


def check_output(path: Path, overwrite: bool = False) -> None:
    """Before anything is computed: the suffix, what writes it, and that nothing is lost.

    Raises:
        ConfigError: another suffix, or something is there already.
        ShardError: xarray or h5netcdf isn't installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output {path}: ends in {path.suffix or 'nothing'}, takes {' or '.join(SUFFIXES)}")
    need("xarray", "cf", "writing forecasts")
    if path.suffix == ".nc":
        need("h5netcdf", "cf", "writing netCDF")
    else:
        import shards.zarr_store  # noqa: F401  refused where zarr 3 is missing
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"--output {path}: exists; choose another name, or --overwrite it")


def write_forecast(forecast: Forecast, path: Path) -> None:
    """Write `path` under another name, and rename it when it is whole and on the disk. What was there is replaced."""
    data = as_dataset(forecast)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    writer = f"{socket.gethostname()}-{os.getpid()}"
    temporary, old = (path.with_name(f".{path.name}.{writer}.{kind}") for kind in ("tmp", "old"))
    encoding = _encoding(data)
    try:
        if path.suffix == ".nc":
            encoding[str(next(iter(data.data_vars)))] |= {"zlib": True, "complevel": 4, "shuffle": True}
            data.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
        else:
            with warnings.catch_warnings():
                # zarr v3's text doesn't have consolidated metadata yet; xarray looks for them, and warns without.
                warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
                data.to_zarr(temporary, zarr_format=3, consolidated=True, encoding=encoding)
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            flush(file)
        if path.is_dir():  # a folder can't be renamed onto another
            path.rename(old)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error}): choose another --output") from None
    finally:
        for rest in (temporary, old):
            _remove(rest)


def _encoding(data: xarray.Dataset) -> dict[str, dict[str, Any]]:
    """NaN is missing in the forecast; coordinates have nothing missing, and so no fill value (CF 2.5.1)."""
    encoding: dict[str, dict[str, Any]] = {str(name): {"_FillValue": None} for name in data.variables}
    for name in data.data_vars:
        if data[name].dtype.kind == "f":
            encoding[str(name)]["_FillValue"] = np.float32(np.nan)
    for name in data.variables:
        if data[name].dtype.kind == "M":
            encoding[str(name)] |= {"dtype": "int64", "units": "seconds since 1970-01-01 00:00:00"}
    return encoding


def clear_leftovers(folder: Path) -> None:
    """Remove what forecasts were writing there when they were killed; those of other machines may still be alive."""
    for rest in folder.glob(".*.*"):
        made = re.fullmatch(r"\.(?P<name>.+\.(?:nc|zarr))\.(?P<host>.+)-(?P<pid>\d+)\.(?P<kind>tmp|old)", rest.name)
        if made is None or alive(made["host"], int(made["pid"])) is not False:
            continue
        if made["kind"] == "old" and not (folder / made["name"]).exists():  # killed between the two renames
            rest.rename(folder / made["name"])
        else:
            _remove(rest)


def as_dataset(forecast: Forecast) -> xarray.Dataset:
    """The forecast as an xarray Dataset of one variable; see the module's docstring.

    Raises:
        ShardError: xarray isn't installed.
    """
    xarray: Any = need("xarray", "cf", "writing forecasts")
    values, dims = _trimmed(forecast)
    scale, trained = forecast.scale, forecast.trained
    attributes = {"long_name": f"forecast of {scale.quantity}", "units": scale.physical_unit}
    if scale.quantity in STANDARD_NAMES:
        attributes["standard_name"] = STANDARD_NAMES[scale.quantity]
    variables: dict[str, Any] = {}
    if forecast.grid is not None:
        attributes["grid_mapping"] = MAPPING
        variables[MAPPING] = ((), np.int32(0), forecast.grid.mapping_attributes())
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
            "history": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} written by launch/predict.py",
        },
    )


def _trimmed(forecast: Forecast) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """The values without axes of length one that say nothing, and the names of the others."""
    values = forecast.values
    dims = ["realization", "time" if forecast.reference is not None else "lead", "channel", "y", "x"]
    for axis, name in ((2, "channel"), (0, "realization")):
        if values.shape[axis] == 1:
            values = values.squeeze(axis)
            dims.remove(name)
    return values, tuple(dims)


def _times(forecast: Forecast) -> dict[str, Any]:
    """Valid times, the reference time and lead times; lead times in steps where there is no clock."""
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
    return {"realization": ("realization", np.arange(count, dtype=np.int32), {"standard_name": "realization"})}


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
