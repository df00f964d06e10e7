"""Harm done to stores: with digests that no longer match, as by accident, or with all of them made to match, as by
someone who wants a reader to go wrong.
"""

import hashlib
import io
import json
import os
import random
import tarfile
from pathlib import Path

from shards.manifest import manifest_digest

BLOCK = 512


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def zero(path: Path, at: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(len(data[at : at + size]))
    path.write_bytes(data)


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Headers and contents of a tar; the headers know where both lay."""
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar]


def write_tar(path: Path, contents: list[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in contents:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def rewrite_store(store: Path, member: str, payload: bytes, tar: str = "train/000000.tar") -> None:
    """Replace the contents of a member, then make index, digests and manifest agree with it."""
    path = store / tar
    key = member.split(".", 1)[0]
    write_tar(path, [(info.name, payload if info.name == member else data) for info, data in members(path)])
    places = {info.name: info for info, _ in members(path)}
    lines = path.with_suffix(".idx").read_text().splitlines()
    columns = json.loads(lines[0])["columns"]
    rows = [dict(zip(columns, json.loads(line), strict=True)) for line in lines[1:]]
    for row in rows:
        frames = next(info for name, info in places.items() if name.startswith(f"{row['key']}.frames"))
        row["offset"] = frames.offset_data + (0 if row["stored"] else frames.size - row["size"])
        row["json_offset"] = places[f"{row['key']}.json"].offset_data
        if row["key"] == key and row["stored"]:
            row["stored"] = len(payload)
    text = "\n".join([lines[0], *(json.dumps([row[column] for column in columns]) for row in rows)]) + "\n"
    path.with_suffix(".idx").write_text(text)
    reseal(store)


def reseal(store: Path, edit=lambda data: None) -> None:
    """Make sizes, digests and the manifest's own digest those of the files that are there."""
    data = json.loads((store / "manifest.json").read_text())
    for entry in [*data["files"], *(shard for split in data["splits"].values() for shard in split["shards"])]:
        file = store / entry["file"]
        if file.exists():
            entry["bytes"] = file.stat().st_size
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        if entry.get("index_sha256"):
            entry["index_sha256"] = hashlib.sha256(file.with_suffix(".idx").read_bytes()).hexdigest()
    edit(data)
    data["digest"] = manifest_digest(data)
    (store / "manifest.json").write_text(json.dumps(data, indent=1) + "\n")


def random_damage(store: Path, rng: random.Random) -> str:
    """Damage one file at random; says how. Never a change that changes nothing."""
    while True:
        path = rng.choice(sorted(p for p in store.rglob("*") if p.is_file()))
        before = path.read_bytes()
        kind = rng.choice(["flip", "flips", "cut", "zeros", "swap", "delete"])
        at = rng.randrange(len(before))
        if kind in ("flip", "flips"):
            for _ in range(1 if kind == "flip" else 20):
                flip(path, rng.randrange(len(before)), 1 << rng.randrange(8))
        elif kind == "cut":
            os.truncate(path, at)
        elif kind == "zeros":
            zero(path, at, rng.choice([1, 64, BLOCK, 4 * BLOCK]))
        elif kind == "swap":
            size = rng.choice([16, 64, BLOCK])
            data = bytearray(before)
            other = rng.randrange(len(before))
            if abs(other - at) >= size and max(at, other) + size <= len(data):
                data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
            path.write_bytes(data)
        else:
            path.unlink()
        if not path.exists() or path.read_bytes() != before:
            return f"{kind} at {at} of {path.relative_to(store)}"
