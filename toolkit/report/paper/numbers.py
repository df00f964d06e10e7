"""The ModeRNN paper's Tables 1 to 7 (Yao et al., arXiv 2110.03882): layout and numbers.

The runs of a row are found by their names in configs/sweeps/paper: `mmnist-convlstm` is trained on all modes,
`mmnist-convlstm-only-1-digit` on one. A smaller sweep with the same names fills the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolkit.report.data.aggregate import OVERALL

Variant = Literal["sub", "entire"]


@dataclass(frozen=True)
class Column:
    """One column; with `sub`, two numbers per cell: trained on this mode only, and on all modes."""

    title: str
    metric: str  # a score's key, or one of COSTS
    data: str
    mode: str = OVERALL
    sub: bool = False

    @property
    def variants(self) -> tuple[Variant, ...]:
        return ("sub", "entire") if self.sub else ("entire",)


Place = tuple[Column, Variant]


@dataclass(frozen=True)
class PaperRow:
    """One model; `numbers` are the paper's for each column and variant in order, None if there is none."""

    label: str
    model: str
    numbers: tuple[float | None, ...]


@dataclass(frozen=True)
class PaperTable:
    number: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[PaperRow, ...]

    @property
    def places(self) -> list[Place]:
        """Column and variant of each number in a row."""
        return [(column, variant) for column in self.columns for variant in column.variants]

    def paper(self, row: PaperRow) -> dict[Place, float | None]:
        """Return the published numbers of a row."""
        return dict(zip(self.places, row.numbers, strict=True))


COSTS = ("parameters", "seconds", "memory")  # millions; per 1,000 training sequences; GB at the peak
MODES = {"mmnist": ("1-digit", "2-digit", "3-digit"), "kth": ("torso", "hands"), "radar": ("mar-may", "jun-aug")}
OURS = "modernn"  # the row with which the others are compared


def _by_mode(data: str, metrics: tuple[tuple[str, str], ...], overall: bool) -> tuple[Column, ...]:
    modes = [*MODES[data], *([OVERALL] if overall else [])]
    return tuple(
        Column(f"{mode or 'overall'}, {title}", key, data, mode, True) for mode in modes for title, key in metrics
    )


_MNIST = (("SSIM", "ssim"), ("MSE", "mse"))
_KTH = (("PSNR", "psnr"), ("LPIPS", "lpips"))
_RADAR = (("CSI30", "csi@30"), ("MSE", "mse"))

