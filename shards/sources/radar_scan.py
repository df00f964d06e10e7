"""Which files of a folder are the frames of one radar archive: by format, radar or composite, product, and time."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from shards.errors import SourceError, UsageError
from shards.sources import timeline
from shards.sources.inputs import plural, walk
from shards.sources.radar_readers import FileName, FrameReader, bare, time_in

BUNDLES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".7z")
DIRECTIVES = {
    "Y": r"\d{4}",
    "y": r"\d\d",
    "m": r"\d\d",
    "d": r"\d\d",
    "j": r"\d{3}",
    "H": r"\d\d",
    "M": r"\d\d",
    "S": r"\d\d",
    "b": r"[A-Za-z]{3}",
    "z": r"(?:Z|[+-]\d\d:?\d\d)",
    "%": "%",
}


@dataclass(frozen=True)
class Naming:
    """How a user's files are named: --name-pattern and --time-format."""

    pattern: re.Pattern[str] | None
    format: str | None

    def parse(self, name: str) -> FileName | None:
        """Return what a name says, or None where it isn't one of these."""
        found = self._finder().search(name)
        if found is None:
            return None
        groups = found.groupdict()
        text = groups.get("time") or (found[1] if self.pattern is not None and found.re.groups else found[0])
        time = self._time(text)
        product = groups.get("product") or ("" if self.pattern is not None else name.replace(text, "*"))
        return None if time is None else FileName(time, groups.get("radar") or "", product)

    def _finder(self) -> re.Pattern[str]:
        if self.pattern is not None:
            return self.pattern
        assert self.format is not None
        parts = re.split(r"%(.)", self.format)
        return re.compile("".join(re.escape(part) if i % 2 == 0 else DIRECTIVES[part] for i, part in enumerate(parts)))

    def _time(self, text: str) -> datetime | None:
        if self.format is None:
            found = time_in(text)
            return None if found is None else found.time
        try:
            time = datetime.strptime(text, self.format)
        except ValueError:
            return None
        return time if time.tzinfo is None else time.astimezone(timezone.utc).replace(tzinfo=None)


def naming_of(args: argparse.Namespace) -> Naming | None:
    """Return what the options ask; None without them. Raises UsageError for a pattern or format that can't be used."""
    pattern, format = getattr(args, "name_pattern", None), getattr(args, "time_format", None)
    if pattern is None and format is None:
        return None
    if format is not None:
        used = re.findall(r"%(.)", format)
        unknown = [directive for directive in used if directive not in DIRECTIVES]
        if unknown or not {"Y", "y"} & set(used) or not ({"d", "j"} & set(used)):
            raise UsageError(
                f"--time-format {format}: needs a year and a day, of {' '.join('%' + key for key in DIRECTIVES)}; "
                "such as %Y%m%d%H%M"
            )
    try:
        compiled = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--name-pattern {pattern!r} is no regular expression ({error})") from None
    return Naming(compiled, format)


@dataclass(frozen=True)
class Scan:
    """The frames in time order, their reader, and what the user should know of the folder's other files."""

    reader: FrameReader
    frames: tuple[timeline.Stamped, ...]
    notes: tuple[str, ...]


def scan(
    folder: Path,
    readers: Mapping[str, FrameReader],
    reader_name: str | None = None,
    *,
    naming: Naming | None = None,
    radar: str | None = None,
    product: str | None = None,
    beside: str | None = None,
) -> Scan:
    """Find the frames below `folder`.

    Args:
        reader_name: the format; None: by the names.
        naming: the user's own names, in the place of the reader's.
        radar, product: of several, the ones to take.
        beside: files whose names end so belong to frames, and aren't reported as skipped.

    Raises:
        SourceError: no frames.
        UsageError: frames of several formats, radars or products; each is counted.
    """
    if naming is not None and reader_name is None:
        raise UsageError(
            f"--name-pattern and --time-format need --reader ({', '.join(readers)}): what reads the files?"
        )
    found = walk(folder)
    notes: list[str] = []
    known = _by_reader(found, readers if reader_name is None else {reader_name: readers[reader_name]}, naming)
    if not known and reader_name is not None and naming is None:
        known = _by_any_time(found, readers[reader_name])
        notes += [
            f"{reader_name}: files aren't named as usual; times are the digits YYYYmmddHHMM of their names"
        ] * bool(known)
    if len(known) > 1:
        counts = ", ".join(f"{name} {len(names)}" for name, names in known.items())
        raise UsageError(f"{folder}: frames of several formats ({counts}); convert one after another with --reader")
    if not known:
        raise _none(folder, found, readers if reader_name is None else {reader_name: readers[reader_name]}, naming)
    ((name, names),) = known.items()
    chosen = _one_group(folder, names, radar, product)
    left = len(names) - len(chosen)
    if left:
        notes.append(f"left out by --radar or --product: {plural(left, 'file')}")
    frames = timeline.in_order(timeline.Stamped(said.time, file) for file, said in chosen.items())
    others = [file for file in found if file not in names and (beside is None or not file.endswith(beside))]
    bundles = [file for file in others if file.lower().endswith(BUNDLES)]
    if bundles:
        notes.append(
            f"{plural(len(bundles), 'packed archive')} not looked into, the first is {bundles[0]}: unpack it first"
        )
    rest = [file for file in others if file not in bundles]
    if rest:
        notes.append(f"{plural(len(rest), 'other file')} skipped, the first is {rest[0]}")
    return Scan(readers[name], tuple(frames), tuple(notes))


