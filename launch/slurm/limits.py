"""What a cluster's settings and this machine mean for a job, found out before it is submitted."""

from __future__ import annotations

import re
from pathlib import Path

from launch.slurm import client
from launch.slurm.client import SlurmError
from launch.slurm.profile import Profile

MARGIN_S = 60  # Slurm may signal a minute early
FOREVER = ("UNLIMITED", "INFINITE", "NONE")
OWN_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs")


def seconds_of(time: str) -> int | None:
    """Return a time as sbatch has it (minutes, HH:MM:SS, D-HH:MM:SS) in seconds; None: no limit."""
    if time in FOREVER:
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], parts[1] if len(parts) > 1 else 0
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def check_time(profile: Profile) -> None:
    """Check that a job has time for a step before it is asked to stop.

    Raises:
        SlurmError: the limit of a start is not longer than `signal_s` and the minute by which Slurm may be early.
    """
    name, limit = "`time` in the profile", profile.time
    if limit is None:
        partition = _partition(profile.partition)
        limit = partition.get("DefaultTime", "NONE")
        if limit == "NONE":
            limit = partition.get("MaxTime", "UNLIMITED")
        name = f"the time that partition {partition.get('PartitionName', '?')} gives a job that names none"
    seconds = seconds_of(limit)
    if seconds is not None and 0 < seconds < profile.signal_s + MARGIN_S:
        raise SlurmError(
            f"{name} is {limit} ({seconds} s), and `signal_s` is {profile.signal_s}: a job would be asked to stop "
            f"{profile.signal_s} s before its end, or up to {MARGIN_S} s earlier still, before its first step. Give "
            f"more time (--time {(profile.signal_s + MARGIN_S) // 60 + 10}), or lower `signal_s`"
        )


def _partition(name: str | None) -> dict[str, str]:
    """Return the settings of a partition, by default the cluster's default one; empty where it isn't known."""
    command = ["scontrol", "--oneliner", "show", "partition", *([name] if name else [])]
    try:
        lines = client.call(*command).splitlines()
    except SlurmError:
        return {}  # sbatch will say what is wrong with the name
    for line in lines:
        settings = dict(re.findall(r"(\w+)=(\S*)", line))
        if name or settings.get("Default") == "YES":
            return settings
    return {}


def own_file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Return the type of a path's file system if it is in memory or on a local disk: not shared, unless this
    machine serves it. None for another type, or if it is unknown."""
    best, kind = "", None
    try:
        for line in mounts.read_text(encoding="utf-8").splitlines():
            _, point, found, *_ = line.split()
            if len(point) >= len(best) and path.is_relative_to(point):
                best, kind = point, found
    except OSError:
        return None
    return kind if kind in OWN_FILE_SYSTEMS else None
