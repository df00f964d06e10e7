"""Mixed Moving MNIST: one, two or three handwritten digits that fly about and bounce off the walls.

The ModeRNN paper (section 4.1) mixes three subsets of 64x64 sequences of 20 frames, with one, two and three digits;
each is one spatiotemporal mode, with 10,000 training and 3,000 test sequences. As in the original Moving MNIST
(Srivastava et al., ICML 2015) a digit starts anywhere, in any direction, and moves a tenth of its free range per frame;
where digits overlap the brighter pixel wins. At a wall it bounces by the rule of that generator, which OpenSTL and
others share: errors are comparable only between data of one rule.

Nothing leaks between splits: test sequences use test digits only, and validation uses the last twelfth of the training
digits (5,000 of MNIST's 60,000), which training sequences never use. Every event draws from its own random stream,
seeded by (seed, split, digits, index): the 2-digit events of a mixed store are those of a store of 2-digit events
alone, and neither the order nor the number of workers matters.
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.errors import SourceError, UsageError
from shards.manifest import Codes, FrameSpec, Scale, SourceInfo
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.idx import find_idx, read_images

SKLEARN = "sklearn"
SPLITS = ("train", "val", "test")
PIXELS = 28  # side of an MNIST image; on the paper's canvas of 64
CANVAS = 64
STEP = 0.1  # of the free range per frame, as in the original generator
SKLEARN_TEST = 300  # the last of its 1,797 digits; writers come one after another there, so most writers differ too


@dataclass(frozen=True)
class MovingMnist:
    """A source of moving digits. Counts are per mode; `digits` is "sklearn" or a folder with MNIST's idx files."""

    digits: str
    modes: tuple[int, ...]
    counts: tuple[int, int, int]  # train, val, test
    size: int
    digit_size: int
    length: int
    seed: int
    bounce: str = "original"  # a key of BOUNCES

    def describe(self) -> Description:
        """Return one channel of intensity 0..1; no clock."""
        return Description(
            name="mixed-moving-mnist",
            frames=FrameSpec(channels=1, height=self.size, width=self.size),
            step_seconds=None,
            scale=Scale(quantity="intensity", unit="1", offset=0.0, gain=1 / 255),
            modes=tuple(_label(mode) for mode in self.modes),
            source=_SKLEARN_INFO if self.digits == SKLEARN else _MNIST_INFO,
        )

    def plan(self) -> Plan:
        """Let modes take turns, so that every shard is a mixture; runs are single events."""
        splits = {}
        for split, count in zip(SPLITS, self.counts, strict=True):
            if count:
                digit_pool(self.digits, split)  # a missing or damaged file is told now, not after an hour
                splits[split] = [
                    PlannedEvent(
                        key=f"{split}-{index:07d}-{mode}digit",
                        length=self.length,
                        mode=_label(mode),
                        recipe=(split, mode, index),
                    )
                    for index in range(count)
                    for mode in sorted(self.modes)
                ]
        return Plan(splits)

    def read(self, event: PlannedEvent) -> RawEvent:
        """Draw one sequence, uint8 [L, 1, size, size]; `details` names the digits by their index in the digit file."""
        split, mode, index = event.recipe
        pool = digit_pool(self.digits, split)
        # Raw bits, because numpy promises their stability across versions and not that of the distributions.
        bits = np.random.PCG64(np.random.SeedSequence((self.seed, SPLITS.index(split), mode, index)))
        uniform = (bits.random_raw(4 * mode).reshape(mode, 4) >> 11) * 2.0**-53
        frames = np.zeros((self.length, 1, self.size, self.size), dtype=np.uint8)
        chosen = [int(pool.first + math.floor(u * len(pool.images))) for u in uniform[:, 0]]
        for which, (_, x, y, turn) in zip(chosen, uniform, strict=True):
            digit = _resize(pool.images[which - pool.first], self.digit_size)
            angle = 2 * math.pi * turn
            positions = BOUNCES[self.bounce]
            columns = positions(x, math.cos(angle), self.length, self.size - self.digit_size)
            rows = positions(y, math.sin(angle), self.length, self.size - self.digit_size)
            for frame, row, column in zip(frames[:, 0], rows, columns, strict=True):
                patch = frame[row : row + self.digit_size, column : column + self.digit_size]
                np.maximum(patch, digit, out=patch)
        return RawEvent(frames, {"digits": chosen})


def bounce_as_original(start: float, direction: float, length: int, free: int) -> npt.NDArray[np.intp]:
    """Return the positions of a digit along one axis, as Srivastava's generator of Moving MNIST computes them.

    The first frame is one step after `start`; a position outside of the range is set to its end, where the velocity
    turns; positions are truncated to whole pixels. OpenSTL has the same rule
    (openstl/datasets/dataloader_moving_mnist.py, `get_random_trajectory`).

    Args:
        start: 0..1, in units of the free range.
        direction: -1..1, of the velocity, which is STEP of the free range per frame.
        length: frames.
        free: pixels, size of a frame less that of a digit.

    Returns:
        [length] whole pixels, 0..free.
    """
    at, velocity, positions = start, direction, np.empty(length)
    for frame in range(length):
        at += velocity * STEP
        if at <= 0.0:
            at, velocity = 0.0, -velocity
        if at >= 1.0:
            at, velocity = 1.0, -velocity
        positions[frame] = at
    return (free * positions).astype(np.intp)


