"""Folders as `compare` and `train` leave them, with made-up figures, for the tests of the report."""

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

from shearling.config import dump, flatten
from shearling.experiments.equations import model_equations
from shearling.training.spec import ExperimentSpec

SEEDS = (0, 1, 2)
STEPS, EVERY, TOKENS = 600, 40, 8192
LAYERS = 6
FIRST = 7.62

ARMS = {
    # name: final loss, verdict's figures (difference, low, high, p after Holm, smallest visible) or None
    "preln": (2.301, None),
    "postln": (2.349, (0.048, 0.031, 0.065, 0.008, 0.019)),
    "peri_ln": (2.290, (-0.011, -0.028, 0.006, 0.110, 0.021)),
    "custom_norm": (2.262, (-0.039, -0.056, -0.022, 0.006, 0.018)),
}

MODELS: dict[str, dict[str, Any]] = {
    "postln": {"placement": {"kind": "post"}},
    "peri_ln": {"placement": {"kind": "sandwich"}},
    "custom_norm": {"norm": {"kind": "dyt"}},
}
"""What makes an arm's model another than the baseline's."""


def config(name: str, seed: int = 0) -> ExperimentSpec:
    """A small experiment with the arm's own model; its data are not there."""
    return ExperimentSpec.model_validate(
        {
            "name": "example",
            "output_dir": "outputs/example",
            "seed": seed,
            "model": {
                "d_model": 32, "n_layers": LAYERS, "n_heads": 2, "intermediate_size": 64, "vocab_size": 300,
                "max_seq_len": 32, **MODELS.get(name, {}),
            },
            "data": {"path": "data/none", "seq_len": 32},
            "training": {"steps": STEPS, "tokens_per_update": TOKENS},
        }
    )  # fmt: skip


@cache
def equations_of(name: str) -> str:
    """What the runs of an arm record."""
    return model_equations(config(name).model, whole=True) + "\n"


