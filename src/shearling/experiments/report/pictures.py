"""What all pictures share: colours, light and dark; how one becomes SVG for the page, and several one PNG.

Matplotlib is imported where something is drawn.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches of one picture on the page: legible on a telephone, and two stand side by side on a screen."""

CHARACTERS = 62
"""About as many stand side by side in WIDTH."""

DPI = 160
"""Pixels per inch of what is written as PNG."""

_NAMELESS = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""No word in a picture of when and with what it was made."""

MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
LONGEST_NAME = 28


@dataclass(frozen=True)
class Theme:
    """Colours of a page by day or by night."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    missing: str
    cycle: tuple[str, ...]
    """One for each arm: after Okabe and Ito's, which the colour-blind tell apart, with contrast to the paper."""


LIGHT = Theme(
    "light", "#ffffff", "#1c2126", "#5b646e", "#dfe3e8", "#b9bfc6",
    ("#0072b2", "#d55e00", "#009e73", "#b8589a", "#6b3410", "#1f2b8a", "#8a8f94"),
)  # fmt: skip
DARK = Theme(
    "dark", "#1b2026", "#e8ebee", "#a3adb8", "#343c45", "#59626c",
    ("#3f9be0", "#e8702a", "#2bc796", "#d58ab8", "#ffd966", "#c9e6ff", "#727a83"),
)  # fmt: skip


Draw: TypeAlias = "Callable[[Figure, Theme], None]"


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        title: what stands above it.
        alt: what it shows, for those who cannot see it.
        height: inches; the width is WIDTH.
        draw: draws it into an empty figure.
        note: what stands below it: what is not drawn.
    """

    title: str
    alt: str
    height: float
    draw: Draw
    note: str = ""


def svg(picture: Picture, theme: Theme) -> str:
    """The picture as SVG without a background; the same data give the same text."""
    with _drawn(picture, theme) as figure:
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NAMELESS, dpi=200)
    return re.sub(r"\s*\n\s*", " ", file.getvalue().decode())


def png(pictures: Sequence[Picture], columns: int, theme: Theme = LIGHT) -> bytes:
    """Pictures, each below its title, row by row as one PNG."""
    from matplotlib.image import imsave

    drawn = [_pixels(picture, theme) for picture in pictures]
    rows = [drawn[first : first + columns] for first in range(0, len(drawn), columns)]
    height = [max(len(each) for each in row) for row in rows]
    width = max(each.shape[1] for each in drawn)
    canvas = np.empty((sum(height), width * min(columns, len(drawn)), 4), np.uint8)
    canvas[:] = drawn[0][0, 0]  # the paper
    for below, row in enumerate(rows):
        for beside, each in enumerate(row):
            top, left = sum(height[:below]), width * beside
            canvas[top : top + len(each), left : left + width] = each
    file = io.BytesIO()
    imsave(file, canvas, format="png", dpi=DPI)
    return file.getvalue()


def _pixels(picture: Picture, theme: Theme) -> npt.NDArray[np.uint8]:
    """The picture with its title as pixels (height, width, RGBA)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _drawn(picture, theme) as figure:
        figure.set_size_inches(WIDTH, picture.height + 0.3)
        figure.suptitle(picture.title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())


@contextmanager
def _drawn(picture: Picture, theme: Theme) -> Iterator["Figure"]:
    """The picture as a figure, in the theme's style as long as the context lasts."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user has set
        matplotlib.rcParams.update(_style(theme))
        figure = Figure(figsize=(WIDTH, picture.height), dpi=DPI, layout="constrained")
        picture.draw(figure, theme)
        yield figure


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "text.parse_math": False,  # a name may hold a $
        "svg.hashsalt": "shearling",
        "font.size": 9,
        "figure.facecolor": theme.paper,
        "figure.constrained_layout.w_pad": 0.07,
        "figure.constrained_layout.h_pad": 0.06,
        "axes.facecolor": "none",
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.6,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "image.cmap": "viridis",
    }


def look(theme: Theme, index: int) -> dict[str, Any]:
    """Colour and dashes of the arm at this place: the same in every picture."""
    colours = len(theme.cycle)
    return {"color": theme.cycle[index % colours], "linestyle": DASHES[index // colours % len(DASHES)]}


def marker(index: int) -> str:
    """The arm's sign, which also tells it from others where colours do not."""
    return MARKERS[index % len(MARKERS)]


def short(name: str) -> str:
    """A name that fits beside an axis; a space before `_`, since Matplotlib leaves such names out of legends."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return f" {cut}" if cut.startswith("_") else cut


def legend(part: "Figure", axes: "Axes") -> None:
    """The names of what is drawn in `axes`, below it, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        part.legend(
            handles, labels, loc="outside lower center", ncols=_columns(labels), columnspacing=1.2, handlelength=1.8
        )


def legend_height(names: Sequence[str]) -> float:
    """Inches that a legend of these names takes."""
    return 0.1 + 0.19 * -(-len(names) // _columns([short(name) for name in names]))


def _columns(labels: Sequence[str]) -> int:
    """As many columns as these labels fit into, filled from above, each with room for a line beside it."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[first : first + rows])) for first in range(0, len(labels), rows)]
        if sum(longest) + 6 * len(longest) <= CHARACTERS:
            return len(longest)
    return 1


def scaled(largest: float, unit: str) -> tuple[float, str]:
    """What to divide figures of this size by, and what the axis then counts."""
    for power, word in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= 2 * power:
            return power, f"{unit} ({word})"
    return 1.0, unit
