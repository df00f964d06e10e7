"""The section `data` of a config: keys, types, bounds, defaults, descriptions. Without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.paths import ExpandedPath
from toolkit.models.registry import Options

COSMETIC: dict[str, Any] = {"identity": False}
MOST_STEPS = 10**9
MOST_FRAMES = 100_000

SplitName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,31}$")]  # a store's splits; names of files begin so


def as_list(value: object) -> object:
    """Take `0.5` for `[0.5]`, and `a` for `[a]`."""
    return value if value is None or isinstance(value, list | tuple) else [value]


def _as_text(value: object) -> object:
    """Take the number 1 for the mode `1`: YAML reads bare digits as a number. A truth value stays what it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Mode = Annotated[str, BeforeValidator(_as_text)]
Channel = Annotated[str, BeforeValidator(_as_text), Field(min_length=1, max_length=64)]
Channels = Annotated[tuple[Channel, ...], BeforeValidator(as_list), Field(min_length=1)] | None


class DataConfig(Options):
    """Which sequences are read, and how windows are cut from them."""

    store: ExpandedPath = Field(
        "",
        description="folder or URL of a sequence store (`python -m shards convert` makes one); ~ and $NAME are "
        "expanded, a relative path is relative to the working directory",
    )
    context: int = Field(10, ge=1, le=MOST_FRAMES, description="observed frames given to the model")
    horizon: int = Field(10, ge=1, le=MOST_FRAMES, description="frames to predict")
    modes: Annotated[tuple[Mode, ...], BeforeValidator(as_list)] | None = Field(
        None, description="train and validate on sequences of these modes only; null: all"
    )
    inputs: Channels = Field(
        None, description="channels of the store that the model reads, by name or index from 0; null: all"
    )
    targets: Channels = Field(
        None,
        description="those of `inputs` that are predicted, and alone have a part in losses and scores; null: all but "
        "the static ones",
    )
    static: Channels = Field(
        None, description="those of `inputs` that do not change in time, such as topography: known at all lead times"
    )
    beyond: Literal["hold", "zero"] = Field(
        "hold",
        description="what the model reads after the context in place of inputs that are neither targets nor static: "
        "`hold` the last observation, `zero` 0",
    )
    train_split: SplitName = Field("train", description="split of the store used for training")
    val_split: SplitName = Field("val", description="split of the store used for validation and model selection")
    train_stride: int = Field(1, ge=1, le=MOST_STEPS, description="frames between the starts of training windows")
    eval_stride: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="frames between the starts of validation and test windows; null: windows do not overlap",
    )
    augment: Annotated[tuple[Literal["flip", "rotate", "reverse"], ...], BeforeValidator(as_list)] = Field(
        (), description="random transformations of training samples, each applied with probability 0.5"
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="damaged training sample: `raise` ends the run, `skip` reads its neighbour and logs it"
    )
    num_workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="data loading processes per rank; 0: load in the training process",
        json_schema_extra=COSMETIC,
    )
