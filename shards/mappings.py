"""Physical values that aren't linear in an archive's numbers: documented functions that a manifest may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mapping:
    """`physical` takes and gives float32 of any shape and doesn't fall; `unit` is what it gives."""

    unit: str
    physical: Callable[[_Values], _Values]
    reference: str


def sevir_vil(level: _Values) -> _Values:
    """Return the vertically integrated liquid in kg/m2 of SEVIR's VIL levels 0..254: nothing up to 5, then linear,
    above 18 exponential.
    """
    linear = (level - 2) / 90.66
    exponential = np.exp((np.minimum(level, 255) - 83.9) / 38.9)
    return np.asarray(np.where(level <= 5, 0, np.where(level <= 18, linear, exponential)), dtype=np.float32)


def nearest(table: _Values, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for every value the index of the nearest entry of `table`, which doesn't fall; of equal entries the
    first.
    """
    distinct, first = np.unique(table.astype(np.float64), return_index=True)
    middles = (distinct[1:] + distinct[:-1]) / 2
    return first[np.searchsorted(middles, values)].astype(np.float64)


MAPPINGS: dict[str, Mapping] = {
    "sevir-vil": Mapping("kg m-2", sevir_vil, "Veillette et al., SEVIR, NeurIPS 2020; MIT-AI-Accelerator/eie-sevir"),
}