Names = dict[str, FileName]  # of files


def _by_reader(files: Sequence[str], readers: Mapping[str, FrameReader], naming: Naming | None) -> dict[str, Names]:
    """Return the files of each reader; one that several would take is the first one's."""
    known: dict[str, Names] = {}
    for file in files:
        last = file.rsplit("/", 1)[-1]
        for name, reader in readers.items():
            said = reader.parse(last) if naming is None else naming.parse(last)
            if said is not None:
                known.setdefault(name, {})[file] = said
                break
    return known


def _by_any_time(files: Sequence[str], reader: FrameReader) -> dict[str, Names]:
    """Files that end as the reader's do and whose names hold a time."""
    fitting = (file for file in files if bare(file).endswith(reader.suffixes))
    names = {file: said for file in fitting if (said := time_in(file.rsplit("/", 1)[-1])) is not None}
    return {reader.name: names} if names else {}


def _one_group(folder: Path, names: Names, radar: str | None, product: str | None) -> Names:
    """Return the files of one radar and product. Raises UsageError that counts them where there are several."""

    def fits(said: FileName) -> bool:
        same_radar = radar is None or said.radar.lower() == radar.lower()
        return same_radar and (product is None or product.lower() in said.product.lower())

    chosen = {file: said for file, said in names.items() if fits(said)}
    groups = Counter((said.radar, said.product) for said in (chosen or names).values())
    exact = {file: said for file, said in chosen.items() if product and said.product.lower() == product.lower()}
    if len(groups) > 1 and exact:
        return _one_group(folder, exact, radar, None)
    if len(groups) == 1 and chosen:
        return chosen
    counts = "; ".join(
        f"{' '.join(part for part in (f'radar {station}' if station else '', what) if part)}: {plural(count, 'file')}"
        for (station, what), count in sorted(groups.items())
    )
    options = [f"--radar {station}" for station in sorted({station for station, _ in groups}) if station]
    if len({what for _, what in groups}) > 1:
        options += [f"--product {what}" for what in sorted({what for _, what in groups})]
    asked = " ".join(f"--{name} {value}" for name, value in (("radar", radar), ("product", product)) if value)
    problem = f"{asked}: no such files" if not chosen else "files of several radars or products"
    raise UsageError(f"{folder}: {problem} ({counts}); convert one after another with {' or '.join(options[:4])}")


def _none(folder: Path, files: Sequence[str], readers: Mapping[str, FrameReader], naming: Naming | None) -> SourceError:
    if naming is not None:
        expected = f"none fits {naming.pattern.pattern if naming.pattern else naming.format}"
    else:
        expected = "known names: " + ", ".join(f"{name}: {reader.looks_like}" for name, reader in readers.items())
    holds = f"{plural(len(files), 'file')}, the first is {files[0]}" if files else "no files"
    bundles = [file for file in files if file.lower().endswith(BUNDLES)]
    packed = (
        f"; {plural(len(bundles), 'packed archive')}, the first is {bundles[0]}: unpack it first" if bundles else ""
    )
    return SourceError(
        f"{folder}: no radar frames; it has {holds}{packed}; {expected}; for others: --reader with --name-pattern or "
        "--time-format"
    )
