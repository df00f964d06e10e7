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

    include: [a.yaml, b.yaml]       # instead of all these but `name`: the runs of other sweep files

The runs are list x grid x zip x seeds, without `exclude`, each config once. Precedence, lowest first: the base
files, the entry's base files, `set`, the entry, grid, zip, the seed, `--set` of the command line. A `model.name` among
these settings is applied first, because it replaces the section `model`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from launch.sweeps.naming import label_runs
from toolkit.config import RunConfig, make_config
from toolkit.errors import ConfigError
from toolkit.shipped import find_config, instead_of
from toolkit.tree import flatten, merge, nested, read_tree, with_overrides
from toolkit.wording import nearest

KEYS = ("name", "include", "base", "seeds", "set", "list", "grid", "zip", "exclude")
SHOWN_FAULTS = 10  # a fault in `set` shows up in every run; the first few say it all
Settings = Mapping[str, object]  # {"train.lr": 1e-3}


@dataclass(frozen=True)
class Entry:
    """One item of `list`."""

    where: str
    label: str | None = None
    base: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class SweepSpec:
    """A sweep file, checked, but not yet multiplied out."""

    file: Path
    name: str
    include: tuple[str, ...]
    base: tuple[str, ...]
    seeds: tuple[int, ...]
    common: Settings
    entries: tuple[Entry, ...]
    grid: Mapping[str, Sequence[object]]
    zip: Mapping[str, Sequence[object]]
    exclude: tuple[Settings, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    `settings` holds what varies over the sweep, by dotted key; `group` is the name without the seed.
    """

    name: str
    group: str
    seed: int
    settings: Settings
    config: RunConfig
    hash8: str

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.hash8}"


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep in order, and how many combinations were left out."""

    file: Path
    name: str
    runs: tuple[PlannedRun, ...]
    duplicates: int
    excluded: int


def plan_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepPlan:
    """Read a sweep file and plan its runs; `overrides` (`a.b=value`) are applied to every run, last.

    Raises:
        ConfigError: with every fault of the file, or every fault of the configs that it describes.
    """
    spec = read_spec(find_config(Path(path)))
    found = _Found(flatten(with_overrides({}, overrides)))
    for part in _parts(spec):
        found.add(part)
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
    tree = _load(path)
    if "model" in tree or "train" in tree:
        raise ConfigError(
            f"{path}: is the config of one run: python launch/train.py --config {path}, or name it under `base:` of a "
            "sweep file"
        )
    reader = _Reader()
    for key in tree:
        if key not in KEYS:
            reader.faults.append(f"{key}: unknown key; {nearest(str(key), KEYS) or _known()}")
    name = tree.get("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        reader.faults.append(f"name: {name!r} can't be a folder name; use letters, digits, '.', '_', '+' and '-'")
    mixed = sorted(set(tree) & set(KEYS) - {"name", "include"})
    if "include" in tree and mixed:
        reader.faults.append(f"include: goes with `name` only; put {', '.join(mixed)} into a sweep file and include it")
    spec = SweepSpec(
        file=path,
        name=str(name),
        include=reader.files("include", tree.get("include")),
        base=reader.files("base", tree.get("base")),
        seeds=reader.seeds(tree.get("seeds")),
        common=reader.settings("set", tree.get("set")),
        entries=reader.entries(tree.get("list")),
        grid=reader.axes("grid", tree.get("grid")),
        zip=reader.axes("zip", tree.get("zip"), in_step=True),
        exclude=tuple(
            reader.settings(f"exclude, entry {number}", item)
            for number, item in enumerate(reader.items("exclude", tree["exclude"]) if "exclude" in tree else (), 1)
        ),
    )
    if reader.faults:
        count = "1 fault" if len(reader.faults) == 1 else f"{len(reader.faults)} faults"
        lines = "\n".join(f"  {line}" for line in reader.faults)
        raise ConfigError(f"{path}: {count}\n{lines}\nSee launch/sweeps/spec.py for what a sweep file holds.")
    return spec


def _known() -> str:
    return f"known here: {', '.join(KEYS)}"


def _load(path: Path) -> dict[str, object]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such sweep file. {instead_of(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}; give a sweep file") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping ({_known()}), found {type(tree).__name__}")
    return tree


class _Reader:
    """Turns the parts of a sweep file into typed values and collects what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def items(self, where: str, value: object) -> list[object]:
        if not isinstance(value, list) or not value:
            self.faults.append(f"{where}: must be a list of at least one item, got {value!r}")
            return []
        return value

    def files(self, where: str, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.faults.append(f"{where}: must be a file name or a list of them, got {value!r}")
            return ()
        return tuple(names)

    def seeds(self, value: object) -> tuple[int, ...]:
        """`seeds:`, a list or n for 1 to n."""
        if value is None:
            return ()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return tuple(range(1, value + 1))
        if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
            return tuple(value)
        self.faults.append(f"seeds: must be a list of whole numbers, or n for 1 to n, got {value!r}")
        return ()

    def settings(self, where: str, value: object) -> Settings:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.faults.append(f"{where}: must be a mapping such as {{train.lr: 1e-3}}, got {value!r}")
            return {}
        return flatten(value)

    def entries(self, value: object) -> tuple[Entry, ...]:
        """`list:`, single runs; without it the base is the only one."""
        if value is None:
            return (Entry(where="the base"),)
        entries = []
        for number, item in enumerate(self.items("list", value), 1):
            where = f"list, entry {number}"
            if not isinstance(item, dict):
                self.faults.append(f"{where}: must be a mapping such as {{model.slots: 4}}, got {item!r}")
                continue
            label = item.get("name")
            if label is not None and (not isinstance(label, str) or not re.fullmatch(r"[A-Za-z0-9._+-]+", label)):
                self.faults.append(f"{where}, name: {label!r} must be made of letters, digits, '.', '_', '+' and '-'")
            rest = {key: setting for key, setting in item.items() if key not in ("base", "name")}
            base = self.files(f"{where}, base", item.get("base"))
            entries.append(Entry(where, label, base, self.settings(where, rest)))
        return tuple(entries)

    def axes(self, where: str, value: object, in_step: bool = False) -> Mapping[str, Sequence[object]]:
        """`grid:` or, `in_step`, `zip:`, keys with their values."""
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            self.faults.append(f"{where}: must be a mapping of keys to lists, got {value!r}")
            return {}
        axes = {str(key): self.items(f"{where}, {key}", values) for key, values in value.items()}
        if in_step and len({len(values) for values in axes.values()}) > 1:
            lengths = ", ".join(f"{key} has {len(values)}" for key, values in axes.items())
            self.faults.append(f"{where}: lists that go in step need one length; {lengths}")
        return axes


class _Found:
    """The runs of one or several sweep files, each config once."""

    def __init__(self, final: Settings) -> None:
        self.final = final
        self.configs: dict[str, tuple[RunConfig, Entry]] = {}
        self.faults: dict[str, None] = {}  # in order, each once
        self.points = self.duplicates = self.excluded = 0

    def add(self, spec: SweepSpec) -> None:
        """Multiply a sweep file out."""
        bases = _BaseFiles(spec.file)
        excludes = [_Exclude(number, settings) for number, settings in enumerate(spec.exclude, 1)]
        for entry, settings in _points(spec):
            self.points += 1
            tree = lay(bases.merged((*spec.base, *entry.base)), [spec.common, entry.settings, settings, self.final])
            try:
                config = make_config(tree, origin=f"{spec.file}: {entry.where}")
            except ConfigError as error:
                self.faults[str(error)] = None
                continue
            fits = [exclude.holds(tree, config) for exclude in excludes]
            if any(fits):
                self.excluded += 1
                continue
            hash8 = config.hash8()
            self.duplicates += hash8 in self.configs
            self.configs.setdefault(hash8, (config, entry))
        for exclude in excludes:
            if exclude.faults and exclude.asked == len(exclude.faults):
                self.faults[f"{spec.file}: exclude, entry {exclude.number} fits no run: {exclude.faults[0]}"] = None

    def plan(self, spec: SweepSpec) -> SweepPlan:
        """Return the runs with their names.

        Raises:
            ConfigError: with the faults of all configs, or when there is no run.
        """
        if self.faults:
            texts = list(self.faults)
            more = [f"... and {len(texts) - SHOWN_FAULTS} more such messages"] if len(texts) > SHOWN_FAULTS else []
            raise ConfigError("\n".join(texts[:SHOWN_FAULTS] + more))
        if not self.configs:
            raise ConfigError(f"{spec.file}: plans no run: all {self.points} are excluded; look at `exclude`")
        return SweepPlan(spec.file, spec.name, _named(spec.file, self.configs), self.duplicates, self.excluded)


def _points(spec: SweepSpec) -> Iterator[tuple[Entry, Settings]]:
    """Every combination: the list is the outermost axis, seeds the innermost."""
    steps = max((len(values) for values in spec.zip.values()), default=1)
    axes = [[(key, value) for value in values] for key, values in spec.grid.items()]
    seeds: Sequence[Settings] = [{"seed": seed} for seed in spec.seeds] or [{}]
    for entry, combination, step, seed in itertools.product(
        spec.entries, itertools.product(*axes), range(steps), seeds
    ):
        in_step = {key: values[step] for key, values in spec.zip.items()}
        yield entry, {**dict(combination), **in_step, **seed}


def lay(tree: Mapping[str, object], layers: Iterable[Settings]) -> dict[str, object]:
    """Lay dotted settings on a tree, later layers over earlier ones, a choice of model before all else."""
    settings = {key: value for layer in layers for key, value in layer.items()}
    result = dict(tree)
    for key in sorted(settings, key=lambda key: key != "model.name"):
        result = merge(result, nested(key, settings[key]))
    return result


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
            return read_tree(self.sweep.parent / name)
        except ConfigError as error:
            raise ConfigError(f"{self.sweep}: base {name}: {error}") from None


class _Exclude:
    """One entry of `exclude`: it holds for a run that it would not change."""

    def __init__(self, number: int, settings: Settings) -> None:
        self.number = number
        self.settings = settings
        self.asked = 0
        self.faults: list[str] = []

    def holds(self, tree: Mapping[str, object], config: RunConfig) -> bool:
        # Laying the values on and comparing resolved configs makes 1e-3, "1e-3" and a default of 0.001 the same.
        self.asked += 1
        try:
            return make_config(lay(tree, [self.settings]), origin="with it") == config
        except ConfigError as error:  # for example model.slots laid on a model without slots
            self.faults.append(str(error))
            return False


def _named(file: Path, configs: Mapping[str, tuple[RunConfig, Entry]]) -> tuple[PlannedRun, ...]:
    labels = label_runs([(config, entry.label) for config, entry in configs.values()], origin=str(file))
    return tuple(
        PlannedRun(
            name=label.name,
            group=label.group,
            seed=config.seed,
            settings=label.settings,
            config=config.model_copy(update={"name": label.name}),
            hash8=hash8,
        )
        for (hash8, (config, _)), label in zip(configs.items(), labels, strict=True)
    )
