"""The numbers of predrnn-pytorch's `core/trainer.py`, from whose authors ModeRNN comes.

They differ from `paper` in LPIPS, whose network is given frames in 0..1 there. That code also drops the last batch of a
split and counts exact frames as infinite PSNR: here every sequence counts, and the cap is 100 dB.
"""

from dataclasses import replace

from toolkit.evaluate.protocols.paper import PROTOCOL as PAPER

PROTOCOL = replace(
    PAPER,
    name="predrnn",
    title="predrnn-pytorch",
    source="https://github.com/thuml/predrnn-pytorch core/trainer.py",
    lpips_range="0..1",
)
