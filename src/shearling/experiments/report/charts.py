"""The pictures of curves, differences and learning rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shearling.experiments.report.data import Arm, Band, Comparison, Run, band, is_paired, share, thinned
from shearling.experiments.report.markup import number
from shearling.experiments.report.pictures import (
    Draw,
    Picture,
    Theme,
    legend,
    legend_height,
    look,
    marker,
    scaled,
    short,
)
from shearling.training.run_folder import DIVERGED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Known = Sequence[tuple[int, Arm, Band]]

LOSS = "validation loss (nats per token)"


def loss_curves(comparison: Comparison) -> list[Picture]:
    """Validation loss over tokens with a band over the seeds: the whole run, then its last third."""
    known = [(index, arm, band(arm.runs)) for index, arm in enumerate(comparison.arms)]
    curves = [curve for _, _, found in known for curve in found.curves]
    if not curves:
        return []
    horizon = max(float(curve.tokens[-1]) for curve in curves)
    height = 3.2 + legend_height([_label(arm, found) for _, arm, found in known])
    ends = ", ".join(f"{arm.name} {_end(found)}" for _, arm, found in known)
    return [
        Picture("Loss curves", f"Validation loss over tokens: {ends}.", height, _curves(known, 0.0, horizon)),
        Picture(
            "Loss curves, the last third", f"The last third of the loss curves: {ends}.", height,
            _curves(known, horizon * 2 / 3, horizon),
        ),
    ]  # fmt: skip


def _label(arm: Arm, found: Band) -> str:
    return short(arm.name) + share(len(found.curves), found.of)


def _end(found: Band) -> str:
    if not found.curves:
        return "has no curve"
    if not len(found.x):
        return f"has no mean, since its {found.of} runs have no tokens in common"
    last = f"{number(found.mean[-1], '.3f')} after {found.x[-1]:,.0f} tokens"
    return last + share(len(found.curves), found.of)


def _curves(known: Known, begin: float, end: float) -> Draw:
    """Draws the curves between `begin` and `end` tokens."""

    def draw(part: "Figure", theme: Theme) -> None:
        axes = part.subplots()
        divisor, label = scaled(end, "tokens")
        for index, arm, found in known:
            style = look(theme, index)
            for curve in found.curves:
                axes.plot(curve.tokens / divisor, curve.losses, color=style["color"], lw=0.8, alpha=0.7)
                if curve.outcome == DIVERGED:
                    axes.plot(curve.tokens[-1] / divisor, curve.losses[-1], "X", color=style["color"], ms=8, zorder=5)
            axes.fill_between(found.x / divisor, found.low, found.high, color=style["color"], alpha=0.18, lw=0)
            axes.plot(found.x / divisor, found.mean, **style, label=_label(arm, found))
        margin = 0.02 * (end - begin) or 1.0
        axes.set_xlim((begin - margin) / divisor, (end + margin) / divisor)
        axes.set(xlabel=label, ylabel=LOSS, ylim=_limits(known, begin))
        legend(part, axes)

    return draw


def _limits(known: Known, begin: float) -> tuple[float, float]:
    """Losses that the axis shows. Runs that went wrong leave upwards: beside them the others would be one line."""
    curves = [curve for _, _, found in known for curve in found.curves]
    fine = [loss for curve in curves if curve.outcome == "ok" for loss in curve.since(begin)]
    shown = fine or [loss for curve in curves for loss in curve.losses]
    return _around(min(shown), max(shown))


def _around(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def training_curve(run: Run) -> list[Picture]:
    """A single run's loss in training and on validation text."""
    tokens, losses = run.curve("loss")
    at, held_out = run.curve("validation_loss")
    if not len(tokens) and not len(at):
        return []

    def draw(part: "Figure", theme: Theme) -> None:
        axes = part.subplots()
        divisor, label = scaled(max([*tokens[-1:], *at[-1:]]), "tokens")
        axes.plot(thinned(tokens) / divisor, thinned(losses), color=theme.muted, lw=1, label="training")
        style = {**look(theme, 1), "marker": "o", "ms": 3.5, "lw": 1.3}
        axes.plot(at / divisor, held_out, **style, label="validation")
        axes.set(xlabel=label, ylabel="loss (nats per token)")
        legend(part, axes)

    last = f"validation loss at last {number(held_out[-1], '.3f')}" if len(held_out) else "no evaluation"
    return [Picture("Loss curve", f"Training and validation loss over tokens; {last}.", 3.5, draw)]


