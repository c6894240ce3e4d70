"""The frontier: what loss each size would reach at the budget."""

from collections.abc import Sequence
from pathlib import Path

from shearling.experiments.plan.choose import CHINCHILLA, Choice
from shearling.pictures import BLUE, GREY, ORANGE, chart

SHOWN = 1.3
"""How much worse than the best a size may be to be drawn."""


def draw_frontier(choices: Sequence[Choice], chosen: Choice, title: str, path: Path) -> None:
    """Expected loss against parameters, a point a width; the choice, and where 20 tokens a parameter would be."""
    lowest = min(choice.loss for choice in choices)
    optimum = min(choices, key=lambda c: abs(c.tokens_per_parameter - CHINCHILLA))
    choices = [choice for choice in choices if choice.loss <= SHOWN * lowest or choice is chosen]
    with chart(path) as (axes,):
        axes.plot([c.n for c in choices], [c.loss for c in choices], color=BLUE, marker="o", ms=4, lw=1.4)
        for choice in choices:
            axes.annotate(
                f"{choice.d_model} × {choice.n_layers}", (choice.n, choice.loss), xytext=(0, 7),
                textcoords="offset points", ha="center", fontsize=7, color=GREY,
            )  # fmt: skip
        label = f"chosen: {chosen.d_model} wide, {chosen.n_layers} layers, {chosen.loss:.3f} bits per byte"
        axes.plot(chosen.n, chosen.loss, "o", color=ORANGE, ms=9, zorder=3, label=label)
        if optimum in choices:
            axes.axvline(optimum.n, color=GREY, lw=0.8, ls="--", label="nearest to 20 tokens a parameter")
        axes.margins(y=0.12)
        axes.set_xscale("log")
        axes.set(xlabel="parameters that each token meets", ylabel="expected bits per byte", title=title)
        axes.legend(frameon=False)
