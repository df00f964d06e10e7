"""The model card of an export: one Markdown text in which every score names the file that it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.manifest import Manifest
from toolkit import __version__
from toolkit.config import RunConfig
from toolkit.config.channels import choose_channels, input_frames
from toolkit.config.sections import TrainConfig
from toolkit.models.base import count_parameters
from toolkit.models.cost import count_macs
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir, read_result
from toolkit.shipped import command
from toolkit.table import Row, Table
from toolkit.wording import computed_on

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
COUNTS = ("events", "forecasts")  # kept beside the scores, but no scores


def model_card(run: RunDir, config: RunConfig, manifest: Manifest, step: int, averaged: bool = False) -> str:
    """Return the text of README.md; `averaged`: of the moving average of the weights at that step.

    Raises:
        ToolkitError: a result of the run can't be read.
    """
    entry = entry_of(config.model)
    sections = [
        f"# {config.name}",
        f"{entry.title} ({entry.paper}), "
        + (
            f"trained for {step:,} optimizer steps{', moving average of the weights' * averaged}. "
            if entry.trained
            else "which has no parameters. "
        )
        + f"It forecasts {config.data.horizon} frames from {config.data.context}; other numbers of frames work too.",
        _loading(config, manifest),
        "## Data\n\n" + _listed(_data(config, manifest)),
        "## Scores\n\n" + _scores(run, step, averaged),
        "## Model and training\n\n" + _listed(_model(run, config, manifest, step)),
    ]
    return "\n\n".join(sections) + "\n"


def _listed(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in facts.items() if text)


def _loading(config: RunConfig, manifest: Manifest) -> str:
    channels, height, width = input_frames(config.data, manifest.frames).shape
    scale = manifest.scale
    code = f"""\
```python
import torch
import toolkit
model = toolkit.load("FOLDER")  # this one
frames = torch.rand(1, {config.data.context}, {channels}, {height}, {width})  # [B, T, C, H, W]
forecast = model.predict(frames)[0]
```"""
    missing = "" if scale.missing_code is None else ", 0 where a pixel is missing"
    return (
        "## Use\n\n"
        f"With toolkit {__version__} or later installed, and Python started elsewhere (it would import what lies in "
        f"this folder):\n\n{code}\n\n"
        f"A frame is {scale.quantity} as code / {scale.max_code}, in 0..1{missing}; a code stands for the value "
        f"{scale.offset:g} + {scale.gain:g} × code, in {scale.unit}. The forecast has the same unit and is not clamped."
        + _channels(config, manifest)
    )


def _channels(config: RunConfig, manifest: Manifest) -> str:
    """Return the channels that the model reads and predicts; empty where it takes all of the store."""
    choice = choose_channels(config.data, manifest.frames, manifest.name)
    if choice is None:
        return ""
    beyond = "keep their last observation" if config.data.beyond == "hold" else "are 0, static ones excepted"
    others = f" Later inputs that are not predicted {beyond}." if choice.only_inputs else ""
    return (
        f"\n\nChannels of a frame: {', '.join(choice.names)}; of the forecast: {', '.join(choice.target_names)}, which "
        f"the scale is of.{others}"
    )


def _data(config: RunConfig, manifest: Manifest) -> dict[str, str]:
    channels, height, width = manifest.frames.shape
    source, data = manifest.source, config.data
    clock = "" if manifest.step_seconds is None else f", one every {manifest.step_seconds:g} s"
    return {
        "store": f"{manifest.name}, digest `{manifest.digest}`",
        "source": f"{source.name}. {source.citation} {source.url}".strip(),
        "licence of the data": source.licence,
        "frames": f"{height} × {width} pixels, {channels} channel{'s' if channels > 1 else ''}{clock}",
        "trained on": f"split `{data.train_split}`" + (f", modes {', '.join(data.modes)}" if data.modes else "")
        if entry_of(config.model).trained
        else "",
    }


def _model(run: RunDir, config: RunConfig, manifest: Manifest, step: int) -> dict[str, str]:
    train, trained = config.train, entry_of(config.model).trained
    options = ", ".join(f"{key} {value}" for key, value in config.model if key != "name")
    context, horizon = config.data.context, config.data.horizon
    frames = context + horizon
    macs = count_macs(config.model, input_frames(config.data, manifest.frames), context, horizon) if trained else 0
    env = run.read_env()
    git = env.get("git") or {}
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    packages = env.get("packages", {})
    return {
        "model": f"`{config.model.name}`" + (f" ({options})" if options else ""),
        "paper": entry_of(config.model).paper,
        "parameters": f"{count_parameters(config.model, input_frames(config.data, manifest.frames)):,}",
        "multiply-accumulates": f"{macs:,} for one forward pass over {frames} frames" if trained else "",
        "training": f"step {step:,} of {train.steps:,}, batch {train.batch}, {_recipe(train)}, {train.precision}, "
        f"seed {config.seed}" + (f"; on {computed_on(env['trained_on'])}" if "trained_on" in env else "")
        if trained
        else "none",
        "run": f"`{run.path.name}`, identity `{config.hash8()}`",
        "code": f"git `{git['commit']}`{dirty}" if git.get("commit") else "not from a git checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }


def _recipe(train: TrainConfig) -> str:
    """Return the optimizer and the loss, and what differs from the simplest recipe."""
    source = Path(train.init_from.path).name
    parts = {
        f"{OPTIMIZERS[train.optimizer]} {train.lr:g}": True,
        f"{train.schedule.kind} schedule": train.schedule.kind != "constant",
        f"weight decay {train.weight_decay:g}": train.weight_decay,
        f"loss {train.loss.kind}": True,
        f"initial weights of {source}": source,
    }
    return ", ".join(text for text, shown in parts.items() if shown)


def _scores(run: RunDir, step: int, averaged: bool) -> str:
    """Return a table for each split, from the evaluation of the exported weights."""
    found: dict[str, tuple[Path, dict[str, object]]] = {}
    for path in run.scores().values():
        result = read_result(path)
        if result.get("step") == step and (result.get("which") == "ema") == averaged:
            found.setdefault(str(result.get("split")), (path, result))
    if not found:
        return (
            "These weights are not scored. To score the run's checkpoints: "
            f"`{command('evaluate', '--run', 'RUN')}`, then export again."
        )
    return "\n\n".join(_score_table(f"{run.path.name}/eval/{path.name}", result) for path, result in found.values())


def _score_table(file: str, result: Mapping[str, Any]) -> str:
    protocol, ensemble = result["protocol"], result.get("ensemble")
    names = [name for name in result["overall"] if name.partition("@")[0] not in COUNTS]
    groups = {"all sequences": result["overall"], **{f"mode {mode}": of for mode, of in result["modes"].items()}}
    rows = [Row(("model, " + group, *_values(scores, names))) for group, scores in groups.items()]
    rows.append(Row(("persistence, all sequences", *_values(result["persistence"]["overall"], names))))
    limit = f" (only the first {result['limit']:,})" if result.get("limit") else ""
    lines = [
        f"Split `{result['split']}`, sequences: {result['n']:,}{limit}, {result['context']} → {result['horizon']} "
        f"frames, protocol `{protocol['name']}` ({protocol.get('title', '')}), from `{file}`. "
        f"`@K`: at K {result['unit']}.",
        "",
        Table(("", *names), rows).to_markdown(),
        *(f"- {sentence}" for sentence in [*protocol.get("text", []), *([ensemble["text"]] if ensemble else [])]),
    ]
    return "\n".join(lines)


def _values(scores: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return ["n/a" if (value := scores.get(name)) is None else f"{value:.5g}" for name in names]
