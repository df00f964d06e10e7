"""A trained model as a folder that needs neither its run directory nor its store.

    model.safetensors    fp32 weights by parameter name; no pickle
    config.json          everything needed to rebuild: the resolved config, frames, scale; what it was made from
    README.md            the model card (toolkit/checkpoint/card.py): what it is, scores, how to load it
    model.py             a model from a file: a copy of it, which is run only where the user names it

The folder appears whole or not at all. A model that is loaded from it gives, bit for bit, what the run's checkpoint
gives. Paths of the machine that trained are not in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards import open_store
from shards.errors import ManifestError
from shards.fields import Fields
from shards.manifest import FrameSpec, Manifest, read_frames
from shards.recent import FRAME_OPTIONS
from toolkit import __version__
from toolkit.atomic import FileWriteError, clear_leftovers, replacing_tree, write_atomic
from toolkit.checkpoint.card import model_card
from toolkit.checkpoint.source import CONFIG
from toolkit.checkpoint.weights import fill, load_model, store_of_run, untrained_model
from toolkit.config import RunConfig, make_config
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import SequenceModel
from toolkit.models.plugins import FileModel, loaded
from toolkit.rundir import RunDir
from toolkit.rundir.layout import check_model_file
from toolkit.shipped import command
from toolkit.wording import first_line

EXPORT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "README.md"


def export_run(run: RunDir, which: str, folder: Path) -> str:
    """Write a run's model into a new folder; returns what was done, in words.

    Args:
        which: `best`, `last`, `ema` or a step number, as for `load_model`.
        folder: must not exist, unless it holds this very export: then only its card is brought up to date.

    Raises:
        CheckpointError: there is no such checkpoint, or a damaged one.
        ConfigError: the folder holds something else.
    """
    config = run.config()
    model, step = load_model(run, which, torch.device("cpu"), store="any")
    manifest = open_store(store_of_run(run, config)).manifest
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    record = _record(config, manifest, step, weights)
    card = model_card(run, config, manifest, step, averaged=which == "ema")
    if os.path.lexists(folder):
        _check_same(folder, record)
        if (folder / CARD).exists() and (folder / CARD).read_text(encoding="utf-8") == card:
            return f"{folder}: already exported; nothing to do"
        write_atomic(folder / CARD, card)
        return f"{folder}: already exported; its {CARD} is brought up to date"
    texts = {CONFIG: json.dumps(record, indent=1) + "\n", CARD: card}
    if isinstance(config.model, FileModel):
        texts[run.model_file.name] = loaded(config.model).text.decode()
    _write_folder(folder, weights, texts)
    return f"{folder}: {config.model.name} at step {step:,}"


def load_exported(path: str | Path, model_file: Path | None = None) -> SequenceModel:
    """Return the model of an exported folder; see `read_export`."""
    return read_export(path, model_file)[0]


def read_export(path: str | Path, model_file: Path | None = None) -> tuple[SequenceModel, RunConfig, dict[str, Any]]:
    """Return the model of an exported folder (CPU, fp32, evaluation mode), the config of its run, and config.json.

    Args:
        path: of the folder.
        model_file: the file that its model is from, which is then run; None: the model is one of the toolkit's.

    Raises:
        CheckpointError: it is no such folder, was written by a later version, or is damaged.
        ConfigError: its config names what this version doesn't know.
    """
    folder = Path(path)
    record = _read_record(folder)
    try:
        origin = f"{folder / CONFIG} (of toolkit {record['toolkit']})"
        config = make_config(record["config"], origin)
        if model_file is not None:
            check_model_file(config, model_file, str(folder))
            config = make_config(record["config"], origin)
        shape = frames_of(record)
        expected = str(record["weights"]["sha256"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: damaged, no usable {error}; export the run again") from None
    except ManifestError as error:
        raise damaged(folder, error) from None
    weights = _read_weights(folder / WEIGHTS)
    if weights_digest(weights) != expected:
        raise CheckpointError(
            f"{folder / WEIGHTS}: differs from its SHA-256 in {CONFIG}; fetch it again, or export the run again"
        )
    model = untrained_model(config, shape)
    fill(model, weights, folder)
    return model.eval(), config, record


def load(path: str | Path, model_file: str | Path | None = None) -> SequenceModel:
    """Return the model of an exported folder, or of the best checkpoint of a run directory.

    Args:
        path: of the folder.
        model_file: the file that its model is from, which is then run; None: the model is one of the toolkit's.

    Raises:
        CheckpointError, ConfigError: it is neither, or can't be used; see `load_exported` and `load_model`.
    """
    run, file = RunDir(Path(path)), None if model_file is None else Path(model_file)
    if not run.config_file.exists():
        return load_exported(path, file)
    run.load_model_file(file)
    return load_model(run, "best", torch.device("cpu"), store="any")[0]


def weights_digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values in order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _record(config: RunConfig, manifest: Manifest, step: int, weights: dict[str, Tensor]) -> dict[str, object]:
    tree = config.model_dump(mode="json")
    # Paths of the machine that trained; and nothing that starts from this export looks for the source of its weights.
    tree["data"]["store"] = ""
    tree["train"]["init_from"] = {"freeze": tree["train"]["init_from"]["freeze"]}
    return {
        "format": "modernn-toolkit model",
        "version": EXPORT_VERSION,
        "toolkit": __version__,
        "run": {"name": config.name, "hash": config.hash8(), "step": step},
        "config": tree,
        "frames": {key: value for key, value in dataclasses.asdict(manifest.frames).items() if value != ()},
        "scale": dataclasses.asdict(manifest.scale),
        "step_seconds": manifest.step_seconds,
        "archive": frame_options(manifest),
        "store": {
            "name": manifest.name,
            "digest": manifest.digest,
            "source": dataclasses.asdict(manifest.source),
        },
        "weights": {"file": WEIGHTS, "sha256": weights_digest(weights)},
    }


def damaged(folder: Path, error: ManifestError) -> CheckpointError:
    """Return the error to raise where the frames or the scale in an export's config.json can't be used."""
    return CheckpointError(f"{folder / CONFIG}: damaged ({str(error).split(';')[0]}); export the run again")


def frames_of(record: dict[str, Any]) -> FrameSpec:
    """Return the frames of the store that a model was trained on, from config.json of its export."""
    return read_frames(Fields({"dtype": "uint8", **record["frames"]}, "frames"))  # older exports name no type


def frame_options(manifest: Manifest) -> dict[str, object]:
    """How an archive becomes frames such as the model knows: the source's name and options, without any path."""
    options = {key: value for key, value in manifest.conversion.items() if key in FRAME_OPTIONS}
    return {"source": Path(str(manifest.conversion.get("source", ""))).name, **options}


