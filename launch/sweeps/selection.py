"""Which runs of a plan are submitted: `--only`, `--except`, `--limit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from launch.sweeps.plan import Item
from launch.sweeps.spec import PlannedRun, SweepPlan
from toolkit.config.tree import flatten
from toolkit.errors import ConfigError
from toolkit.wording import nearest, some


def selected(plan: SweepPlan, only: Sequence[str], without: Sequence[str]) -> frozenset[str]:
    """Return the hashes of the runs that fit one of `only` (all, where there is none) and none of `without`.

    A pattern is a name with * and ?, or KEY=VALUE,...: a config key, or its last part, with one of these values.

    Raises:
        ConfigError: a pattern that fits no run, or none is left.
    """
    chosen = {run.hash8 for run in plan.runs}
    if only:
        chosen = set().union(*(_fitting(plan.runs, pattern, "--only") for pattern in only))
    for pattern in without:
        chosen -= _fitting(plan.runs, pattern, "--except")
    if not chosen:
        raise ConfigError(f"--only {' '.join(only)} --except {' '.join(without)}: no run is left; --dry-run lists them")
    return frozenset(chosen)


def _fitting(runs: Sequence[PlannedRun], pattern: str, option: str) -> set[str]:
    key, equals, values = pattern.partition("=")
    if not equals:
        found = {run.hash8 for run in runs if fnmatchcase(run.name, pattern) or run.hash8 == pattern}
        if found:
            return found
        names = [run.name for run in runs]
        hint = nearest(pattern, names) or f"its runs: {some(names)}"
        raise ConfigError(f"{option} {pattern}: fits no run of this sweep; {hint}")
    of_runs = [(run.hash8, _settings(run)) for run in runs]
    fits = {
        name
        for name, settings in of_runs
        if any(_is_key(key, known) and _as_text(value) in values.split(",") for known, value in settings.items())
    }
    if fits:
        return fits
    known = {name for _, settings in of_runs for path in settings for name in (path, path.rpartition(".")[2])}
    there = {_as_text(value) for _, settings in of_runs for at, value in settings.items() if _is_key(key, at)}
    hint = f"its values here: {', '.join(sorted(there))}" if there else nearest(key, known) or "no such key"
    raise ConfigError(f"{option} {pattern}: fits no run of this sweep; {hint}")


def _settings(run: PlannedRun) -> dict[str, object]:
    return flatten(run.config.model_dump(mode="json"))


def _is_key(asked: str, key: str) -> bool:
    """`model` is the model's name, `slots` stands for model.slots."""
    return asked == key or key.endswith(f".{asked}") or (asked == "model" and key == "model.name")


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def narrowed(
    items: Sequence[Item],
    chosen: Collection[str],
    limit: int | None,
    option: str = "--limit",
    now: Collection[Path] | None = None,
) -> list[Item]:
    """Return the items with what is not chosen, or beyond the limit that `option` sets, not submitted.

    Args:
        now: the runs that are submitted, where these are not the first ones.
    """
    left = len(items) if limit is None else limit
    result = []
    for item in items:
        wanted = item.planned.hash8 in chosen
        taken = item.submitted and wanted and left > 0 and (now is None or item.path in now)
        left -= taken
        note = "" if wanted else "not chosen"
        if item.submitted and wanted and not taken:
            note = f"later: {option}"
        result.append(dataclasses.replace(item, submitted=taken, replaced=item.replaced and taken, left_out=note))
    return result
