"""What a sweep is about to do: how each planned run stands, which runs are submitted, and what that will cost."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cli.table import render
from launch.jobs.submitter import ENDING, QueueEntry, Submitter
from launch.sweeps.resources import SUMMARY, hours_of, summary
from launch.sweeps.spec import PlannedRun, SweepPlan
from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.evaluate.request import result_name
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import RunView, read_status
from toolkit.rundir.sweep import RecordedRun, find_runs
from toolkit.shipped import command
from toolkit.wording import count, some

logger = logging.getLogger(__name__)

RETRY = {
    "failed": "all failed runs",
    "oom": "only runs that ran out of memory or were killed by the out-of-memory killer",
    "timeout": "only runs that hung; runs at their time limit resume automatically",
}
KEEP = "--keep-submitted"
WHAT = {
    "new": "train",
    "interrupted": "resume",
    "trained": "evaluate",
    "failed": "leave (--retry failed runs it again)",
    "done": "nothing",
}


@dataclass(frozen=True)
class Item:
    """A planned run, where it lives, how it stood when the sweep was called, and what is done about it."""

    planned: PlannedRun
    run: RunDir
    before: RunView
    submitted: bool
    scorings: Mapping[str, Mapping[str, object]]  # beside its own: the values of `eval` by the name of the result
    job: QueueEntry | None = None  # what it has in a cluster's queue
    replaced: bool = False  # what it has is deleted first
    left_out: str = ""  # why it isn't submitted, though there is something to do

    @property
    def path(self) -> Path:
        """Return its directory, as submitters know it."""
        return self.run.path.resolve()

    @property
    def active(self) -> bool:
        """Whether there is something to wait for: it is submitted now, has a job in the queue, or is worked on."""
        return self.submitted or self.before.live or self.job is not None

    @property
    def held_back(self) -> bool:
        """Whether it is submitted later by this command."""
        return self.left_out == f"later: {KEEP}"

    @property
    def trains(self) -> bool:
        """Whether a training is left to do."""
        return entry_of(self.planned.config.model).trained and (self.replaced or not self.run.done)

    @property
    def what(self) -> str:
        """Return what will be done with the run, as the plan's table shows it."""
        if self.left_out and self.job is None and not self.before.live and self.before.state != "done":
            return self.left_out
        if self.job is not None and not self.before.live:
            return f"wait: job {self.job.name} is in the queue ({self.job.state})"
        if self.before.live:
            return f"wait: {lock.describe(lock.holder(self.run.path) or {})}"
        if self.before.state == "new" and not entry_of(self.planned.config.model).trained:
            return "evaluate: no training"
        if self.submitted and self.before.state == "failed" and not self.replaced:
            return "evaluate again" if self.run.done else "train again"
        if self.submitted and self.replaced:
            return "delete, train again"
        return WHAT[self.before.state]

    @property
    def recorded(self) -> RecordedRun:
        planned = self.planned
        return RecordedRun(self.run, planned.name, planned.group, planned.seed, planned.settings)

    def read_status(self) -> RunView:
        return read_status(self.run, self.planned.name, _split(self.run, self.planned))

    def prepare(self) -> None:
        """Make the run directory where it is not there yet, and write into it how else the run is to be scored."""
        if not self.run.config_file.exists() or self.run.path.name.endswith(self.planned.hash8):
            RunDir.create(self.run.path, self.planned.config)
        for name, values in self.scorings.items():
            self.run.request_scoring(name, values)


def place(root: Path, plan: SweepPlan, replaced: bool = False) -> list[RunDir]:
    """Return the run directory of every planned run.

    A run that is there already under another name (the sweep has grown, and names say what differs) stays there; so
    does one that differs in what only scoring uses: it is not trained again (`replaced`: it is).
    """
    present = {run.path.name[-8:]: run for run in find_runs(root)}
    placed = {planned.hash8: present.get(planned.hash8) for planned in plan.runs}
    if None in placed.values() and not replaced:
        others = {_training(run): run for name, run in present.items() if name not in placed}
        absent = [planned for planned in plan.runs if placed[planned.hash8] is None]
        placed |= {planned.hash8: others.get(planned.config.hash8(scoring=False)) for planned in absent}
    return [placed[planned.hash8] or RunDir(root / planned.folder) for planned in plan.runs]


def _training(run: RunDir) -> str | None:
    """Return the hash of what a run was trained by, None where its config can't be read any more."""
    try:
        return run.config().hash8(scoring=False)
    except ConfigError:
        return None


def _scorings(run: RunDir, planned: PlannedRun) -> dict[str, dict[str, object]]:
    """Return how a run is to be scored beside its own scoring: the values of `eval`, by the name of the result."""
    own, asked = planned.config, list(planned.scorings)
    if not run.path.name.endswith(planned.hash8):
        own, asked = run.config(), [planned.config, *asked]
    known = own.eval.model_dump(mode="json")
    found = {}
    for config in asked:
        values = config.eval.model_dump(mode="json")
        found[result_name(own, config)] = {key: value for key, value in values.items() if value != known[key]}
        if config.eval.analyse != own.eval.analyse:
            logger.warning("%s: eval.analyse differs: %s", run.path, command("analyse", "--run", run.path))
    found.pop(own.eval.split, None)
    return found


def _split(run: RunDir, planned: PlannedRun) -> str:
    """Return the split of the run's own scoring."""
    own = planned.config if run.path.name.endswith(planned.hash8) else run.config()
    return own.eval.split


def _with_scorings(view: RunView, run: RunDir, scorings: Iterable[str]) -> RunView:
    """Return the state `trained` for a run that is done but lacks one of the scorings."""
    results = [run.eval / f"{name}-{which}.json" for name in scorings for which in run.scored_checkpoints]
    absent = [path.name for path in results if not path.exists()]
    if view.state != "done" or not absent:
        return view
    return dataclasses.replace(view, state="trained", reason=f"not evaluated yet: {some(absent)}")


def collect_status(
    plan: SweepPlan,
    root: Path,
    retry: Collection[str],
    queued: Mapping[Path, QueueEntry] | None = None,
    replace: bool = False,
    submitted: Collection[str] = (),
) -> list[Item]:
    """Return how every run of the plan stands, and whether it will be submitted; one with a job in the queue is not.

    Args:
        retry, replace: which runs that ended are submitted again.
        submitted: hashes of the runs that have been so already; `retry` and `replace` do not hold for them any more.
    """
    items = []
    for planned, run in zip(plan.runs, place(root, plan, replace), strict=True):
        scorings = _scorings(run, planned)
        view = _with_scorings(read_status(run, planned.name, _split(run, planned)), run, scorings)
        job = (queued or {}).get(run.path.resolve()) if view.state != "done" else None
        if job is not None and job.state == ENDING:
            job = None  # no work is to come of it; what is submitted now waits until it is gone
            if view.live:
                view = dataclasses.replace(view, state="interrupted")
        again = planned.hash8 not in submitted
        todo = view.state in ("new", "interrupted", "trained") or (
            again and ((replace and view.state in ("done", "failed")) or is_retried(view, retry))
        )
        replaced = again and replace and view.state != "new" and job is None and not view.live
        items.append(Item(planned, run, view, todo and job is None, scorings, job, replaced))
    return items


def is_retried(view: RunView, retry: Collection[str]) -> bool:
    """Whether a failed run is one of those that are to be tried once more (RETRY)."""
    killed = re.search(r"SIGKILL|returned 137", view.reason or "")
    return view.state == "failed" and (
        "failed" in retry
        or ("oom" in retry and (view.kind == "out of memory" or killed is not None))
        or ("timeout" in retry and view.kind == "hung")
    )


def format_plan(plan: SweepPlan, items: Sequence[Item], hours: Sequence[float | None] | None = None) -> list[str]:
    """Return the plan as a table; with the hours of each run, its resource estimate is added."""
    left_out = [f"{count(plan.duplicates, 'duplicate')} left out"] if plan.duplicates else []
    left_out += [f"{plan.excluded} excluded"] if plan.excluded else []
    others = sum(len(item.scorings) for item in items)
    left_out += [f"{count(others, 'other scoring')} of the same runs"] if others else []
    head = ", ".join([f"{plan.name}: {count(len(items), 'run')}", *left_out])
    header = ("run", "hash", "state", *(SUMMARY if hours else ()), "what will be done")
    rows = []
    for index, item in enumerate(items):
        need = summary(item.planned.config, hours[index]) if hours else []
        rows.append([item.planned.name, item.planned.hash8, item.before.state, *need, item.what])
    return [head, *plan.notes, *render(header, rows)]