def _check_same(folder: Path, record: dict[str, Any]) -> None:
    try:
        there = _read_record(folder)
    except CheckpointError:
        raise ConfigError(f"{folder}: exists and is not an exported model: choose another folder") from None
    keys = ("run", "store", "weights")
    differing = [key for key in keys if there.get(key) != record[key]]
    if differing:
        old, new = (tree.get("run", {}) for tree in (there, record))
        raise ConfigError(
            f"{folder}: holds another export (run {old.get('hash')} at step {old.get('step')}, this one is "
            f"{new['hash']} at step {new['step']}; they differ in {', '.join(differing)}): choose another folder"
        )
    load_exported(folder)  # its weights are whole


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if record["format"] != "modernn-toolkit model":
            raise KeyError("format")
        version = int(record["version"])
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder}: no exported model ({CONFIG}); make one: {command('export', '--run', 'RUN', '--out', 'FOLDER')}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: not of an exported model ({error!r}); export the run again"
        ) from None
    if version != EXPORT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: written in version {version}, this toolkit reads {EXPORT_VERSION}: export the run "
            f"again with this one ({__version__}), or load it with toolkit {record.get('toolkit')}"
        )
    return dict(record)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: is missing; fetch it again, or export the run again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged ({error}); fetch it again, or export the run again") from None


def _write_folder(folder: Path, weights: dict[str, Tensor], texts: dict[str, str]) -> None:
    if folder.absolute().parent.is_dir():
        clear_leftovers(folder.absolute().parent)
    try:
        with replacing_tree(folder) as temporary:
            temporary.mkdir()
            for name, text in texts.items():
                (temporary / name).write_text(text, encoding="utf-8")
            save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
            # safetensors gives its file to nobody else; an export is for handing on.
            (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)
    except SafetensorError as error:
        raise FileWriteError(OSError(0, first_line(error)), folder) from None
