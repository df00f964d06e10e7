"""Keep a nowcast page up to date: add forecasts, verify those whose observations have arrived, write index.html.

After a check: observations are scored, forecasts beyond `keep` deleted, latest.nc and latest.png replaced, and
index.html last. What is done is in the records of the forecasts (folder.py), so a killed process loses nothing: the
next one starts from the same files.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.recent import Frame
from toolkit import __version__
from toolkit.atomic import replacing, write_atomic
from toolkit.checkpoint.export import weights_digest
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evaluate.check import threshold_codes
from toolkit.evaluate.protocols import load_protocol
from toolkit.forecast.make import Forecast, Request, read_recoded
from toolkit.forecast.page import pictures
from toolkit.forecast.page.fields import METHODS, Fields, fields_of
from toolkit.forecast.page.folder import STEM, Entry, PageFolder
from toolkit.forecast.page.html import Looks, moment, nowcast_page, score_chart, score_table, shown
from toolkit.forecast.page.scores import Scorer
from toolkit.forecast.picture import draw
from toolkit.forecast.products import Products
from toolkit.forecast.trained import Trained
from toolkit.forecast.watch import Feed
from toolkit.models.plugins import entry_of
from toolkit.report.html.pictures import chosen_leads
from toolkit.wording import count, duration, some

logger = logging.getLogger(__name__)

WRITTEN_S = 60.0  # the page is written at least this often, so that its time shows whether the watch runs
STAMP = "%Y%m%dT%H%M%SZ"
MOST_PROBLEMS = 12  # that are listed
Index = dict[str, Any]


class Page:
    """A nowcast page in a folder."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        trained: Trained,
        request: Request,
        products: Products,
        thresholds: tuple[float, ...],
        archive: str,
        live: bool,
        source: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """
        Args:
            keep: number of forecasts that are kept.
            thresholds: of events in the verification, in the store's unit; none: those of the run's config.
            archive, source, options: its path, and how it is read, as for `shards.recent.open_archive`.
            live: whether the page is updated until the process ends.

        Raises:
            ConfigError: see `PageFolder`; or a threshold outside of the scale, or a model without a time step.
        """
        asked, scale = trained.config.eval, trained.scale
        protocol = load_protocol(asked.protocol)
        self.thresholds = thresholds or protocol.thresholds_for(asked.thresholds)
        threshold_codes(self.thresholds, scale, "--thresholds")
        if trained.step_seconds is None:
            raise ConfigError(
                "--page: the model's store has no time step, so observations can't be matched: omit --page"
            )
        if keep < request.lead:
            logger.warning(
                "--keep %d: forecasts are deleted before all their lead times are verified: --keep %d keeps them",
                keep, request.lead,
            )  # fmt: skip
        self.keep, self.trained, self.archive, self.live = keep, trained, archive, live
        several = request.samples > 1
        self.probabilities = list(products.thresholds or (self.thresholds if several else ()))
        if products.neighbourhood is not None and not self.probabilities:
            raise ConfigError(
                "--neighbourhood has no effect: there are no thresholds to show probabilities of: add --probability or "
                "--thresholds, or omit --neighbourhood"
            )
        self.side = products.side(request.samples)
        shape = (trained.frames.height, trained.frames.width)
        self.scorer = Scorer(protocol, scale, request.lead, tuple(self.thresholds), min(shape))
        self.looks = Looks(
            scale.quantity,
            "" if scale.unit == "1" else scale.unit,
            f"{entry_of(trained.config.model).title} ({trained.title})",
            trained.step_seconds,
            several,
            self.side,
        )
        settings = self._settings(request, products)
        settings |= {"source": source, "source_options": list(options)}
        self.folder = PageFolder(folder, settings)
        self.entries = self.folder.entries
        self._drop_unsound_scores()
        for entry in self.entries.values():  # a process may have been killed just before it did
            self._drop_fields(entry)
        self._problems: dict[str, str] = {}  # by frame or forecast, in verification
        self._latest = ""  # stamp of latest.nc
        self._written: tuple[object, float] = (None, 0.0)  # what the page shows, and when it was written
        self._drawn: tuple[object, Index] = (None, {})  # the chart, and of what

    def _settings(self, request: Request, products: Products) -> dict[str, Any]:
        """Return what all forecasts of a page have in common."""
        return {
            "model": self.trained.title,
            "weights": weights_digest({name: value.cpu() for name, value in self.trained.model.state_dict().items()}),
            "archive": str(Path(self.archive).absolute()),
            "lead": request.lead,
            "ensemble_size": request.samples,
            "seed": request.seed,
            "tile": request.tile,
            "overlap": request.overlap,
            "keep_inflow": request.keep_inflow,
            "thresholds": list(self.thresholds),
            "unit": self.trained.scale.unit,
            "probability": self.probabilities,
            "neighbourhood": self.side,
            "accumulation": products.accumulation,
            "zr": list(products.zr),
        }

    def _drop_unsound_scores(self) -> None:
        for entry in self.entries.values():
            if not self.scorer.is_sound(entry):
                again = self._file(entry, ".npz").exists()
                logger.warning(
                    "%s: its scores have an unexpected form and are left out; %s",
                    entry.name(".json"),
                    "they are computed again from the observations that are still in the archive"
                    if again
                    else f"they can't be computed again, as {entry.name('.npz')} is deleted once all are there",
                )
                entry.scores = {}

    @property
    def data(self) -> Path:
        """The file of a forecast, without its time."""
        return self.folder.forecasts / f"{STEM}.nc"

    def has(self, frame: Frame) -> bool:
        """Return whether a frame has a forecast, or is older than all that are kept."""
        if frame.time is None:
            raise ConfigError("--page: this archive has no time stamps, so observations can't be matched: omit --page")
        stamp = f"{frame.time:{STAMP}}"
        return stamp in self.entries or (len(self.entries) >= self.keep and stamp < min(self.entries))

    def prepare(self, forecast: Forecast) -> Entry:
        """Write everything of a forecast but its data, the record first; then write the data and call `publish`."""
        assert forecast.reference is not None
        places = chosen_leads(forecast.values.shape[1], pictures.COLUMNS)
        stamp = f"{forecast.reference:{STAMP}}"
        frames = dict(pictures.frames_of(forecast, places, self.probabilities, self.side))
        names = [*frames, *(f"-observation-{place + 1:02d}.png" for place in places), "-all.png", ".npz"]
        entry = Entry(
            stamp=stamp,
            made=f"{_now():%Y-%m-%dT%H:%M:%SZ}",
            shown=[place + 1 for place in places],
            members=pictures.pictured_members(forecast),
            thresholds=self.probabilities,
            files=[f"{STEM}-{stamp}{name}" for name in names],
        )
        self.folder.save(entry)
        for name, colours in frames.items():
            pictures.save(colours, self._file(entry, name))
        draw(forecast, self._file(entry, "-all.png"))
        fields_of(forecast).save(self._file(entry, ".npz"))
        return entry

    def publish(self, entry: Entry) -> None:
        """Take over a forecast whose data are written; the newest one becomes latest.nc and latest.png."""
        self.entries[entry.stamp] = entry
        self.folder.damaged.pop(entry.name(".json"), None)
        self._replace_latest()

    def update(self, feed: Feed) -> None:
        """Verify, delete old forecasts, and write the page if anything changed or a minute has passed.

        Raises:
            FileWriteError: a file can't be written; the next update tries again.
        """
        if feed.archive is not None:
            self._verify(feed)
        self.folder.prune(self.keep)
        self._replace_latest()
        shows = self._state(feed)
        key = repr([shows["feed"], self._signature()])
        if key != self._written[0] or time.monotonic() - self._written[1] > WRITTEN_S:
            write_atomic(self.folder.path / "index.html", self._html(feed, shows))
            self._written = key, time.monotonic()

    def _file(self, entry: Entry, what: str) -> Path:
        return self.folder.forecasts / entry.name(what)

    def _replace_latest(self) -> None:
        newest = max(self.entries, default="")
        if newest == self._latest:
            return
        for what, name in ((".nc", "latest.nc"), ("-all.png", "latest.png")):
            source = self._file(self.entries[newest], what)
            with replacing(self.folder.path / name) as file, open(source, "rb") as data:
                shutil.copyfileobj(data, file)
        self._latest = newest

    def _verify(self, feed: Feed) -> None:
        """Score the lead times whose observations have arrived."""
        assert feed.archive is not None
        wanted: dict[Frame, list[tuple[Entry, int]]] = {}
        for frame, entry, lead in self._matches(feed):
            wanted.setdefault(frame, []).append((entry, lead))
        known = {str(frame) for frame in wanted} | self.entries.keys()
        self._problems = {what: text for what, text in self._problems.items() if what in known}
        loaded: dict[str, Fields] = {}
        for frame, pairs in wanted.items():
            if not feed.is_settled(frame):
                continue
            try:
                found = read_recoded(feed.archive, [frame], self.trained.scale).select(self.trained.targets)
            except ShardError as error:
                self._note(str(frame), f"observation can't be read: {error}")
                continue
            codes, seen = found.codes[0], found.seen[0]
            self._problems.pop(str(frame), None)
            for entry, lead in pairs:
                try:
                    fields = loaded.get(entry.stamp) or Fields.load(self._file(entry, ".npz"))
                    loaded[entry.stamp] = fields
                    if fields.excluded.shape[1:] != codes.shape:
                        raise ToolkitError(
                            f"the forecast has frames of {fields.excluded.shape[1:]}, the observation of {codes.shape}"
                        )
                    made = self.scorer.score(fields, lead - 1, codes, seen)
                except ToolkitError as error:
                    self._note(entry.stamp, f"not verified: {error}")
                    continue
                if lead in entry.shown:
                    pictures.save(
                        pictures.observation(codes, seen, self.trained.scale),
                        self._file(entry, f"-observation-{lead:02d}.png"),
                    )
                for method, columns in made.items():
                    entry.scores.setdefault(method, {})[str(lead)] = columns
        for stamp in loaded:
            entry = self.entries[stamp]
            self.folder.save(entry)
            self._drop_fields(entry)

    def _drop_fields(self, entry: Entry) -> None:
        """Delete what the verification of a forecast needs, once all of its lead times are scored."""
        if len(entry.scored()) == self.scorer.lead:
            self._file(entry, ".npz").unlink(missing_ok=True)

    def _matches(self, feed: Feed) -> Iterator[tuple[Frame, Entry, int]]:
        """Yield the frames that unverified lead times predict."""
        step = timedelta(seconds=self.looks.step_seconds)
        oldest = moment(min(self.entries)) if self.entries else None
        now = _now()
        frames = [
            frame
            for frame in feed.frames
            if frame.time and oldest and frame.time > oldest and self._is_past(frame.time, now)
        ]
        for entry in self.entries.values():
            done = entry.scored()
            for frame in frames:
                assert frame.time is not None
                steps = (frame.time - moment(entry.stamp)) / step
                lead = round(steps)
                if 1 <= lead <= self.scorer.lead and abs(steps - lead) < 0.5 and lead not in done:
                    yield frame, entry, lead

    def _note(self, what: str, text: str) -> None:
        if self._problems.get(what) != text:
            logger.warning("%s: %s", what, text)
        self._problems[what] = text

    def _signature(self) -> object:
        return [(entry.stamp, sorted(entry.scored())) for entry in self.entries.values()]

    def _state(self, feed: Feed) -> Index:
        """Return what the page says about the archive: `feed` without, `newest` and `waiting` with the time of day.

        `last` is the time of the newest frame; frames with a time in the future are problems.
        """
        now, step = _now(), self.looks.step_seconds
        times = [frame.time for frame in feed.frames if frame.time is not None]
        known = [when for when in times if self._is_past(when, now)]
        early = [f"{when}: a time in the future" for when in times[len(known) :]]
        problems = [
            *(f"{name}: {text}" for name, text in self.folder.damaged.items()),
            *(f"{what}: {text}" for what, text in self._problems.items()),
            *_without_forecast(feed.skipped),
            *reversed(_gaps(known, step, moment(min(self.entries)) if self.entries else None)),
            *early,
        ]
        if len(problems) > MOST_PROBLEMS:
            problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS:,} more, see the log"]
        newest, waiting = "none", list(feed.waiting)
        if known:
            age = duration((now - known[-1]).total_seconds())
            newest = f"{known[-1]:%Y-%m-%d %H:%M} UTC, {age} old when this was written"
            due = known[-1] + timedelta(seconds=step)
            late = (now - due).total_seconds()
            overdue = f", overdue by {duration(late)}" if late > step else ""
            waiting.insert(0, f"the frame of {due:%Y-%m-%d %H:%M} UTC{overdue}")
        elif not waiting:
            waiting = ["a first frame"]
        told = [known[-1:], feed.waiting, problems]
        last = known[-1] if known else datetime.min
        return {"last": last, "newest": newest, "waiting": waiting, "problems": problems, "feed": told, "now": now}

    def _is_past(self, when: datetime, now: datetime) -> bool:
        """Return whether a frame can be of that time; clocks may differ by a time step."""
        return when <= now + timedelta(seconds=self.looks.step_seconds)

    def _html(self, feed: Feed, shows: Mapping[str, Any]) -> str:
        entries = [self.entries[stamp] for stamp in sorted(self.entries, reverse=True)]
        present = {item.name for item in self.folder.forecasts.iterdir()}
        views = [shown(entry, present, self.looks, shows["last"], place == 0) for place, entry in enumerate(entries)]
        signature = self._signature()
        if signature != self._drawn[0]:
            curves = {method: self.scorer.curves(entries, method) for method in METHODS}
            self._drawn = (
                signature,
                {
                    "chart": score_chart(curves, self.looks, self.scorer),
                    "table": score_table(curves, self.scorer.verified(entries), self.looks),
                    "excluded": self.scorer.excluded(entries),
                },
            )
        return nowcast_page(
            self.trained.scale,
            self.looks,
            latest=views[0] if views else None,
            earlier=views[1:],
            has_probabilities=bool(self.probabilities),
            thresholds=self.thresholds,
            kept=count(len(entries), "forecast"),
            keep=self.keep,
            live=self.live,
            written=f"{shows['now']:%Y-%m-%dT%H:%M:%S}",
            newest=shows["newest"],
            waiting=shows["waiting"],
            problems=shows["problems"],
            archive=self.archive,
            licence="" if feed.archive is None else feed.archive.description.source.licence,
            toolkit=f"ModeRNN toolkit {__version__}",
            **self._drawn[1],
        )


def _without_forecast(skipped: Mapping[str, str]) -> list[str]:
    """Return the frames without a forecast, newest first; those with the same reason together."""
    frames: dict[str, list[str]] = {}
    for name, reason in reversed([*skipped.items()]):
        frames.setdefault(reason, []).append(name)
    return [f"{some(names, 3)}: no forecast: {reason}" for reason, names in frames.items()]


def _gaps(times: list[datetime], step: float, since: datetime | None) -> list[str]:
    """Return the gaps between frames, by default among the last 50."""
    recent = [when for when in times if since is not None and when >= since] or times[-50:]
    return [
        f"{count(round((after - before).total_seconds() / step) - 1, 'frame')} missing between {before} and {after} UTC"
        for before, after in itertools.pairwise(recent)
        if (after - before).total_seconds() > 1.5 * step
    ]


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
