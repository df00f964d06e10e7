"""The ModeRNN paper's evaluation: section 4 of the paper, and its authors' evaluation code where the paper is silent.

One choice differs from that code: it averages CSI over batches and lead times, with 0 where no pixel reaches the
threshold, so its value depends on the batch size. Here counts are pooled.

SVG is scored by "the best results from 100 output samples"; neither the paper nor the code specifies the metric, or
whether samples are selected per metric. Here: for each sequence the sample with the best PSNR, the paper's first metric
on KTH, averaged over lead times.
"""

from toolkit.evaluate.protocols.base import Protocol

PROTOCOL = Protocol(
    name="paper",
    title="ModeRNN paper",
    source="Yao et al., ModeRNN, arXiv 2110.03882, section 4; https://github.com/thuml/ModeRNN core/trainer.py",
    clamp=True,
    error_reduction="sum",
    image_levels=255,
    ssim_window=7,
    ssim_data_range=255.0,
    psnr_data_range=255.0,
    psnr_cap=100.0,
    lpips_range="-1..1",
    best_by="psnr",
    thresholds=(),
    event_pools=(1,),
    fss_windows=(),
    csi_pooling="counts",
    average="frames",
)
