"""Plan the runs of a sweep file. Imports neither torch nor anything that starts a job.

    name: demo                      # folder below runs/; default: the file's name
    base: ../demo.yaml              # config file or files, relative to this file
    seeds: [1, 2]                   # an axis; `seeds: 3` means 1, 2, 3
    set: {train.steps: 300}         # applied to every run
    list:                           # one entry, one variant; `base:` adds config files, `name:` names it
      - {base: ../models/modernn.yaml, model.slots: 4}
      - {base: ../models/convlstm.yaml, name: baseline}
    grid: {train.lr: [1e-3, 3e-4]}  # every combination
    zip: {data.context: [10, 5], data.horizon: [10, 15]}             # in step
    exclude: [{model.name: convlstm, train.lr: 1e-3}]                # runs for which all of these hold
    resources: {time: 6:00:00, mem: 32G}  # what its jobs ask of a cluster, over the profile; also in an entry of `list`

    include: [a.yaml, b.yaml]       # instead of all these but `name`: the runs of other sweep files

The runs are list x grid x zip x seeds, without `exclude`, each config once; configs that differ in `eval` alone are one
run, scored in several ways. A key of `model` in `grid` applies to the models that have it. Precedence, lowest first:
the base files, the entry's base files, `set`, the entry, grid, zip, the seed, `--set` of the command line. A
`model.name` is applied first, because it replaces the section `model`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from launch.sweeps.naming import label_runs
from launch.sweeps.values import (
    MOST_RUNS,
    Axes,
    Dotted,
    Files,
    Items,
    Name,
    Resources,
    Seeds,
    as_entries,
    in_step,
    with_texts,
)
from toolkit.config import RunConfig, make_config, model_options
from toolkit.config.tree import flatten, is_of_a_run, lay, merge, read_mapping, read_tree, with_overrides
from toolkit.errors import ConfigError
from toolkit.models.plugins import with_absolute_path
from toolkit.shipped import command, find_config
from toolkit.wording import count, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SHOWN_FAULTS = 10  # a fault in `set` is in every run: the first few are enough
Settings = Mapping[str, object]  # {"train.lr": 1e-3}


class Entry(BaseModel, frozen=True):
    """One item of `list`."""

    where: str
    label: Name | None = Field(None, alias="name")
    base: Files = ()
    resources: Resources = {}
    settings: Dotted = {}

    @model_validator(mode="before")
    @classmethod
    def _with_settings(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping such as {{model.slots: 4}}, got {value!r}")
        own = {key: value[key] for key in ("where", "name", "base", "resources") if key in value}
        return {**own, "settings": {key: item for key, item in value.items() if key not in own}}


class SweepSpec(BaseModel, frozen=True, extra="forbid"):
    """A sweep file, checked, but not yet multiplied out."""

    file: Path
    name: Name
    include: Files = ()
    base: Files = ()
    seeds: Seeds = ()
    common: Dotted = Field({}, alias="set")
    entries: Annotated[tuple[Entry, ...], BeforeValidator(as_entries)] = Field((Entry(where="the base"),), alias="list")
    grid: Axes = {}
    zip: Annotated[Axes, AfterValidator(in_step)] = {}
    exclude: Annotated[tuple[Dotted, ...], Items] = ()
    resources: Resources = {}

    @property
    def size(self) -> int:
        """The number of combinations."""
        axes = math.prod(len(values) for values in self.grid.values())
        return len(self.entries) * axes * self.steps * max(1, len(self.seeds))

    @property
    def steps(self) -> int:
        """The length of the lists of `zip`."""
        return max((len(values) for values in self.zip.values()), default=1)


KEYS = tuple(field.alias or name for name, field in SweepSpec.model_fields.items() if name != "file")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    `settings` holds what varies over the sweep, by dotted key; `group` is the name without the seed. `scorings` are
    configs that differ in `eval` alone: the run is trained once and scored by each. `resources` are keys of a cluster's
    profile, and no part of its identity.
    """

    name: str
    group: str
    seed: int
    settings: Settings
    config: RunConfig
    hash8: str
    scorings: tuple[RunConfig, ...] = ()
    resources: Mapping[str, object] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.hash8}"


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep in order, how many combinations were left out, and which axes do not apply to all runs."""

    file: Path
    name: str
    runs: tuple[PlannedRun, ...]
    duplicates: int
    excluded: int
    notes: tuple[str, ...]


def plan_sweep(
    path: str | Path, overrides: Iterable[str] = (), axes: Mapping[str, Sequence[object]] | None = None
) -> SweepPlan:
    """Read a sweep file and plan its runs; `overrides` (`a.b=value`) are applied to every run, last.

    Args:
        axes: values that replace or extend the file's `seeds` and `grid`, by key.

    Raises:
        ConfigError: with every fault of the file, or every fault of the configs that it describes.
    """
    spec = read_spec(find_config(Path(path)))
    found = _Found(flatten(with_overrides({}, overrides)))
    axes = axes or {}
    grid = {key: values for key, values in axes.items() if key != "seeds"}
    for part in _parts(spec):
        update = {"grid": {**part.grid, **grid}, "seeds": tuple(axes.get("seeds", part.seeds))}
        found.add(part.model_copy(update=update))
    return found.plan(spec)


def _parts(spec: SweepSpec) -> list[SweepSpec]:
    """Return the sweep files whose runs form a sweep: itself, or those that it includes."""
    if not spec.include:
        return [spec]
    parts = [read_spec(spec.file.parent / name) for name in spec.include]
    for part in parts:
        if part.include:
            raise ConfigError(f"{spec.file}: include {part.file}: it includes others itself; name those files here")
    return parts


def read_spec(path: Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        ConfigError: listing all faults at once; unknown keys come with the nearest known one.
    """
    tree = read_mapping(path, f"the keys {', '.join(KEYS)}", "no such sweep file")
    if is_of_a_run(path):
        raise ConfigError(f"{path}: is the config of a run, not a sweep file: name it under `base:` of one, or copy it")
    if "model" in tree or "train" in tree:
        raise ConfigError(
            f"{path}: is the config of one run: {command('train')} --config {path}, or name it under `base:` of a sweep"
        )
    if "resources" in tree or "list" in tree:
        tree = with_texts(tree, path)
    faults = ["file: unknown key; known here: " + ", ".join(KEYS)] if "file" in tree else []
    mixed = sorted(set(tree) & set(KEYS) - {"name", "include"})
    if "include" in tree and mixed:
        faults.append(f"include: goes with `name` only; put {', '.join(mixed)} into a sweep file and include it")
    try:
        spec = SweepSpec.model_validate({"name": path.stem, **tree, "file": path}, context=path)
    except ValidationError as error:
        faults += [_explain(fault) for fault in error.errors()]
    if faults:
        lines = "\n".join(f"  {line}" for line in faults)
        raise ConfigError(
            f"{path}: {count(len(faults), 'fault')}\n{lines}\nSee launch/sweeps/spec.py for what a sweep file holds."
        )
    if spec.size > MOST_RUNS:
        raise ConfigError(
            f"{path}: list x grid x zip x seeds are {spec.size:,} runs; at most {MOST_RUNS:,} are planned"
        )
    return spec


