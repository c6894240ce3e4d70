"""The pictures of diagnostics: layer × step for each arm, and scalars over steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shearling.experiments.report.data import Arm, Array, Measured, diagnostic_names, measured, share
from shearling.experiments.report.pictures import Picture, Theme, legend, legend_height, look, short

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

NAMES = {
    "residual_variance": ("residual-stream variance", ""),
    "angular_distance": ("angular distance", "share of π"),
    "max_over_median": ("massive activations", "largest / median"),
    "kurtosis": ("kurtosis of the activations", ""),
    "attention_entropy": ("attention entropy", "share of the largest"),
    "gradient_norm": ("gradient norm", "L2"),
    "update_norm": ("update norm", "L2"),
    "relative_update_norm": ("update norm / weight norm", ""),
    "layer_removal_loss": ("loss without the layer, more by", "nats"),
    "log_z": ("log Z", "nats"),
    "calibration_error": ("expected calibration error", ""),
    "loss_spike_score": ("spikes of the loss", "share of steps"),
    "gradient_norm_spike_score": ("spikes of the gradient norm", "share of steps"),
}
"""Diagnostics in words, with their units, where a name with spaces would not do."""

WIDE_RANGE = 30.0
"""Largest over smallest value from which on a scale is logarithmic."""

Known = Sequence[tuple[int, Arm, Measured]]


def diagnostics(arms: Sequence[Arm]) -> list[Picture]:
    """A heat map for each diagnostic that was measured per layer, then the scalars as lines."""
    layered, scalars = diagnostic_names(arms)
    drawn = [(_heat_map, name) for name in layered] + [(_line, name) for name in scalars]
    return [draw(name, *known) for draw, name in drawn if (known := _known(arms, name))]


def _known(arms: Sequence[Arm], name: str) -> tuple[Known, str] | None:
    """What the arms measured, and of which there is nothing to draw.

    None where no figure is finite, as of a spike score before there is a history.
    """
    found = [(index, arm, measured(arm.runs, name)) for index, arm in enumerate(arms)]
    if not any(np.isfinite(each.mean).any() for _, _, each in found):
        return None
    missing = [f"{arm.name} ({_why(each)})" for _, arm, each in found if not len(each.steps)]
    note = f"Not drawn: {', '.join(missing)}." if missing else ""
    return [each for each in found if len(each[2].steps)], note


def _why(found: Measured) -> str:
    return "no step in common to its seeds" if found.seeds else f"measured by 0 of {found.of} seeds"


def _label(arm: Arm, found: Measured) -> str:
    return short(arm.name) + share(found.seeds, found.of)


def _words(name: str) -> tuple[str, str]:
    """A diagnostic's name, and the unit that it is counted in or nothing."""
    return NAMES.get(name, (name.replace("_", " "), ""))


def _title(name: str) -> str:
    words, unit = _words(name)
    return f"{words[:1].upper()}{words[1:]}" + (f" ({unit})" if unit else "")


def _heat_map(name: str, known: Known, note: str) -> Picture:
    def draw(part: "Figure", theme: Theme) -> None:
        import matplotlib

        panels = part.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
        norm = _norm([found.mean for _, _, found in known])
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=theme.missing)
        for axes, (_, arm, found) in zip(panels, known, strict=True):
            layers = found.mean.shape[1]
            mesh = axes.pcolormesh(
                _edges(found.steps), np.arange(layers + 1) + 0.5, np.ma.masked_invalid(found.mean.T),
                norm=norm, cmap=colours, rasterized=True,
            )  # fmt: skip
            if _has_names(known):
                axes.set_title(_label(arm, found))
            axes.set(ylabel="layer", yticks=_layer_ticks(layers))
            axes.grid(visible=False)
        panels[-1].set_xlabel("step")
        bar = part.colorbar(mesh, ax=list(panels), aspect=8 + 7 * len(known), pad=0.02)
        bar.outline.set_visible(False)
        _plain_ticks(bar.ax.yaxis)

    alt = _alt(f"Heat map of {_words(name)[0]} by layer and step", known, note)
    return Picture(_title(name), alt, 0.75 + 1.0 * len(known), draw, note)


def _line(name: str, known: Known, note: str) -> Picture:
    def draw(part: "Figure", theme: Theme) -> None:
        axes = part.subplots()
        for index, arm, found in known:
            style = look(theme, index)
            axes.fill_between(found.steps, found.low[:, 0], found.high[:, 0], color=style["color"], alpha=0.18, lw=0)
            axes.plot(found.steps, found.mean[:, 0], **style, label=_label(arm, found))
        if _spans_decades([found.mean for _, _, found in known]):
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        axes.set(xlabel="step", ylabel=_words(name)[1] or _words(name)[0])
        if _has_names(known):
            legend(part, axes)

    height = 2.4 + (legend_height([_label(arm, found) for _, arm, found in known]) if _has_names(known) else 0)
    return Picture(_title(name), _alt(f"{_words(name)[0]} over steps", known, note), height, draw, note)


def _has_names(known: Known) -> bool:
    """Whether there is more to tell apart, or to tell, than one whole arm."""
    return len(known) > 1 or any(share(found.seeds, found.of) for _, _, found in known)


def _alt(what: str, known: Known, note: str) -> str:
    figures = (f"{arm.name}{share(found.seeds, found.of)}: {_extremes(found)}" for _, arm, found in known)
    return " ".join(filter(None, [f"{what}. {'. '.join(figures)}.", note]))


def _extremes(found: Measured) -> str:
    values = found.mean[np.isfinite(found.mean)]
    return f"{values.min():.3g} to {values.max():.3g}" if values.size else "never finite"


def _spans_decades(tables: Sequence[Array]) -> bool:
    values = np.concatenate([table[np.isfinite(table)] for table in tables])
    return bool(values.min() > 0 and values.max() / values.min() > WIDE_RANGE)


def _norm(tables: Sequence[Array]) -> "Normalize":
    """One scale for all arms: logarithmic where the values span decades."""
    from matplotlib.colors import LogNorm, Normalize

    values = np.concatenate([table[np.isfinite(table)] for table in tables])
    scale = LogNorm if _spans_decades(tables) else Normalize
    return scale(values.min(), values.max())


def _edges(steps: Array) -> Array:
    """Borders (S + 1,) of the cells of steps (S,): halfway between neighbours, as far out at both ends."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def _layer_ticks(layers: int) -> list[int]:
    """Layers counted from 1: the first, the last and, where there is room, the middle."""
    return sorted({1, layers} | ({(layers + 1) // 2} if layers > 4 else set()))


def _plain_ticks(axis: Any) -> None:
    """Ticks written as 0.01 and 3e+05, without powers set as mathematics."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")
