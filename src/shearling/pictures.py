"""What the single charts that commands leave behind have in common: style, smoothing, and how they are written."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, BLUE, ORANGE, GREEN, PURPLE = "#8a8f98", "#3b6fb6", "#d9822b", "#5a9a5a", "#a25fa8"


@contextmanager
def chart(path: Path, heights: Sequence[float] = (4.5,)) -> Iterator[list["Axes"]]:
    """Axes below one another, of these heights in inches, on one x axis; written to `path` as a PNG at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user has set
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0].tolist()
        yield axes
        for each in axes:
            each.grid(alpha=0.25)
            each.spines[["top", "right"]].set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        write_atomically(path, picture.getvalue())


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with its start-up bias removed (as Adam's moments, arXiv 1412.6980)."""
    average, smoothed = 0.0, []
    for i, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**i))
    return smoothed
