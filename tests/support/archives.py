"""Small archives in the formats of the real ones. Every frame carries its number, so that a test can tell which frames
an event holds: sixteen bits in blocks of 4x4 pixels, in the upper left 16x16.
"""

import argparse
import gzip
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources import SOURCES

SIDE = 16


def numbered(number: int, low: int = 20, high: int = 200, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A frame uint8 [height, width] that carries `number`."""
    bits = np.array([(number >> bit) & 1 for bit in range(16)], dtype=np.uint8).reshape(4, 4)
    frame = np.full(size, low, dtype=np.uint8)
    frame[:SIDE, :SIDE] = np.where(np.kron(bits, np.ones((4, 4), np.uint8)) == 1, high, low)
    return frame


def numbers_of(frames: np.ndarray, threshold: int) -> list[int]:
    """The numbers of frames uint8 [L, C, H, W]."""
    bits = frames[:, 0, 2:SIDE:4, 2:SIDE:4].reshape(len(frames), 16) > threshold
    return [int(sum(1 << bit for bit in range(16) if row[bit])) for row in bits]


def save(path: Path, pixels: np.ndarray) -> Path:
    """An image in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def image_sequence(
    folder: Path, count: int, first: int = 0, pattern: str = "{:04d}.png", skip: tuple[int, ...] = ()
) -> None:
    """Images that carry their numbers, named by `pattern`."""
    for i in range(count):
        if i not in skip:
            save(folder / pattern.format(i), numbered(first + i))


def write_video(path: Path, frames: Iterable[np.ndarray], rate: int = 25, codec: str = "ffv1") -> Path:
    """Grey frames uint8 [height, width], lossless unless the codec is another."""
    import av

    frames = list(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "gray" if codec == "ffv1" else "yuv420p"
        stream.gop_size = 7
        stream.height, stream.width = frames[0].shape
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_kth(folder: Path, clips: dict[str, Sequence[tuple[int, int]]], frames: int, first: int = 0) -> set[int]:
    """Clips of `frames` frames each and a table of their ranges; the numbers of the frames in some range."""
    lines, inside, number = ["A preamble in prose, person by person.", ""], set(), first
    for name, ranges in clips.items():
        write_video(folder / f"{name}_uncomp.avi", [numbered(number + i) for i in range(frames)])
        lines.append(f"{name}\t\tframes\t{', '.join(f'{a}-{b}' for a, b in ranges)}")
        inside |= {number + i - 1 for a, b in ranges for i in range(a, b + 1)}
        number += frames
    (folder / "00sequences.txt").write_text("\n".join(lines) + "\n")
    return inside


def radar_times(count: int, minutes: int = 5, skip: Sequence[int] = ()) -> list[datetime]:
    return [datetime(2017, 5, 30, 22) + timedelta(minutes=minutes * i) for i in range(count) if i not in skip]


def write_gifs(folder: Path, times: Sequence[datetime]) -> set[int]:
    for number, time in enumerate(times):
        write_gif(folder, time, numbered(number, 60, 160))
    return set(range(len(times)))


def write_knmi(folder: Path, times: Sequence[datetime], raw: Sequence[np.ndarray], formula: str = "GEO=0.01*PV+0.0"):
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for time, pixels in zip(times, raw, strict=True):
        with h5py.File(folder / f"RAD_NL25_RAP_5min_{time:%Y%m%d%H%M}.h5", "w") as file:
            file["image1/image_data"] = pixels.astype(np.uint16)
            file["image1"].attrs["image_geo_parameter"] = np.bytes_(b"ACCUMULATED_PRECIPITATION_[MM]")
            attributes = file.create_group("image1/calibration").attrs
            attributes["calibration_formulas"] = np.bytes_(formula.encode())
            attributes["calibration_missing_data"] = np.array([65535], np.int32)
            attributes["calibration_out_of_image"] = np.array([65535], np.int32)


def write_bom(folder: Path, times: Sequence[datetime], raw: Sequence[np.ndarray], seconds: int, fill: int = -1):
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for time, pixels in zip(times, raw, strict=True):
        with h5py.File(folder / f"2_{time:%Y%m%d_%H%M%S}.prcp-c10.nc", "w") as file:
            file["precipitation"] = pixels.astype(np.int16)
            file["precipitation"].attrs.update(
                {"_FillValue": np.array([fill], np.int16), "scale_factor": np.array([0.05]), "add_offset": [0.0]}
            )
            end = round((time - datetime(1970, 1, 1)).total_seconds())
            file["valid_time"], file["start_time"] = np.int64(end), np.int64(end - seconds)


def write_fmi(folder: Path, times: Sequence[datetime], frames: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for time, frame in zip(times, frames, strict=True):
        header = f"P5\n# obstime {time:%Y%m%d%H%M}\n# missingval 255\n{frame.shape[1]} {frame.shape[0]}\n255\n"
        data = gzip.compress(header.encode() + frame.tobytes(), mtime=0)
        (folder / f"{time:%Y%m%d%H%M}_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz").write_bytes(data)


def write_hko7(folder: Path, times: Sequence[datetime], mask: np.ndarray | None = None) -> set[int]:
    for number, time in enumerate(times):
        below = f"{time:%Y/%m/%d}/RAD{time:%y%m%d%H%M}00"
        frame = numbered(number)
        save(folder / "radarPNG" / f"{below}.png", frame)
        if mask is not None:
            path = folder / "radarPNG_mask" / f"{below}.mask"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(zlib.compress(mask.astype(np.uint8).tobytes()))
    return set(range(len(times)))


SEVIR_COLUMNS = (
    "id,file_name,file_index,img_type,time_utc,minute_offsets,episode_id,event_id,event_type,llcrnrlat,llcrnrlon,"
    "urcrnrlat,urcrnrlon,proj,size_x,size_y,height_m,width_m,data_min,data_max,pct_missing"
)
SEVIR_FILE = "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5"


def sevir_line(id: str, index: int, time: str, missing: object = 0.0, file: str = SEVIR_FILE, first: int = -120) -> str:
    offsets = ":".join(str(first + 5 * i) for i in range(49))
    return f"{id},{file},{index},vil,{time},{offsets},,,,,,,,+proj=laea,384,384,1,1,0,254,{missing}"


def write_sevir(
    folder: Path, times: Sequence[datetime], frames: int = 49, lines: Sequence[str] | None = None
) -> set[int]:
    """Events of `frames` numbered frames, south first; SEVIR-LR (25 frames) has no ids."""
    import h5py

    path = folder / "data" / SEVIR_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    events = np.array([[numbered(49 * i + t)[::-1] for t in range(frames)] for i in range(len(times))])
    with h5py.File(path, "w") as file:
        file["vil"] = events.transpose(0, 2, 3, 1)
        if frames == 49:
            file["id"] = np.array([f"S{i:06d}" for i in range(len(times))], dtype="S")
    if lines is None:
        lines = [sevir_line(f"S{i:06d}", i, f"{time:%Y-%m-%d %H:%M:%S}") for i, time in enumerate(times)]
    (folder / "CATALOG.csv").write_text("\n".join([SEVIR_COLUMNS, *lines]) + "\n")
    return {49 * i + t for i in range(len(times)) for t in range(frames)}


def write_cikm(folder: Path, counts: dict[str, int]) -> set[int]:
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for name, count in counts.items():
        with (folder / f"{name}.txt").open("w") as file:
            for line in range(count):
                frames = np.full((15, 4, 101, 101), -1, dtype=np.int64)
                for time in range(15):
                    frames[time, 0] = numbered(number, size=(101, 101))
                    number += 1
                file.write(f"{name}_{line},{line / 2},{' '.join(map(str, frames.ravel().tolist()))}\n")
    return set(range(number))


def write_cf(
    path: Path, times: Sequence[datetime], values: np.ndarray, unit: str, name: str = "rain", south: bool = False
):
    """A zarr store or a netCDF file with a variable [time, y, x] packed as CF has it."""
    import xarray

    y = np.arange(values.shape[1], dtype=np.float32)
    array = xarray.DataArray(
        values.astype(np.float32),
        dims=("time", "y", "x"),
        coords={"time": np.array(times, dtype="datetime64[ns]"), "y": y if south else y[::-1]},
        attrs={"units": unit, "standard_name": "rainfall_rate"},
    )
    attributes = {"license": "CC BY 4.0", "institution": "A weather service", "title": "A radar archive"}
    data = xarray.Dataset({name: array}, attrs=attributes)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=2)
    else:
        data.to_netcdf(path, engine="h5netcdf")


def write_clips(path: Path, sequences: int, length: int, first: int = 0, scale: float = 1.0) -> set[int]:
    """PredRNN's .npz: inputs and targets are halves of a sequence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.array([numbered(first + i) for i in range(sequences * length)])[:, None]
    starts = np.arange(sequences) * length
    clips = np.array([[(s, length // 2) for s in starts], [(s + length // 2, length - length // 2) for s in starts]])
    raw = frames if scale == 1.0 else (frames * scale).astype(np.float32)
    np.savez_compressed(path, clips=clips.astype(np.int32), input_raw_data=raw)
    return set(range(first, first + sequences * length))


def write_gif(folder: Path, time: datetime, indexes: np.ndarray) -> Path:
    """A MeteoSwiss-like GIF: palette indexes under a name that tells the time."""
    path = folder / f"{time:%Y%m%d}" / f"AQC{time:%y%j%H%M}F_00005.801.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indexes)
    image.putpalette([shade for i in range(256) for shade in (i, 255 - i, 7)])
    image.save(path, optimize=False)
    return path


def write_radar(folder: Path, start: datetime, frames: int, skip: tuple[int, ...] = (), size=(24, 32)) -> list[Path]:
    """Frames 5 minutes apart, those of `skip` left out; every palette index occurs."""
    paths = []
    for i in range(frames):
        if i not in skip:
            pixels = (np.arange(size[0] * size[1]) + 7 * i).astype(np.uint8).reshape(size)
            paths.append(write_gif(folder, start + timedelta(minutes=5 * i), pixels))
    return paths


def build(name: str, folder, *options: str):
    parser = argparse.ArgumentParser()
    if SOURCES[name].input_help is not None:
        parser.add_argument("input")
        options = (str(folder), *options)
    SOURCES[name].add_arguments(parser)
    return SOURCES[name].build(parser.parse_args(options))