def _explain(fault: ErrorDetails) -> str:
    where = ", ".join(f"entry {part + 1}" if isinstance(part, int) else part for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(where, KEYS) or 'known here: ' + ', '.join(KEYS)}"
    return f"{where}: {str(fault['msg']).removeprefix('Value error, ')}"


class _Found:
    """The runs of one or several sweep files, each config once."""

    def __init__(self, final: Settings) -> None:
        self.final = final
        self.configs: dict[str, tuple[RunConfig, Entry]] = {}  # by hash
        self.trainings: dict[str, str] = {}  # hash without `eval` -> hash of the first such config, which is the run's
        self.scorings: dict[str, dict[str, RunConfig]] = {}  # hash of the run -> others, by hash
        self.resources: dict[str, tuple[Mapping[str, object], str]] = {}  # of the run, and who asks for them
        self.faults: dict[str, None] = {}  # in order, each once
        self.options: set[str] = set()  # of all models
        self.lacking: dict[str, dict[str, str]] = {}  # axis -> trainings and models that have no such option
        self.points = self.duplicates = self.excluded = 0

    def add(self, spec: SweepSpec) -> None:
        """Multiply a sweep file out."""
        bases = _BaseFiles(spec.file)
        excludes = [_Exclude(number, settings, spec.file.parent) for number, settings in enumerate(spec.exclude, 1)]
        for entry, settings in _points(spec):
            self.points += 1
            base = bases.merged((*spec.base, *entry.base))
            try:
                tree, lacking = self._tree(spec, base, entry, settings)
                config = make_config(tree, f"{spec.file}: {entry.where}", typed=True)
            except ConfigError as error:
                self.faults[str(error)] = None
                continue
            fits = [exclude.holds(tree, config) for exclude in excludes]
            if any(fits):
                self.excluded += 1
                continue
            self._keep(config, entry, spec)
            for key in lacking:
                self.lacking[key][config.hash8(scoring=False)] = config.model.name
        for exclude in excludes:
            if exclude.faults and exclude.asked == len(exclude.faults):
                self.faults[f"{spec.file}: exclude, entry {exclude.number} fits no run: {exclude.faults[0]}"] = None

    def _tree(
        self, spec: SweepSpec, base: Settings, entry: Entry, settings: Settings
    ) -> tuple[dict[str, object], list[str]]:
        """Return the values of a run, and the axes that its model has no key for, which are left out of them."""

        def laid(settings: Settings) -> dict[str, object]:
            tree = lay(base, [spec.common, entry.settings, settings, self.final])
            return with_absolute_path(tree, spec.file.parent)

        tree = laid(settings)
        options = model_options(tree)
        self.options |= options
        lacking = [key for key in spec.grid if options and key.startswith("model.") and _option(key) not in options]
        for key in lacking:
            self.lacking.setdefault(key, {})
        return laid({key: settings[key] for key in settings if key not in lacking}) if lacking else tree, lacking

    def _keep(self, config: RunConfig, entry: Entry, spec: SweepSpec) -> None:
        hash8 = config.hash8()
        run = self.trainings.setdefault(config.hash8(scoring=False), hash8)
        asked, where = {**spec.resources, **entry.resources}, f"{spec.file}: {entry.where}"
        known, first = self.resources.setdefault(run, (asked, where))
        if asked != known:
            self.faults[f"{where}: one run with other resources in {first}: {asked} and {known}; give it one"] = None
        others = self.scorings.setdefault(run, {})
        self.duplicates += hash8 in self.configs or hash8 in others
        if run == hash8:
            self.configs.setdefault(hash8, (config, entry))
        else:
            others[hash8] = config

    def plan(self, spec: SweepSpec) -> SweepPlan:
        """Return the runs with their names.

        Raises:
            ConfigError: with the faults of all configs, or when there is no run.
        """
        known = sorted(f"model.{name}" for name in self.options)
        for key in self.lacking:
            if _option(key) not in self.options:
                hint = nearest(key, known) or f"known here: {', '.join(known)}"
                self.faults[f"{spec.file}: {key}: no model of this sweep has this key; {hint}"] = None
        if self.faults:
            texts = list(self.faults)
            more = [f"... and {len(texts) - SHOWN_FAULTS} more such messages"] if len(texts) > SHOWN_FAULTS else []
            raise ConfigError("\n".join(texts[:SHOWN_FAULTS] + more))
        if not self.configs:
            raise ConfigError(f"{spec.file}: plans no run: all {self.points} are excluded; look at `exclude`")
        runs = _named(spec.file, self)
        return SweepPlan(spec.file, spec.name, runs, self.duplicates, self.excluded, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        for key, found in self.lacking.items():
            without = [model for training, model in found.items() if training in self.trainings]
            models = ", ".join(sorted(set(without)))
            yield f"note: {key} does not apply to {count(len(without), 'run')} of models without that key ({models})"


def _points(spec: SweepSpec) -> Iterator[tuple[Entry, Settings]]:
    """Every combination: the list is the outermost axis, seeds the innermost."""
    axes = [[(key, value) for value in values] for key, values in spec.grid.items()]
    seeds: Sequence[Settings] = [{"seed": seed} for seed in spec.seeds] or [{}]
    for entry, combination, step, seed in itertools.product(
        spec.entries, itertools.product(*axes), range(spec.steps), seeds
    ):
        in_step = {key: values[step] for key, values in spec.zip.items()}
        yield entry, {**dict(combination), **in_step, **seed}


def _option(key: str) -> str:
    """Return the option of a model that an axis sets: `slots` for `model.slots`."""
    return key.split(".")[1]


class _BaseFiles:
    """Merged base files, each read once: a sweep of 153 runs names few."""

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.read: dict[str, dict[str, object]] = {}
        self.cache: dict[tuple[str, ...], dict[str, object]] = {}

    def merged(self, files: tuple[str, ...]) -> dict[str, object]:
        """Merge the configs of several files; later ones take precedence."""
        if files not in self.cache:
            tree: dict[str, object] = {}
            for name in files:
                if name not in self.read:
                    self.read[name] = self._tree(name)
                tree = merge(tree, self.read[name])
            self.cache[files] = tree
        return self.cache[files]

    def _tree(self, name: str) -> dict[str, object]:
        try:
            return read_tree(find_config(Path(name), self.sweep.parent))
        except ConfigError as error:
            raise ConfigError(f"{self.sweep}: base {name}: {error}") from None


class _Exclude:
    """One entry of `exclude`: it holds for a run that it would not change."""

    def __init__(self, number: int, settings: Settings, folder: Path) -> None:
        self.folder = folder
        self.number = number
        self.settings = settings
        self.asked = 0
        self.faults: list[str] = []

    def holds(self, tree: Mapping[str, object], config: RunConfig) -> bool:
        # Laying the values on and comparing resolved configs makes 1e-3, "1e-3" and a default of 0.001 the same.
        self.asked += 1
        try:
            laid = with_absolute_path(lay(tree, [self.settings]), self.folder)
            return make_config(laid, "with it", typed=True) == config
        except ConfigError as error:  # for example model.slots laid on a model without slots
            self.faults.append(str(error))
            return False


def _named(file: Path, found: _Found) -> tuple[PlannedRun, ...]:
    configs = found.configs
    labels = label_runs([(config, entry.label) for config, entry in configs.values()], origin=str(file))
    return tuple(
        PlannedRun(
            name=label.name,
            group=label.group,
            seed=config.seed,
            settings=label.settings,
            config=config.model_copy(update={"name": label.name}),
            hash8=hash8,
            scorings=tuple(found.scorings[hash8].values()),
            resources=found.resources[hash8][0],
        )
        for (hash8, (config, _)), label in zip(configs.items(), labels, strict=True)
    )