def differences(comparison: Comparison) -> list[Picture]:
    """Each arm's difference from the baseline with its interval, the seeds' own, and what could not have been seen."""
    baseline = comparison.figures["baseline"]
    shown = [(index, arm) for index, arm in enumerate(comparison.arms) if arm.figures["versus"]]
    if not shown:
        return []

    def draw(part: "Figure", theme: Theme) -> None:
        axes = part.subplots()
        for row, (index, arm) in enumerate(shown):
            versus, style = arm.figures["versus"], look(theme, index)
            blind = versus["smallest_visible"]
            if blind is not None:
                label = "below the smallest visible effect" if not axes.get_legend_handles_labels()[1] else None
                axes.barh(row, 2 * blind, 0.62, left=-blind, color=theme.muted, alpha=0.18, lw=0, label=label)
            seeds = _paired(comparison, arm)
            axes.plot(seeds, [row + 0.2] * len(seeds), "|", color=style["color"], ms=7)
            if versus["low"] is not None:
                axes.plot([versus["low"], versus["high"]], [row, row], color=style["color"], lw=2.2)
            if versus["difference"] is not None:
                axes.plot(versus["difference"], row, marker(index), color=style["color"], ms=7)
        axes.axvline(0, color=theme.ink, lw=1)
        names = [short(arm.name) for _, arm in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel=f"difference from {short(baseline)} (nats per token)")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.set_title("← better", loc="left", color=theme.muted)
        axes.set_title("worse →", loc="right", color=theme.muted)
        legend(part, axes)

    alt = "; ".join(f"{arm.name} {_interval(arm.figures['versus'])}" for _, arm in shown)
    title = f"Differences from {baseline}"
    return [Picture(title, f"Differences in nats with 95 % intervals: {alt}.", 1.3 + 0.42 * len(shown), draw)]


def _interval(versus: dict[str, Any]) -> str:
    middle = number(versus["difference"], "+.4f")
    return f"{middle} ({number(versus['low'], '+.4f')} to {number(versus['high'], '+.4f')})"


def _paired(comparison: Comparison, arm: Arm) -> list[float]:
    """Each seed's own difference from the baseline's run of that seed; none where the seeds are not paired."""
    if not is_paired(comparison, arm):
        return []
    baseline = next(each for each in comparison.arms if each.name == comparison.figures["baseline"])
    of_seed = {run["seed"]: run["loss"] for run in baseline.figures["runs"]}
    return [run["loss"] - of_seed[run["seed"]] for run in arm.figures["runs"] if run["seed"] in of_seed]


def learning_rates(comparison: Comparison) -> list[Picture]:
    """Loss over learning rate for each arm that was tuned; ringed the chosen, crossed what diverged or collapsed."""
    tuned = [(index, arm) for index, arm in enumerate(comparison.arms) if arm.figures["tuning"]]
    if not tuned:
        return []

    def draw(part: "Figure", theme: Theme) -> None:
        axes = part.subplots()
        axes.set_xscale("log")
        rates = sorted({point["learning_rate"] for _, arm in tuned for point in arm.figures["tuning"]["points"]})
        fine = [p["loss"] for _, arm in tuned for p in arm.figures["tuning"]["points"] if p["outcome"] == "ok"]
        low, high = _around(min(fine), max(fine)) if fine else (0.0, 1.0)
        step = 0.05 * (high - low)
        for row, (index, arm) in enumerate(tuned):
            points = sorted(arm.figures["tuning"]["points"], key=lambda point: point["learning_rate"])
            style, sign = look(theme, index), marker(index)
            ok = [point["outcome"] == "ok" for point in points]
            x = [point["learning_rate"] for point in points]
            y = [point["loss"] if fits else high + step * (row + 1) for point, fits in zip(points, ok, strict=True)]
            axes.plot(x, y, **style, marker=sign, ms=4.5, markevery=ok, label=short(arm.name))
            axes.plot(x, y, "X", color=style["color"], ms=7, markevery=[not fits for fits in ok])
            chosen = [rate == arm.figures["learning_rate"] for rate in x]
            axes.plot(x, y, "o", mfc="none", mec=style["color"], ms=12, mew=1.4, ls="", markevery=chosen)
        axes.set_ylim(low, high + step * (len(tuned) + 1))
        axes.set_xticks(_few(rates), [f"{rate:.2g}" for rate in _few(rates)])
        axes.minorticks_off()
        axes.set(xlabel="peak learning rate", ylabel=LOSS)
        legend(part, axes)

    alt = "; ".join(f"{arm.name} was trained at {arm.figures['learning_rate']:.3g}" for _, arm in tuned)
    height = 3.0 + legend_height([arm.name for _, arm in tuned])
    return [Picture("Learning-rate sensitivity", f"Loss over learning rate for each arm: {alt}.", height, draw)]


def _few(values: Sequence[float], most: int = 9) -> list[float]:
    """Evenly spaced ones of many values: as many as an axis has room for."""
    return list(values[:: -(-len(values) // most)])
