"""SEVIR's CATALOG.csv: one line per event and image type, with its file, its place there and its times.

Columns that matter: id, file_name (below data/), file_index, img_type, time_utc (the event's middle), minute_offsets
("-120:-115:...:120", of every frame) and pct_missing (a share, 0..1). Others are skipped. A catalog that went
through a spreadsheet is understood as far as it is certain: the mark at its beginning, columns more, and dates such as
"5/12/19 18:30", which are month/day/year if that agrees with the period in the file's name.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from shards.errors import SourceError

COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "pct_missing")
_SPREADSHEET_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2}|\d{4}) (\d{1,2}):(\d{2})")
_FILE_PERIOD = re.compile(r"_(\d{4})_(\d{4})_(\d{4})\.h5$")


@dataclass(frozen=True)
class Row:
    """One event of the image type asked for."""

    id: str
    file_name: str
    file_index: int
    time: datetime
    offsets: tuple[int, ...]  # minutes of every frame from `time`
    missing: float
    event_type: str = ""  # "Flood"; nothing for events that were drawn at random


def find_catalog(path: Path) -> Path:
    """Return `path` itself or the CATALOG file in it. Raises SourceError."""
    if path.is_file():
        return path
    found = sorted(path.glob("CATALOG*.csv")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{path}: several catalogs ({', '.join(p.name for p in found)}); give the one you mean")
    raise SourceError(f"{path}: no CATALOG.csv; give the folder that holds it, with data/ beside it, or the file")


def read_catalog(path: Path, img_type: str) -> tuple[list[Row], list[str]]:
    """Return the rows of `img_type`, and notes for the user. Ids with several such rows, a known fault of the published
    catalog, are left out whole. Raises SourceError that names the line and the column.
    """
    rows: list[Row] = []
    spreadsheet = 0
    types: Counter[str] = Counter()
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise SourceError(
                    f"{path}: line 1: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ())}; "
                    "fetch the catalog again"
                )
            for fields in reader:
                types[fields["img_type"] or ""] += 1
                if fields["img_type"] == img_type:
                    row, edited = _row(fields, f"{path}: line {reader.line_num}")
                    rows.append(row)
                    spreadsheet += edited
        except (UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"{path}: not a table of text ({error}); fetch the catalog again") from None
    if not rows:
        holds = ", ".join(f"{name} {count}" for name, count in sorted(types.items())) or "nothing"
        raise SourceError(f"{path}: no rows of img_type {img_type}; it has {holds}")
    counts = Counter(row.id for row in rows)
    twice = sorted(id for id, count in counts.items() if count > 1)
    notes = [f"{len(rows)} rows of {img_type} in {path.name}"]
    if spreadsheet:
        if not any(row.time.day > 12 for row in rows):
            raise SourceError(
                f"{path}: its {spreadsheet} dates went through a spreadsheet, and none tells whether the month or the "
                "day comes first; fetch the catalog again"
            )
        notes.append(
            f"the catalog went through a spreadsheet: {spreadsheet} dates are read as month/day/year, "
            "which agrees with the file names"
        )
    if twice:
        notes.append(f"{len(twice)} ids have several {img_type} rows and are left out, the first is {twice[0]}")
    return [row for row in rows if counts[row.id] == 1], notes


def _row(fields: Mapping[str, str | None], where: str) -> tuple[Row, bool]:
    """Return the row, and whether a spreadsheet has written its date."""

    def value(column: str) -> str:
        text = fields[column]
        if text is None or not text.strip():
            raise SourceError(f"{where}, column {column}: empty; fetch the catalog again")
        return text.strip()

    def wrong(column: str, expected: str) -> SourceError:
        return SourceError(f"{where}, column {column}: {value(column)!r} is no {expected}; fetch the catalog again")

    if not re.fullmatch(r"[A-Za-z0-9]+", value("id")):
        raise wrong("id", "SEVIR id, such as S834603")
    name = value("file_name")
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
        raise wrong("file_name", "path below data/, such as vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5")
    if not value("file_index").isdecimal():
        raise wrong("file_index", "row number of its file")
    try:
        offsets = tuple(round(float(part)) for part in value("minute_offsets").split(":"))
    except ValueError:
        raise wrong("minute_offsets", "list of minutes such as -120:-115:...:120") from None
    try:
        missing = float(value("pct_missing"))
    except ValueError:
        raise wrong("pct_missing", "share of missing pixels, 0..1") from None
    if not 0 <= missing <= 1:
        raise wrong("pct_missing", "share of missing pixels, 0..1")
    try:
        time: datetime | None = datetime.fromisoformat(value("time_utc"))
        edited = False
    except ValueError:
        time, edited = _spreadsheet_time(value("time_utc"), name), True
    if time is None:
        raise wrong("time_utc", f"time of an event in {name}, such as 2019-05-12 18:30:00")
    event_type = (fields.get("event_type") or "").strip()
    return Row(value("id"), name, int(value("file_index")), time, offsets, missing, event_type), edited


def _spreadsheet_time(text: str, file_name: str) -> datetime | None:
    """month/day/year hour:minute, if that lies in the period that the file's name gives. A day more on either side: the
    periods are of local time.
    """
    match, period = _SPREADSHEET_DATE.fullmatch(text), _FILE_PERIOD.search(file_name)
    if match is None or period is None:
        return None
    month, day, year, hour, minute = (int(part) for part in match.groups())
    year += 2000 if year < 100 else 0
    try:
        time = datetime(year, month, day, hour, minute)
        first, last = (datetime.strptime(period[1] + period[side], "%Y%m%d") for side in (2, 3))
    except ValueError:
        return None
    return time if first - timedelta(days=1) <= time < last + timedelta(days=2) else None