# One line per row: label | name in configs/sweeps/paper | numbers, a dash if the paper has none.
_PUBLISHED = """\
Table 1
ConvLSTM | convlstm | 0.937 0.922 26.6 33.4 0.848 0.839 63.2 65.6 0.764 0.748 120.5 137.1
RIM      | rim      | 0.943 0.939 23.4 25.3 0.871  0.88 53.3 52.1 0.814 0.803  88.6  95.1
ModeRNN  | modernn  | 0.946 0.951 21.9 17.1  0.88 0.902 51.0 42.1 0.821 0.842  83.1  74.8
Table 2
ConvLSTM     | convlstm     | 0.836 78.7  8.15 29 2.58
PredRNN      | predrnn      | 0.851 67.3 11.83 68 3.52
MIM          | mim          | 0.851 64.4 18.45 73 4.22
Conv-TT-LSTM | conv_tt_lstm | 0.866 61.2  7.58 77 6.17
RIM          | rim          | 0.874 57.5  7.91 71 5.88
ModeRNN      | modernn      | 0.898 44.7  6.35 59 3.15
Table 3
ModeRNN, N = 1 | modernn-slots1 | 69.3
ModeRNN, N = 2 | modernn-slots2 | 59.4
ModeRNN, N = 3 | modernn-slots3 | 48.2
ModeRNN, N = 4 | modernn        | 44.7
ModeRNN, N = 5 | modernn-slots5 | 45.9
Table 4
ModeRNN                      | modernn           | 44.7
without slot binding (N = 1) | modernn-slots1    | 69.3
without adaptive slot fusion | modernn-no-fusion | 60.5
Table 5
ConvLSTM          | convlstm     | 24.12 0.231 0.354 97.6
TrajGRU           | trajgru      | 26.97 0.219 0.357 89.2
PredRNN           | predrnn      | 27.47 0.212 0.359 84.2
SVG (best of 100) | svg_lp       | 27.73 0.196     –    –
Conv-TT-LSTM      | conv_tt_lstm | 27.59 0.198 0.363 87.6
ModeRNN           | modernn      | 28.22 0.183 0.428 65.1
Table 6
ConvLSTM          | convlstm     | 23.65 23.13 0.227 0.232 24.37 24.98 0.234  0.23 24.03 24.12 0.231 0.231
PredRNN           | predrnn      | 27.45 26.92 0.218 0.226 27.52 27.94 0.203 0.199 27.49 27.47  0.21 0.212
SVG (best of 100) | svg_lp       | 27.79 27.34 0.193 0.199 27.75 28.12 0.197 0.193 27.77 27.73 0.195 0.196
Conv-TT-LSTM      | conv_tt_lstm | 27.57 27.09 0.192 0.204 27.64 28.03 0.201 0.192 27.61 27.59 0.196 0.198
ModeRNN           | modernn      | 27.84 28.11 0.192 0.185 27.82 28.32 0.196 0.181 27.83 28.22 0.194 0.183
Table 7
ConvLSTM     | convlstm     | 0.341 0.337 63.5 71.3 0.372 0.366 102.4 116.7 0.359 0.354 86.0 97.6
TrajGRU      | trajgru      | 0.354 0.341 62.5 68.3 0.375 0.369  99.3 104.3 0.366 0.357 83.8 89.2
PredRNN      | predrnn      | 0.357 0.342 57.1 60.8 0.384 0.371  97.5 101.2 0.373 0.359 80.5 84.2
Conv-TT-LSTM | conv_tt_lstm | 0.359 0.347 61.5 65.8 0.381 0.374  99.1 103.5 0.372 0.363 83.3 87.6
ModeRNN      | modernn      | 0.373 0.408 54.3 46.2 0.392 0.442  92.0  78.8 0.384 0.428 76.1 65.1
"""


def _table(number: str, title: str, *columns: Column) -> PaperTable:
    lines = _PUBLISHED.partition(f"Table {number}\n")[2].partition("Table")[0].splitlines()
    rows = []
    for label, model, numbers in (line.split("|") for line in lines):
        found = tuple(None if text == "–" else float(text) for text in numbers.split())
        rows.append(PaperRow(label.strip(), model.strip(), found))
    return PaperTable(number, title, columns, tuple(rows))


_MNIST_ALL = (Column("SSIM", "ssim", "mmnist"), Column("MSE", "mse", "mmnist"))
_COSTS = (
    Column("parameters (M)", "parameters", "mmnist"),
    Column("s per 1,000 sequences", "seconds", "mmnist"),
    Column("memory (GB)", "memory", "mmnist"),
)
_KTH_ALL = tuple(Column(f"KTH, {title}", key, "kth") for title, key in _KTH)
_RADAR_ALL = tuple(Column(f"radar, {title}", key, "radar") for title, key in _RADAR)
_ALONE = "trained on that mode only / on all modes"
TABLES = (
    _table("1", f"Mixed Moving MNIST by mode, {_ALONE}", *_by_mode("mmnist", _MNIST, overall=False)),
    _table("2", "Mixed Moving MNIST, all modes", *_MNIST_ALL, *_COSTS),
    _table("3", "Number of slots of ModeRNN on Mixed Moving MNIST", _MNIST_ALL[1]),
    _table("4", "Ablations of ModeRNN on Mixed Moving MNIST", _MNIST_ALL[1]),
    _table("5", "KTH and radar", *_KTH_ALL, *_RADAR_ALL),
    _table("6", f"KTH by mode, {_ALONE}", *_by_mode("kth", _KTH, overall=True)),
    _table("7", f"Radar by season, {_ALONE}", *_by_mode("radar", _RADAR, overall=True)),
)
