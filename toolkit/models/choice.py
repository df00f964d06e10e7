"""Which channels a model reads and predicts, by index. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChannelChoice:
    """The channels of a run.

    Attributes:
        inputs: indices in the frames of the store, in the order in which the model reads them.
        targets: indices among the inputs, in the order in which forecasts hold them.
        held: indices among the inputs of those that keep their last observation after the context; what is neither a
            target nor held is 0 there.
        names: of the inputs, or of each its index in the store.
        static: indices among the inputs.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    held: tuple[int, ...]
    names: tuple[str, ...]
    static: tuple[int, ...] = ()

    @property
    def target_names(self) -> tuple[str, ...]:
        """Return the names of the targets."""
        return tuple(self.names[place] for place in self.targets)

    @property
    def only_inputs(self) -> tuple[int, ...]:
        """Return the indices among the inputs of those that are not predicted."""
        return tuple(place for place in range(len(self.inputs)) if place not in self.targets)
