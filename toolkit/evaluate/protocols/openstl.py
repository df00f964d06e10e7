"""The numbers of OpenSTL's tables (Tan et al., NeurIPS 2023): `openstl/core/metrics.py`.

MSE and MAE are of predictions as they are, SSIM and PSNR of predictions clamped to 0..1, in float. The SSIM is
scikit-image's without a data range; for floats that was 2 in the releases that could be used so, twice the true range,
which makes SSIM greater: never compare it with that of other protocols.
"""

from dataclasses import replace

from toolkit.evaluate.protocols.paper import PROTOCOL as PAPER

PROTOCOL = replace(
    PAPER,
    name="openstl",
    title="OpenSTL",
    source="Tan et al., NeurIPS 2023; https://github.com/chengtan9907/OpenSTL openstl/core/metrics.py",
    clamp=False,
    image_levels=None,
    ssim_data_range=2.0,
    psnr_data_range=1.0,
)
