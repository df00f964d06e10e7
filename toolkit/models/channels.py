"""What a model reads and predicts where a run chooses channels (toolkit/config/channels.py).

A model is built for frames of all inputs, and predicts as many channels; those that are not targets have no part in the
loss, are not fed back and are not returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.models.choice import ChannelChoice
from toolkit.unroll import with_channels


class ReadsChannels:
    """The part of a `SequenceModel` that knows its channels.

    Attributes:
        channel_choice: that of the run; None: all are read and predicted.
        feeds_targets: what the model reads of its own predictions are the targets alone (`next_input`). False: a run
            with inputs that are not targets is refused.
    """

    channel_choice: ChannelChoice | None = None
    feeds_targets: bool = False

    def set_channels(self, channels: ChannelChoice | None) -> None:
        """Set `channel_choice`.

        Raises:
            ConfigError: inputs that are not targets, and a model that can't be fed such.
        """
        if channels is not None and channels.only_inputs and not self.feeds_targets:
            names = ", ".join(channels.names[place] for place in channels.only_inputs)
            raise ConfigError(
                f"{type(self).__name__} reads its own predictions of every channel, and data.inputs has {names}, not "
                "in data.targets: predict all inputs, or see `feeds_targets` in docs/new-model.md"
            )
        self.channel_choice = channels

    def target_channels(self, frames: Tensor) -> Tensor:
        """Return the targets of frames [..., C, H, W] as the model reads them."""
        return frames if self.channel_choice is None else select_channels(frames, self.channel_choice.targets)

    @property
    def fed_channels(self) -> tuple[int, ...] | None:
        """The channels of a later input that are the model's own predictions; None: all."""
        return (
            self.channel_choice.targets if self.channel_choice is not None and self.channel_choice.only_inputs else None
        )

    def next_input(self, prediction: Tensor, known: Tensor) -> Tensor:
        """Return the input [..., C, H, W] after a prediction: other channels than the targets are those of `known`."""
        return prediction if self.fed_channels is None else with_channels(known, prediction, self.fed_channels)

    def known_frames(self, frames: Tensor, context: int, length: int) -> Tensor:
        """Return frames with what is known of them when the forecast is made.

        Args:
            frames: [B, K, C, H, W], K >= context.
            length: frames to return.

        Returns:
            [B, length, C, H, W]. From frame `context` on inputs that are not targets keep their last observation or are
            0 (`ChannelChoice.held`); targets are those of `frames`, whose last frame with them is repeated. With every
            input a target: `frames` itself.
        """
        if self.channel_choice is None or self.fed_channels is None or length == context:
            return frames
        last = frames[:, context - 1 : context]
        held = with_channels(torch.zeros_like(last), last, self.channel_choice.held)
        targets = torch.cat([frames[:, context:], frames[:, -1:].expand(-1, length - frames.shape[1], -1, -1, -1)], 1)
        later = with_channels(held.expand_as(targets), targets, self.fed_channels)
        return torch.cat([frames[:, :context], later], 1)


def select_channels(frames: Tensor, channels: Sequence[int]) -> Tensor:
    """Return some channels of frames [..., C, H, W]; no index is copied from the host."""
    return torch.stack([frames.select(-3, place) for place in channels], -3)