def make_run(folder: Path, name: str, final: float, seed: int = 0, *, ends: int = STEPS, scale: float = 1.0) -> Path:
    """A run folder whose validation loss falls to `final`; one that ends early has diverged."""
    draw = random.Random(f"{name} {seed}")
    shift = draw.gauss(0, 0.008)

    def loss(step: int) -> float:
        return final + shift + (FIRST - final) * math.exp(-9 * (step / STEPS) ** 0.55) * (1 + 0.02 * shift)

    lines: list[dict[str, Any]] = []
    for step in range(0, ends + 1, 4):
        if step:
            seen = {"step": step, "tokens": step * TOKENS, "loss": loss(step) + draw.gauss(0.02, 0.05)}
            lines.append({**seen, "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": step * 0.4})
        if step % EVERY == 0:
            held_out = {"tokens": step * TOKENS, "validation_loss": loss(step), "bits_per_byte": loss(step) / 3}
            lines.append({"step": step, **held_out})
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "diagnostics.jsonl", [_measure(step, draw, scale) for step in range(0, ends + 1, EVERY)])
    (folder / "experiment_config.yaml").write_text(dump(config(name, seed)))
    (folder / "equations.txt").write_text(equations_of(name))
    provenance = {
        "git_commit": "0123abc", "python": "3.11.7", "platform": "Linux-6.1-x86_64", "device": "CPU, 1 thread",
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "command_line": ["shearling", "train", name],
        "hashes": {"config": "c0ffee", "data": "da7a" * 16, "tokenizer": "70ce" * 16, "code": ""},
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def make_results(folder: Path) -> None:
    """What a run leaves when it ends."""
    last = {"step": STEPS, "loss": 2.301, "perplexity": 9.984, "bits_per_byte": 0.914}
    first = {"step": 0, "loss": FIRST, "perplexity": 2038.6, "bits_per_byte": 3.03}
    rest = {"tokens": STEPS * TOKENS, "flops": 9.1e13, "seconds": 240.0, "tokens_per_second": 20480.0, "mfu": 0.4}
    results = {**last, "outcome": "finished", "first": first, "best": last, **rest, "epochs": 1.2, "parameters": 3e6}
    (folder / "results.json").write_text(json.dumps({**results, "parameters": 3_010_000}))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _measure(step: int, draw: random.Random, scale: float) -> dict[str, Any]:
    growth = 1 + 3 * step / STEPS
    return {
        "step": step,
        "tokens": step * TOKENS,
        "residual_variance": [scale * 0.02 * growth**layer * draw.uniform(0.9, 1.1) for layer in range(LAYERS)],
        "angular_distance": [0.12 + 0.3 / (layer + 1) + draw.gauss(0, 0.01) for layer in range(LAYERS)],
        "layer_removal_loss": [0.05 * layer - 0.02 if step else None for layer in range(LAYERS)],
        "log_z": 5.7 + scale * step / STEPS,
        "calibration_error": 0.02 * scale,
    }


def _tuning(final: float) -> dict[str, Any]:
    rates = [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    losses = [final + 0.09 * math.log2(rate / 2e-3) ** 2 * 0.5 for rate in rates[:-1]] + [FIRST]
    points = [
        {"learning_rate": rate, "loss": loss, "outcome": "diverged" if loss == FIRST else "ok", "folder": f"lr-{rate}"}
        for rate, loss in zip(rates, losses, strict=True)
    ]
    return {"seed": 99, "points": points, "best_at_edge": False, "sensitivity": 0.212}


def _sentence(difference: float, low: float, high: float, p: float, visible: float) -> str:
    if p >= 0.05:
        return f"not distinguishable at this scale: 3 seeds could have seen {visible} nats"
    word, ends = ("better", (-high, -low)) if difference < 0 else ("worse", (low, high))
    return f"{word} by {abs(difference):.3f} nats ({ends[0]:.3f} to {ends[1]:.3f}), p {p} after Holm"


def _arm(folder: Path, name: str, final: float, versus: tuple[float, ...] | None, tuned: bool) -> dict[str, Any]:
    runs = []
    for seed in SEEDS:
        diverged = name == "postln" and seed == 2
        run = f"runs/{name.strip('<>/ ')}/seed-{seed}"
        make_run(folder / run, name, final, seed, ends=STEPS // 2 if diverged else STEPS, scale=1 + final % 0.1 * 20)
        noise = random.Random(f"{name} {seed}").gauss(0, 0.008)
        runs.append(
            {
                "seed": seed, "folder": run, "outcome": "diverged" if diverged else "ok", "loss": final + noise,
                "raw_loss": None if diverged else final + noise, "first_loss": FIRST, "bits_per_byte": 0.91,
                "tokens": STEPS * TOKENS, "flops": 9.1e13, "seconds": 240.0, "tokens_per_second": 20480.0,
            }
        )  # fmt: skip
    keys = ("difference", "low", "high", "p_holm", "smallest_visible")
    figures = versus and {**dict(zip(keys, versus, strict=True)), "n": 3, "p": versus[3] / 3, "sd": 0.007}
    return {
        "name": name, "options": {"model.placement.kind": name, "model.norm.kind": "rmsnorm"},
        "parameters": 3_010_000, "flops_per_token": 18_500_000, "learning_rate": 2e-3,
        "tuning": _tuning(final) if tuned else None, "runs": runs, "mean": final, "sd": 0.0081,
        "versus": figures and {**figures, "verdict": _sentence(*versus)},
    }  # fmt: skip


def make_comparison(folder: Path, arms: dict[str, Any] = ARMS, *, tuned: bool = True) -> Path:
    """A finished comparison of `arms`, the first of which is the baseline; a run of the arm `postln` diverges."""
    entries = [_arm(folder, name, final, versus, tuned) for name, (final, versus) in arms.items()]
    losses = {name: final for name, (final, _) in arms.items()}
    recipe = {".".join(keys): value for keys, value in flatten(config("example")).items()}
    comparison = {
        "kind": "comparison", "version": 1, "name": "placements on stories", "baseline": next(iter(arms)),
        "command": ["shearling", "compare", "preln.yaml", "postln.yaml", "--seeds", "3"],
        "seeds": list(SEEDS), "paired": True, "threads": 1, "jobs": 2, "unigram_loss": 5.12,
        "differs": ["model.placement.kind", "model.norm.kind"], "recipe": recipe,
        "warnings": ["the machine was shared: seconds are not comparable"], "arms": entries,
        "budgets": [
            {"kind": "tokens", "at": STEPS * TOKENS, "losses": losses, "mid_run": False},
            {"kind": "flops", "at": 8.7e13, "losses": losses, "mid_run": True},
            {"kind": "seconds", "at": 231.4, "losses": {**losses, next(iter(arms)): None}, "mid_run": True},
        ],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder
