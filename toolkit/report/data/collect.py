"""Read run directories into records: everything that runs and evaluations wrote, except frames and diagnoses."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.config import RunConfig
from toolkit.config.tree import flatten
from toolkit.errors import ConfigError
from toolkit.models.plugins import FileModel, entry_of
from toolkit.rundir import CHECKPOINTS, RunDir, read_result
from toolkit.rundir.metrics import read_metrics
from toolkit.rundir.records import keep_typed
from toolkit.rundir.status import RunView, read_status
from toolkit.rundir.sweep import RECORD_NAME, RecordedRun, read_record
from toolkit.shipped import command
from toolkit.wording import first_line

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]  # the JSON file of a result or a diagnosis
Curve = tuple[tuple[int, float], ...]  # (step, value), steps ascending


@dataclass(frozen=True)
class Result:
    """One `eval/<name>-<which>.json`; the name is the split, and tells another scoring than the run's own.

    Attributes:
        samples: frames for figures, if they were kept.
        own: of what the run's config asks, whichever scores were added later.
    """

    name: str
    which: str
    data: Facts
    samples: Path | None
    folder: Path
    own: bool

    @property
    def split(self) -> str:
        """The split that it is of, by its name."""
        return self.name.partition("+")[0]

    @property
    def key(self) -> tuple[str, str, str]:
        """A key of its place in the tables."""
        return self.which, self.comparable, self.variant

    @property
    def metrics(self) -> set[str]:
        """The names of its scores."""
        return set(self.data["overall"])

    @property
    def table(self) -> Path:
        """The file of scores per sequence and lead time."""
        return self.folder / f"{self.name}-{self.which}.table.npz"

    @property
    def variant(self) -> str:
        """How an ensemble was scored; empty for one forecast."""
        return str((self.data.get("ensemble") or {}).get("label", ""))

    @property
    def comparable(self) -> str:
        """A key, equal for comparable results: same protocol, data, split and task."""
        keys = ("protocol", "split", "thresholds", "event_rule", "context", "horizon", "stride", "limit", "n")
        kept: dict[str, object] = {key: self.data.get(key) for key in keys}
        kept["exclude_inflow"] = bool(self.data.get("exclude_inflow"))
        kept["targets"] = self.data.get("targets")
        kept["protocol"] = {key: value for key, value in dict(self.data["protocol"]).items() if key != "text"}
        kept["store"] = self.data["store"]["digest"]
        return json.dumps(kept, sort_keys=True)


@dataclass(frozen=True)
class Run:
    """The record of one run of a sweep.

    Attributes:
        name, group, seed, settings: as planned by the sweep; seeds of one `group` are aggregated.
        standing: a state of toolkit/rundir/status.py, or `missing` if there is no directory.
        problem: why its scores are not in the tables; None if they are.
        split: that its config scores, and so the name of its own result.
        lr, batch, best_by: of its training; None without one.
        elapsed_s: from the first to the last line of its log, including time in the queue.
        rate: training sequences per second, last logged value.
        peak_memory: bytes, of rank 0 in training: allocated on the GPU, or resident memory of the process.
    """

    name: str
    group: str
    seed: int
    settings: Mapping[str, object]
    folder: Path
    standing: str
    problem: str | None
    step: int | None = None
    steps: int | None = None
    best_step: int | None = None
    elapsed_s: float | None = None
    rate: float | None = None
    peak_memory: int | None = None
    train: Curve = ()
    val: Curve = ()
    results: tuple[Result, ...] = ()
    env: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    lr: float | None = None
    batch: int | None = None
    best_by: str | None = None

    @property
    def scored(self) -> tuple[Result, ...]:
        """Results that are included: those of a finished run."""
        return self.results if self.problem is None else ()


@dataclass(frozen=True)
class Sweep:
    """The runs of a report in the order of the sweep, and the number of other run directories."""

    name: str
    folder: Path
    runs: tuple[Run, ...]
    others: int

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(run.group for run in self.runs))


def collect(folder: Path) -> Sweep:
    """Read a sweep directory, a folder of run directories, or one run directory.

    Raises:
        ConfigError: no such directory, or sweep.yaml cannot be read.
        ToolkitError: a result cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; pass the folder of a sweep, for example runs/demo")
    if (folder / RECORD_NAME).exists():
        name, recorded = read_record(folder)
        runs = tuple(map(_read_run, recorded))
        planned = {run.folder.resolve() for run in runs}
        return Sweep(name, folder, runs, sum(path.resolve() not in planned for path in _find_runs(folder)))
    found = _find_runs(folder)
    if not found:
        raise ConfigError(
            f"{folder}: no sweep.yaml and no run directory below it; start runs: {command('sweep', 'FILE')}"
        )
    configs = [RunDir(path).config() for path in found]
    labels = _label_groups(folder, found, configs)
    runs = tuple(
        _read_run(RecordedRun(RunDir(path), path.name, label, config.seed, settings))
        for path, label, config, settings in zip(found, labels, configs, _differing(configs), strict=True)
    )
    order = {group: place for place, group in enumerate(dict.fromkeys(labels))}
    return Sweep(folder.resolve().name, folder, tuple(sorted(runs, key=lambda run: (order[run.group], run.seed))), 0)


def _find_runs(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files:
            found.append(Path(parent))
            folders.clear()  # a run contains a snapshot of the code, including configs
    return found


def _label_groups(folder: Path, found: Sequence[Path], configs: Sequence[RunConfig]) -> list[str]:
    """Return the groups of runs without a sweep, named as their directories, without hash and seed where that is clear.

    Runs whose configs differ in the seed alone are one group; runs with the same seed are groups of their own.
    """
    alike: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        values = {key: value for key, value in config.identity().items() if key != "seed"}
        alike.setdefault(json.dumps(values, sort_keys=True), []).append(place)
    groups = []
    for places in alike.values():
        distinct = len({configs[place].seed for place in places}) == len(places)
        groups += [places] if distinct else [[place] for place in places]
    names = [_group_name([(found[place].resolve().name, configs[place]) for place in places]) for places in groups]
    labels = [""] * len(found)
    for places, name in zip(groups, names, strict=True):
        paths = ", ".join(str(found[place].relative_to(folder)) for place in places)
        for place in places:
            labels[place] = name if names.count(name) == 1 else paths
    return labels


def _group_name(runs: Sequence[tuple[str, RunConfig]]) -> str:
    names = [name.removesuffix(f"-{config.hash8()}") for name, config in runs]
    if len(runs) == 1:
        return names[0]
    suffix = r"([-_. ]?seed|(^|[-_. ])s)[-_]?0*"  # not the s of `classes1`
    stems = (re.sub(rf"{suffix}{runs[place][1].seed}$", "", name) for place, name in enumerate(names))
    return ", ".join(dict.fromkeys(stem or name for stem, name in zip(stems, names, strict=True)))


def _differing(configs: Sequence[RunConfig]) -> list[dict[str, object]]:
    """Return the model of each run, and the settings (except the seed) that differ between runs of its model."""
    flat = [flatten(config.identity()) for config in configs]
    found = []
    for own in flat:
        alike = [other for other in flat if other["model.name"] == own["model.name"]]
        keys = {key for other in alike for key in {*own, *other} if own.get(key) != other.get(key)} - {"seed"}
        found.append({key: own.get(key, "default") for key in ("model.name", *sorted(keys))})
    return found


def _read_run(recorded: RecordedRun) -> Run:
    run, plan = recorded.run, (recorded.name, recorded.group, recorded.seed, recorded.settings, recorded.run.path)
    if not run.config_file.exists():
        return Run(*plan, "missing", f"no run directory {run.path.name}")
    state, view = run.read_state(), read_status(run, recorded.name)
    train, val, best_step, elapsed, rate = _read_metrics(run.metrics_file)
    settings = _settings(run)
    results = tuple(_read_results(run, settings.get("split", "")))
    problem = _problem(run, view, results)
    return Run(
        *plan,
        view.state,
        problem,
        step=view.step,
        steps=view.steps,
        best_step=best_step,
        elapsed_s=elapsed,
        rate=rate,
        peak_memory=state.get("peak_memory"),
        train=train,
        val=val,
        results=results,
        env=run.read_env(),
        **settings,
    )


def _settings(run: RunDir) -> dict[str, Any]:
    """Return what the report shows of a run's config."""
    try:
        config = run.config()
    except ConfigError as error:
        logger.warning("%s: its split and settings of training are not known: %s", run.path, first_line(str(error)))
        return {}
    trained = isinstance(config.model, FileModel) or entry_of(config.model).trained
    shown = {name: getattr(config.train, name) for name in ("lr", "batch", "best_by")} if trained else {}
    return {"split": config.eval.split, **shown}


def _problem(run: RunDir, view: RunView, results: tuple[Result, ...]) -> str | None:
    """Return why a run is excluded, or None; scores of an unfinished training are always excluded."""
    if run.done:
        if results:
            return None
        failure = run.failure()
        why = f"failed: {first_line(failure)}" if failure else "run " + command("evaluate", "--run", run.path)
        return f"trained, not evaluated ({why})"
    at = "" if view.step is None else f" at step {view.step:,}" + ("" if view.steps is None else f" of {view.steps:,}")
    excluded = "; its scores are excluded" if results else ""
    if view.state == "failed":
        return f"failed{at}: {first_line(run.failure() or 'no reason given')}{excluded}"
    return f"{'not started' if view.state == 'new' else view.state}{at}{excluded}"


def _read_results(run: RunDir, split: str) -> list[Result]:
    """Return the run's own results first. Of two that differ in their metrics alone, the one with more is kept, as
    scores of the first one, and with its cost.

    Args:
        split: that the run's config scores; "": not known.
    """
    results: list[Result] = []
    for stem, path in run.scores().items():
        name, _, which = stem.rpartition("-")
        if which not in CHECKPOINTS:
            continue
        data = read_result(path)
        samples = path.with_name(f"{stem}.samples.npz")
        own = name == split or (not split and "+" not in name)
        result = Result(name, which, data, samples if samples.exists() else None, path.parent, own)
        place = next((place for place, known in enumerate(results) if known.key == result.key), len(results))
        if place == len(results):
            results.append(result)
            continue
        known = results[place]
        if known.metrics < result.metrics and known.data.get("step") == data.get("step"):
            cost = {key: known.data[key] for key in ("seconds", "world_size") if key in known.data}
            results[place] = replace(result, data={**data, **cost}, own=known.own)
        else:
            logger.info("not in the tables: %s: %s has its scores", path, known.name)
    return results


def _read_metrics(path: Path) -> tuple[Curve, Curve, int | None, float | None, float | None]:
    """Return (training loss, validation MSE, best step, elapsed seconds, sequences per second) from metrics.jsonl."""
    train: dict[int, float] = {}
    val: dict[int, float] = {}
    best_step, times, rates = None, [], []
    for record in read_metrics(path):
        line = keep_typed(record, dict.fromkeys(("loss", "mse", "seq_per_s", "time"), float))
        step, kind = line["step"], line["kind"]
        if kind == "train" and line.get("loss") is not None:
            train[step] = float(line["loss"])
            rates += [float(line["seq_per_s"])] if line.get("seq_per_s") else []
        elif kind == "val" and line.get("mse") is not None:
            val[step] = float(line["mse"])
            best_step = step if line.get("best") else best_step
        if "time" in line:
            times.append(float(line["time"]))
    elapsed = max(times) - min(times) if times else None
    return tuple(sorted(train.items())), tuple(sorted(val.items())), best_step, elapsed, rates[-1] if rates else None
