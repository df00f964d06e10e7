"""Read the results in eval/: every value that a report, a card or a tracker shows is checked here. Without torch.

Results may be from other people, or edited: a value of a wrong type is refused by its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolkit.errors import ToolkitError
from toolkit.shipped import command

RESULT_VERSION = 1

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Side = Annotated[int, Field(ge=1, le=1 << 20)]
Number = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Line = list[Number | None]
Cells = dict[str, Number | None]  # score -> value; None: undefined
Curves = dict[str, Line]  # by lead time


class _Record(BaseModel):
    """Further keys are kept as they are; numbers in texts are no numbers."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Protocol(_Record):
    name: str
    title: str = ""
    text: list[str] = []


class _Store(_Record):
    path: str
    name: str
    digest: str


class _Ensemble(_Record):
    samples: Side
    label: str
    text: str
    select: Literal["mean", "best"]


class _Histograms(_Record):
    """Pixels of each rank 0 .. N."""

    overall: list[Count] | None
    leads: list[list[Count]] | None
    modes: dict[str, list[Count] | None]
    mode_leads: dict[str, list[list[Count]] | None]


class _Reliability(_Record):
    forecast: Line
    observed: Line


class _Roc(_Record):
    area: Number | None
    pofd: Line
    pod: Line


class _Spectrum(_Record):
    forecast: Line
    observation: Line


class _DiagramLines(_Record):
    reliability: list[_Reliability]
    roc: list[_Roc]
    fss: list[Line]
    frequency: Line
    spectrum: _Spectrum


class _Diagrams(_Record):
    probability: str
    thresholds: list[Number]
    scales: list[Number]
    wavelengths: list[Number]
    overall: _DiagramLines

    @model_validator(mode="after")
    def _complete(self) -> _Diagrams:
        lines, many = self.overall, len(self.thresholds)
        lengths = [
            *((len(found), many) for found in (lines.reliability, lines.roc, lines.fss, lines.frequency)),
            *((len(found.forecast), len(found.observed)) for found in lines.reliability),
            *((len(found.pofd), len(found.pod)) for found in lines.roc),
            *((len(found), len(self.scales)) for found in lines.fss),
            *((len(found), len(self.wavelengths)) for found in (lines.spectrum.forecast, lines.spectrum.observation)),
        ]
        wrong = [f"{one} values, not {other}" for one, other in lengths if one != other]
        if wrong:
            raise ValueError(f"a line has {wrong[0]}")
        return self


class _Announced(_Record):
    __pydantic_extra__: dict[str, Count]
    frames_without_value: dict[str, Count]


class _Scores(_Record):
    """What a model, or persistence, was scored with."""

    overall: Cells
    leads: Curves
    modes: dict[str, Cells]
    ranks: _Histograms | None = None
    diagrams: _Diagrams | None = None

    @model_validator(mode="after")
    def _sensible(self) -> _Scores:
        errors = [cells.get("mse") for cells in (self.overall, *self.modes.values())] + self.leads.get("mse", [])
        if any(error is not None and error < 0 for error in errors):
            raise ValueError("a mean squared error below 0")
        return self


class _Result(_Scores):
    version: Count
    protocol: _Protocol
    store: _Store
    split: str
    step: Count
    thresholds: list[Number]
    context: Side
    horizon: Side
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    frames: Annotated[list[Side], Field(min_length=3, max_length=3)]
    mode_counts: dict[str, Count]
    announced: _Announced
    persistence: _Scores
    which: str | None = None
    unit: str = "1"
    quantity: str = ""
    event_rule: str | int | None = None
    batch: Count | None = None
    stride: Count | None = None
    limit: Count | None = None
    step_seconds: Number | None = None
    parameters: Count | None = None
    macs: Count | None = None
    seconds: Number | None = None
    world_size: Count | None = None
    ensemble: _Ensemble | None = None

    @model_validator(mode="after")
    def _complete(self) -> _Result:
        for scores in (self, self.persistence):
            wrong = [name for name, curve in scores.leads.items() if len(curve) != self.horizon]
            if wrong:
                raise ValueError(f"leads.{wrong[0]}: not one value for each of {self.horizon} lead times")
        return self


def read_result(path: Path) -> dict[str, Any]:
    """Return a file of eval/.

    Raises:
        ToolkitError: it can't be read, is of another version, or a value is missing or has a wrong type.
    """
    again = "delete it and evaluate the run again: " + command("evaluate", "--run", path.parents[1])
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        json.dumps(found, ensure_ascii=False).encode()  # raises ValueError for half a character, which no file can hold
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ToolkitError(f"{path}: can't be read ({error}); {again}") from None
    if (version := found.get("version")) != RESULT_VERSION:
        raise ToolkitError(f"{path}: written in version {version!r}, this toolkit reads {RESULT_VERSION}; {again}")
    try:
        _Result.model_validate(found)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        what = str(fault["msg"]).removeprefix("Value error, ")
        got = "" if fault["type"] == "missing" else f" {str(fault['input'])[:60]!r}:"
        raise ToolkitError(f"{path}: {key}:{got} {what[:1].lower()}{what[1:]}; {again}") from None
    return found
