"""Draw forecasts of several models beside the observation, for test sequences that are chosen by a rule.

    make demo
    python docs/examples/compare.py stores/demo configs/pretrained/modernn-digits configs/pretrained/convlstm-digits

The sequences are those at the quartiles of the first model's squared error: a good one, the median, a bad one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import toolkit

CONTEXT, HORIZON = 5, 10
PAST, LEADS = (1, 3, 5), (1, 2, 4, 6, 8, 10)  # frames that are drawn


def main() -> None:
    """Read a store's test split, forecast it with each model, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="a store with a split `test` of sequences of at least 15 frames")
    parser.add_argument("models", nargs="+", type=Path, help="run directories or exports")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()

    store = toolkit.open_store(arguments.store)
    codes = [store.read("test", event.index, 0, CONTEXT + HORIZON) for event in store.events("test")]
    frames = torch.stack([torch.from_numpy(store.manifest.scale.normalise(event)) for event in codes])
    context, observed = frames[:, :CONTEXT], frames[:, CONTEXT:]
    forecasts = {path.resolve().name: forecast(path, context) for path in arguments.models}

    errors = (next(iter(forecasts.values())) - observed).square().mean((1, 2, 3, 4))
    ranked = errors.argsort().tolist()
    chosen = [ranked[int(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75)]
    draw(
        {"observed": observed, **forecasts, "last frame": context[:, -1:].expand_as(observed)},
        context,
        chosen,
        arguments.out,
    )
    print(arguments.out.resolve())


def forecast(path: Path, context: torch.Tensor) -> torch.Tensor:
    """Return a model's forecast [B, HORIZON, C, H, W], clamped to 0..1."""
    with torch.no_grad():
        return toolkit.load(path).predict(context, horizon=HORIZON)[0].clamp(0, 1)


def draw(rows: dict[str, torch.Tensor], context: torch.Tensor, chosen: list[int], out: Path) -> None:
    """Draw a block of rows for each chosen sequence; its context stands beside the observation."""
    titles = [f"input {place}" for place in PAST] + [f"lead {lead}" for lead in LEADS]
    size = {"figsize": (len(titles) + 1.9, len(chosen) * len(rows) * 1.03), "facecolor": "white"}
    figure = Figure(**size)
    grid = figure.subplots(
        len(chosen) * len(rows),
        len(titles) + 1,
        gridspec_kw={"wspace": 0.05, "hspace": 0.05, "width_ratios": [1.9] + [1] * len(titles)},
    )
    for axis in grid.flat:
        axis.axis("off")
    for axis, title in zip(grid[0, 1:], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for line, axes in enumerate(grid):
        name, index = list(rows)[line % len(rows)], chosen[line // len(rows)]
        axes[0].text(1, 0.5, name, transform=axes[0].transAxes, ha="right", va="center")
        pictures = dict(zip(axes[1 + len(PAST) :], (rows[name][index, lead - 1] for lead in LEADS), strict=True))
        if name == "observed":
            pictures |= dict(zip(axes[1:], (context[index, place - 1] for place in PAST), strict=False))
        for axis, picture in pictures.items():
            axis.imshow(picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    figure.savefig(out, dpi=72, bbox_inches="tight")


if __name__ == "__main__":
    main()
