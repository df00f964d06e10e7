"""Which channels of a store a run reads and predicts (`data.inputs`, `targets`, `static`, `beyond`). Without torch.

A model reads all inputs at each time step and predicts the targets. Where a later input is its own prediction, only the
targets come from there: a static channel keeps its last observation, and so does every other input under `beyond: hold`
(under `zero` it is 0). Training shows the same from the first frame after the context on, though the store knows more:
what can't be known when a forecast is made is never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.config.data import DataConfig
from toolkit.errors import ConfigError
from toolkit.models.choice import ChannelChoice

if TYPE_CHECKING:
    from shards.manifest import FrameSpec


def choose_channels(data: DataConfig, frames: FrameSpec, where: str) -> ChannelChoice | None:
    """Return the channels that a config chooses of frames; None where it leaves all keys out: all, as they are.

    Args:
        where: the store, for messages.

    Raises:
        ConfigError: an unknown channel, one twice, a target or a static channel that is no input or is both, or no
            target; with the channels that there are.
    """
    if data.inputs is None and data.targets is None and data.static is None:
        return None
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(frames.names)) or f"0 to {frames.channels - 1}"
    known = f"{where} has the channels {listed}"

    def places(key: str, given: Sequence[str] | None, inputs: Sequence[int] | None = None) -> tuple[int, ...]:
        found = [_index(f"data.{key}", name, frames, known) for name in given or ()]
        for place, index in enumerate(found):
            if index in found[:place]:
                raise ConfigError(f"data.{key}: the channel {_name(index, frames)} is named twice: {known}")
            if inputs is not None and index not in inputs:
                named = ", ".join(_name(one, frames) for one in inputs)
                raise ConfigError(
                    f"data.{key}: {_name(index, frames)} is not among data.inputs ({named}): add it there; {known}"
                )
        return tuple(found if inputs is None else [list(inputs).index(index) for index in found])

    inputs = tuple(range(frames.channels)) if data.inputs is None else places("inputs", data.inputs)
    static = places("static", data.static, inputs)
    rest = tuple(place for place in range(len(inputs)) if place not in static)
    targets = rest if data.targets is None else places("targets", data.targets, inputs)
    if both := set(targets) & set(static):
        names = ", ".join(_name(inputs[place], frames) for place in sorted(both))
        raise ConfigError(f"data.static: {names} is a target too: a channel that does not change is not predicted")
    if not targets:
        raise ConfigError(f"data.static names every input, so nothing is predicted: set data.targets; {known}")
    others = [place for place in rest if place not in targets]
    held = tuple(sorted([*static, *others])) if data.beyond == "hold" else tuple(sorted(static))
    return ChannelChoice(inputs, targets, held, tuple(_name(index, frames) for index in inputs), static)


def input_frames(data: DataConfig, frames: FrameSpec, where: str = "the store") -> FrameSpec:
    """Return the frames that the model reads: those of the store with the channels of `data.inputs`.

    Raises:
        ConfigError: as `choose_channels`.
    """
    choice = choose_channels(data, frames, where)
    if choice is None:
        return frames
    names = choice.names if frames.names else ()
    return replace(frames, channels=len(choice.inputs), names=names)


def target_frames(data: DataConfig, frames: FrameSpec, where: str = "the store") -> FrameSpec:
    """Return the frames that the model predicts; raises as `choose_channels`."""
    choice = choose_channels(data, frames, where)
    if choice is None:
        return frames
    return replace(frames, channels=len(choice.targets), names=choice.target_names if frames.names else ())


def check_names(wanted: FrameSpec, given: FrameSpec, where: str) -> None:
    """Raise ConfigError where both kinds of frames name their channels, and differently."""
    if wanted.names and given.names and wanted.names != given.names:
        raise ConfigError(
            f"{where}: the channels are {', '.join(given.names)}, the model was trained on {', '.join(wanted.names)}: "
            "use data with these channels in this order"
        )


def _name(index: int, frames: FrameSpec) -> str:
    return frames.names[index] if frames.names else str(index)


def _index(key: str, name: str, frames: FrameSpec, known: str) -> int:
    if name in frames.names:
        return frames.names.index(name)
    if name.isdecimal() and int(name) < frames.channels:
        return int(name)
    raise ConfigError(f"{key}: there is no channel {name!r}: {known}")
