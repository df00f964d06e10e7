"""SEVIR nowcasting as Earthformer scores it (Gao et al., NeurIPS 2022), with the pooled CSI that later papers add.

Thresholds are codes of vertically integrated liquid, 0..255: the store has to keep them (`shards convert sevir` does).
Earthformer adds 1e-4 to the denominators; here a ratio without events is undefined instead. Its mean CSI is the mean
over the six thresholds of CSI from pooled counts. Squares of 4 and 16 pixels: as in PreDiff and CasCast.
"""

from dataclasses import replace

from toolkit.evaluate.protocols.paper import PROTOCOL as PAPER

PROTOCOL = replace(
    PAPER,
    name="sevir",
    title="SEVIR (Earthformer)",
    source="https://github.com/amazon-science/earth-forecasting-transformer src/earthformer/metrics/sevir.py",
    error_reduction="mean",
    thresholds=(16.0, 74.0, 133.0, 160.0, 181.0, 219.0),
    event_pools=(1, 4, 16),
    fss_windows=(5, 17),
)
