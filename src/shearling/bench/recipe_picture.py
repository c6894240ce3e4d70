"""The picture of a race."""

import io
from pathlib import Path
from typing import Any

from shearling.files import write_atomically

COLOURS = ("#8a8f98", "#3b6fb6", "#d9822b", "#5a9a5a", "#a25fa8")
"""The baseline's first."""

SHOWN_FROM = 0.03
"""Share of the baseline's time before which curves only fall from the top."""


def draw_race(rows: list[dict[str, Any]], results: dict[str, Any], path: Path) -> None:
    """Smoothed training loss against wall-clock minutes, a curve a run; where each ends, its validation loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in sorted(rows, key=lambda row: not row["baseline"])))
    for row in rows:
        colour = COLOURS[names.index(row["name"]) % len(COLOURS)]
        per_byte = row["bits_per_byte"] / row["loss"]
        points = _smoothed(row["curve"])
        shown = [(t / 60, loss * per_byte) for t, loss in points if t > SHOWN_FROM * 60 * results["minutes"]]
        axes.plot(*zip(*shown, strict=True), color=colour, lw=1.1, alpha=0.8)
        axes.plot(row["seconds"] / 60, row["bits_per_byte"], "o", color=colour, ms=5, zorder=3)
    for name in names:
        minutes = next(row["minutes"] for row in rows if row["name"] == name)
        label = f"{name}, {minutes:.3g} minutes"
        axes.plot([], [], color=COLOURS[names.index(name) % len(COLOURS)], label=label)
    target = results["target_mean"]
    axes.axhline(target, color=COLOURS[0], lw=0.8, ls="--")
    axes.annotate(f"{target:.3f}", (0, target), xytext=(2, 3), textcoords="offset points", color=COLOURS[0], fontsize=9)
    axes.set(
        xlabel="wall-clock minutes", ylabel="bits per byte", xlim=(0, None),
        title="training loss, smoothed; dots: validation at the end",
    )  # fmt: skip
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130)
    plt.close(figure)
    write_atomically(path, picture.getvalue())


def _smoothed(curve: list[Any], share: float = 0.02) -> list[tuple[float, float]]:
    """An exponential moving average over `share` of the points, its start-up bias removed."""
    weight = 1 - 1 / max(1.0, share * len(curve))
    average, points = 0.0, []
    for number, (seconds, loss) in enumerate(curve, 1):
        average = weight * average + (1 - weight) * loss
        points.append((seconds, average / (1 - weight**number)))
    return points
