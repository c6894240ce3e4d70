"""The picture of a race."""

from pathlib import Path
from typing import Any

from shearling.pictures import BLUE, GREEN, GREY, ORANGE, PURPLE, chart, smooth

COLOURS = GREY, BLUE, ORANGE, GREEN, PURPLE
"""The baseline's first."""

SHOWN_FROM = 0.03
"""Share of the baseline's time before which curves only fall from the top."""

SMOOTHED = 0.02
"""Share of a run that is averaged over."""


def draw_race(rows: list[dict[str, Any]], results: dict[str, Any], path: Path) -> None:
    """Smoothed training loss against wall-clock minutes, a curve a run; where each ends, its validation loss."""
    names = list(dict.fromkeys(row["name"] for row in sorted(rows, key=lambda row: not row["baseline"])))
    with chart(path) as (axes,):
        for row in rows:
            colour = COLOURS[names.index(row["name"]) % len(COLOURS)]
            per_byte = row["bits_per_byte"] / row["loss"]
            seconds, losses = zip(*row["curve"], strict=True)
            curve = zip(seconds, smooth(losses, 1 - 1 / max(1.0, SMOOTHED * len(losses))), strict=True)
            shown = [(t / 60, loss * per_byte) for t, loss in curve if t > SHOWN_FROM * 60 * results["minutes"]]
            axes.plot(*zip(*shown, strict=True), color=colour, lw=1.1, alpha=0.8)
            axes.plot(row["seconds"] / 60, row["bits_per_byte"], "o", color=colour, ms=5, zorder=3)
        for name in names:
            minutes = next(row["minutes"] for row in rows if row["name"] == name)
            label = f"{name}, {minutes:.3g} minutes"
            axes.plot([], [], color=COLOURS[names.index(name) % len(COLOURS)], label=label)
        target = results["target_mean"]
        axes.axhline(target, color=GREY, lw=0.8, ls="--")
        axes.annotate(f"{target:.3f}", (0, target), xytext=(2, 3), textcoords="offset points", color=GREY, fontsize=9)
        axes.set(
            xlabel="wall-clock minutes", ylabel="bits per byte", xlim=(0, None),
            title="training loss, smoothed; dots: validation at the end",
        )  # fmt: skip
        axes.legend(frameon=False)