def bounce_by_reflection(start: float, direction: float, length: int, free: int) -> npt.NDArray[np.intp]:
    """Return the positions of a digit that is reflected at the walls at constant speed, rounded to whole pixels.

    Arguments and result are those of `bounce_as_original`; the first frame is at `start`.
    """
    unfolded = start + direction * STEP * np.arange(length)
    folded = 1.0 - np.abs(1.0 - np.mod(unfolded, 2.0))  # a triangle wave: reflection at 0 and 1
    return np.rint(folded * free).astype(np.intp)


BOUNCES = {"original": bounce_as_original, "reflect": bounce_by_reflection}


@dataclass(frozen=True)
class DigitPool:
    """Images uint8 [N, side, side] that one split may use; `first` is the index of the first in its file."""

    images: Codes
    first: int


@functools.lru_cache(maxsize=4)
def digit_pool(digits: str, split: str) -> DigitPool:
    """Return the digits of `split` from scikit-learn or from a folder of idx files. Raises SourceError."""
    if digits == SKLEARN:
        images = _sklearn_digits()
        train, test = images[:-SKLEARN_TEST], images[-SKLEARN_TEST:]
        if split == "test":
            return DigitPool(test, len(train))
    else:
        part = "t10k" if split == "test" else "train"
        train = read_images(find_idx(Path(digits), f"{part}-images-idx3-ubyte"))
        if split == "test":
            return DigitPool(train, 0)
    held_out = len(train) - len(train) // 12
    if split == "val" and held_out == len(train):
        raise SourceError(
            f"{digits}: {len(train)} training digits are too few to keep a twelfth for validation; use --val 0"
        )
    return DigitPool(train[held_out:], held_out) if split == "val" else DigitPool(train[:held_out], 0)


def _sklearn_digits() -> Codes:
    """scikit-learn's 1,797 real digits of 8x8 (0..16), made to look like MNIST's: 20x20 centred in 28x28."""
    from sklearn.datasets import load_digits  # imports half of scikit-learn; MNIST's own files don't need it

    small = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    margin = (PIXELS - 20) // 2
    return np.stack([np.pad(_resize(image, 20), margin) for image in small])


def _resize(image: Codes, side: int) -> Codes:
    """Bicubic, with anti-aliasing when it shrinks."""
    if image.shape == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _label(mode: int) -> str:
    return f"{mode}-digit"


_MNIST_INFO = SourceInfo(
    name="Moving digits from MNIST",
    licence="CC BY-SA 3.0 (digits)",
    citation="LeCun, Cortes, Burges, The MNIST database of handwritten digits; Srivastava et al., ICML 2015",
    url="http://yann.lecun.com/exdb/mnist",
)
_SKLEARN_INFO = SourceInfo(
    name="Moving digits from scikit-learn's copy of the UCI digits (not MNIST)",
    licence="CC BY 4.0 (digits)",
    citation="Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; Srivastava et al., ICML 2015",
    url="https://archive.ics.uci.edu/dataset/80",
)


def _modes(text: str) -> tuple[int, ...]:
    """Parse "1,2,3"."""
    parts = text.split(",")
    numbers = sorted({int(part) for part in parts if part.isdecimal()})
    if not all(part.isdecimal() for part in parts) or numbers[0] < 1 or numbers[-1] > 9:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of digits 1..9 with commas between, such as 1,2,3")
    return tuple(numbers)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--digits",
        default=SKLEARN,
        metavar="FOLDER",
        help="folder with MNIST's original idx files, .gz or not (default: the digits that come with scikit-learn)",
    )
    parser.add_argument(
        "--modes", type=_modes, default=(1, 2, 3), metavar="1,2,3", help="digits per sequence; each number is a mode"
    )
    parser.add_argument(
        "--train", type=int, default=10_000, metavar="N", help="sequences per mode (paper: %(default)s)"
    )
    parser.add_argument("--val", type=int, default=1_000, metavar="N", help="sequences per mode (default: %(default)s)")
    parser.add_argument("--test", type=int, default=3_000, metavar="N", help="sequences per mode (paper: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=CANVAS, metavar="PIXELS", help="side of a frame (default: %(default)s)"
    )
    parser.add_argument("--digit-size", type=int, metavar="PIXELS", help="side of a digit (default: 28/64 of --size)")
    parser.add_argument(
        "--length", type=int, default=20, metavar="FRAMES", help="frames per sequence (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--bounce",
        choices=sorted(BOUNCES),
        default="original",
        help="the rule at the walls. original: that of Srivastava's generator and of OpenSTL (clipped, then turned; "
        "truncated to whole pixels); reflect: reflected at constant speed, rounded (default: %(default)s)",
    )


def _build(args: argparse.Namespace) -> Source:
    digit_size = args.digit_size or max(1, round(args.size * PIXELS / CANVAS))
    counts = (args.train, args.val, args.test)
    if not 0 < digit_size < args.size:
        raise UsageError(f"a digit of {digit_size} pixels has no room to move in frames of {args.size}; raise --size")
    if min(counts) < 0 or args.length < 1 or args.seed < 0:
        raise UsageError(
            f"--train, --val, --test {counts} and --seed {args.seed} can't be negative, "
            f"--length {args.length} can't be less than 1"
        )
    return MovingMnist(args.digits, args.modes, counts, args.size, digit_size, args.length, args.seed, args.bounce)


ENTRY = SourceEntry(
    summary="Mixed Moving MNIST: one to three digits that bounce about (generated)",
    example="python -m shards convert moving-mnist stores/mmnist --digits ~/mnist --train 10000 --test 3000",
    add_arguments=_add_arguments,
    build=_build,
)
