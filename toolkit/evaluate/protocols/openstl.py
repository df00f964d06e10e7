"""The numbers of OpenSTL's tables (Tan et al., NeurIPS 2023): `openstl/core/metrics.py`.

MSE and MAE use unclamped predictions, SSIM and PSNR predictions clamped to 0..1, in float. SSIM is scikit-image's
without a data range, for which it used 2 with floats: twice the true range, which increases SSIM. Do not compare it
with the SSIM of other protocols. RMSE is the square root of the MSE over a whole split, and SNR is in dB on clamped
predictions; the SNR of an exact frame is infinite there, and that of an empty one minus infinity.
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
    snr=True,
)
