"""Pictures of a run."""

from pathlib import Path
from typing import Any

from shearling.pictures import BLUE, GREY, ORANGE, chart, smooth
from shearling.training.run_folder import RunFolder


def draw_loss_curve(run: RunFolder, title: str) -> Path:
    """Training and validation loss against tokens, the learning rate below, as `loss_curve.png` in the run folder.

    Steps that were skipped, and evaluations whose loss was not finite, have no figures and leave gaps.
    """
    lines = run.read_metrics()
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation_loss" in line]
    losses, x = [line["loss"] for line in steps], [line["tokens"] / 1e6 for line in steps]
    path = run.path / "loss_curve.png"
    with chart(path, heights=(4.4, 1.1)) as (loss_axes, rate_axes):
        loss_axes.plot(x, losses, color=GREY, alpha=0.45, lw=0.8, label="training, each step")
        loss_axes.plot(x, smooth(losses), color=BLUE, lw=1.6, label="training, smoothed")
        loss_axes.plot(
            [line["tokens"] / 1e6 for line in evaluations],
            [line["validation_loss"] for line in evaluations],
            color=ORANGE, marker="o", ms=4, lw=1.2, label=_validation_label(evaluations),
        )  # fmt: skip
        loss_axes.set(ylabel="loss (nats per token)", title=title)
        loss_axes.legend(frameon=False)
        rate_axes.plot(x, [line["learning_rate"] for line in steps], color=BLUE, lw=1.2)
        rate_axes.set(ylabel="learning rate", xlabel="tokens (millions)", ylim=(0, None))
    return path


def _validation_label(evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "validation"
    last = evaluations[-1]
    label = f"validation, at last {last['validation_loss']:.3f} nats"
    return f"{label}, {last['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in last else label


def results_table(results: dict[str, Any]) -> str:
    """Validation figures before and after, and what the run took, as aligned text."""
    first, last = results["first"], results
    rows = [
        ("", "before", "after"),
        ("validation loss (nats/token)", _format(first["loss"], ".4f"), _format(last["loss"], ".4f")),
        ("perplexity", _format(first["perplexity"], ",.1f"), _format(last["perplexity"], ",.2f")),
    ]
    if last["bits_per_byte"] is not None or last["loss"] is None:  # masked tokens say nothing of the others
        rows.append(("bits per byte", _format(first["bits_per_byte"], ".4f"), _format(last["bits_per_byte"], ".4f")))
    table = "\n".join(f"{name:<30}{before:>12}{after:>12}" for name, before, after in rows)
    return (
        f"{table}\n{results['tokens']:,} tokens ({results['epochs']:.1f} epochs) in {results['seconds']:.0f} s: "
        f"{results['tokens_per_second']:,.0f} tokens/s, {results['mfu']:.0%} of the machine's matmul peak"
    )


def _format(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
