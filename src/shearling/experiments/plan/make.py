"""`plan`: measure, choose, explain, and write the config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shearling.config import load
from shearling.data.manifest import load_manifest
from shearling.experiments.plan import choose
from shearling.experiments.plan.laws import Law, fit, read_runs
from shearling.experiments.plan.machine import measure_speed
from shearling.experiments.plan.picture import draw_frontier
from shearling.files import write_atomically
from shearling.training.spec import ExperimentSpec

DEFAULT_LAW = Law(
    0.265, 8.18, 0.175, 12.47, 0.175, "of nine small runs on mixed English text and of nanochat's optimum at 1e18 FLOPs"
)
"""docs/decisions.md has the runs, and how far each is from it."""


@dataclass(frozen=True)
class Plan:
    """A choice and all that led to it."""

    chosen: choose.Choice
    choices: list[choose.Choice]
    rows: list[tuple[str, str, str]]
    warnings: list[str]
    config: Path
    picture: Path


def make_plan(
    budget: choose.Budget,
    data: Path,
    out: Path,
    *,
    fitted: Sequence[Path],
    seq_len: int,
    aspect: float,
    device: str,
    say: Callable[[str], None],
) -> Plan:
    """Choose how to spend `budget` on the prepared text in `data`; the config goes to `out`, the picture beside it.

    Args:
        fitted: folders of runs that the law is fitted to.
        aspect: width over depth.

    Raises:
        UserError: the data or runs cannot be read, or the budget is too small.
    """
    manifest = load_manifest(data)
    law = fit(read_runs(fitted), DEFAULT_LAW) if fitted else DEFAULT_LAW
    vocab_size = manifest.tokenizer.vocab_size

    def experiment(model: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": out.stem,
            "output_dir": f"outputs/{out.stem}",
            "model": model,
            "data": {"path": str(data), "seq_len": seq_len},
            "training": training,
        }

    def measured(d_model: int, n_layers: int) -> ExperimentSpec:
        options = {
            "steps": 1, "tokens_per_update": 16 * seq_len, "micro_batch": 16, "device": device,
            "optimizer": {"kind": "muon"}, "schedule": {"warmup_steps": 0},
        }  # fmt: skip
        model = choose.model_options(d_model, n_layers, vocab_size, seq_len)
        return ExperimentSpec.model_validate(experiment(model, options))

    speed = measure_speed(measured, device, say) if budget.minutes is not None else None
    available = manifest.splits["train"].tokens
    choices = choose.candidates(budget, speed, law, vocab_size, seq_len, available, aspect)
    chosen = choose.best(choices, budget)
    training = choose.training_options(chosen, budget, seq_len)
    model = choose.model_options(chosen.d_model, chosen.n_layers, vocab_size, seq_len, chosen.tied)
    head = f"# {budget}, planned by shearling: {chosen.loss:.3f} bits per byte expected.\n"
    text = yaml.safe_dump(experiment(model, training), sort_keys=False)
    write_atomically(out, head + text)
    load(ExperimentSpec, out)  # what is written can be trained
    picture = out.with_suffix(".png")
    draw_frontier(choices, chosen, f"{budget}: expected loss by size", picture)
    return Plan(
        chosen, choices, choose.reasons(chosen, choices, training, law, budget, aspect), choose.warnings(chosen),
        out, picture,
    )  # fmt: skip