def estimate(items: Sequence[Item], tflops: float | None, ranks: Sequence[int]) -> tuple[list[float | None], str]:
    """Each run's hours, where they can be known, and a line on those that are to be done; `ranks` are of each run."""
    # A run is as fast as one that differs in the seed alone.
    rates = {item.planned.group: item.before.rate for item in items if item.before.rate}
    hours = [
        hours_of(item.planned.config, rates.get(item.planned.group), tflops, number)
        for item, number in zip(items, ranks, strict=True)
    ]
    planned = [(value, number) for item, value, number in zip(items, hours, ranks, strict=True) if item.submitted]
    known = [value * number for value, number in planned if value is not None]
    numbers = sorted({number for _, number in planned} or set(ranks))
    each = f"{numbers[0]} to {numbers[-1]} ranks" if len(numbers) > 1 else count(numbers[0], "rank")
    effort = f"{sum(known):,.0f} rank-hours of training on {each} each"
    text = f"{count(len(planned), 'run')} to do: {effort}"
    if len(known) < len(planned):
        text += (
            f", and {count(len(planned) - len(known), 'run')} unknown: no comparable run to estimate from; create "
            "their stores and pass --tflops per rank"
        )
    return hours, text


def dry_run(plan: SweepPlan, items: Sequence[Item], submitter: Submitter, tflops: float | None) -> list[str]:
    """Return the lines of `--dry-run`: the plan with what each run needs, the jobs it would become, the hours."""
    check_configs(items)
    hours, effort = estimate(items, tflops, [submitter.ranks_of(item.path) for item in items])
    arrays = submitter.announce([item.path for item in items if item.submitted])
    return [*format_plan(plan, items, hours), *arrays, effort, "dry run: nothing was made or submitted"]


def check_ranks(items: Sequence[Item], submitter: Submitter) -> None:
    """Check that the ranks of every run to be submitted divide its batch: one message instead of one from every job.

    Raises:
        ConfigError: naming how many runs they don't fit, and what would.
    """
    faults: dict[str, int] = {}
    for item in items:
        if item.submitted and entry_of(item.planned.config.model).trained:
            try:
                item.planned.config.train.share(submitter.ranks_of(item.path))
            except ConfigError as error:
                faults[str(error)] = faults.get(str(error), 0) + 1
    if faults:
        lines = [f"{fault} ({count(number, 'run')})" for fault, number in faults.items()]
        raise ConfigError(
            "\n".join(lines) + "\nA run has a rank for each GPU: --gpus-per-node and --nodes, or --ranks."
        )


def check_stores(items: Sequence[Item]) -> None:
    """Check that every run to be submitted has a store: one message now instead of one from every job.

    Raises:
        ConfigError: naming each missing store and how many runs need it.
    """
    needed: dict[str, int] = {}
    for item in items:
        store = item.planned.config.data.store
        if not item.submitted:
            continue
        if not store or ("://" not in store and not Path(store, "manifest.json").exists()):
            needed[store] = needed.get(store, 0) + 1
    if needed:
        where = f"; relative paths are relative to {Path.cwd()}" * any(
            not Path(store).is_absolute() for store in needed
        )
        lines = [f"  {store or '(not set)'}: needed by {count(number, 'run')}" for store, number in needed.items()]
        raise ConfigError(
            f"data.store: no sequence store (manifest.json) there{where}\n"
            + "\n".join(lines)
            + "\nMake one with `python -m shards convert`, or name one with --set data.store=FOLDER."
        )


def check_configs(items: Sequence[Item]) -> None:
    """Check that every run to be submitted could be trained and scored as asked, as far as its store is at hand.

    Raises:
        ConfigError: naming the first run whose training or evaluation would fail.
    """
    checked: set[str] = set()
    for item in items:
        trains, new = item.trains, item.replaced or item.before.state == "new"
        for config in (item.planned.config, *item.planned.scorings) if item.submitted else ():
            parts = (config.model, config.data, config.train, config.eval)  # not the seed
            key = json.dumps([trains, new, *(part.model_dump(mode="json") for part in parts)])
            if key in checked:
                continue
            checked.add(key)
            try:
                _check(config, trains, new)
            except ConfigError as error:
                raise ConfigError(f"{item.planned.name}: {error}") from None


def _check(config: RunConfig, trains: bool, new: bool) -> None:
    from shards import ShardError, open_store  # late: these import NumPy
    from toolkit.checkpoint.source import check_source
    from toolkit.evaluate.check import check_scoring
    from toolkit.trackers import check_trackers
    from toolkit.train.check import check_training, open_data

    if trains:
        check_trackers(config)
    if trains and new:
        check_source(config.train.init_from)
    store = None
    if Path(config.data.store or ".", "manifest.json").exists():
        try:
            if trains:
                data = open_data(config)
                check_training(config, data)
                store = data.store
            else:
                store = open_store(config.data.store)
        except ShardError as error:
            logger.warning("the run on %s is not checked: %s", config.data.store, error)
    check_scoring(config, store)
