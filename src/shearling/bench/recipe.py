"""A race of recipes: wall-clock time to the validation loss that a baseline reaches in its time."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shearling.bench.process import Worker
from shearling.bench.recipe_picture import draw_race
from shearling.bench.shapes import load_shape
from shearling.data.manifest import load_manifest
from shearling.data.spec import DataSpec
from shearling.errors import UserError
from shearling.models.spec import ModelSpec
from shearling.training.resolve import load_experiment
from shearling.training.run_folder import RunFolder, read_json, write_json

PEER = "transformers"
PEER_BATCH = 16


def bench_recipe(
    configs: Sequence[str],
    *,
    data: Path,
    out: Path,
    baseline: str,
    model: str,
    minutes: float,
    share: float,
    seeds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Race the recipes in `configs`, each for `share` of the baseline's minutes, once with every seed.

    All train on the same data, one after the other, seed by seed, so that noise hits all alike. Ours count everything
    from the command's start against their time: import, compilation, evaluation, saving. What is compared is bits per
    byte of the same held-out documents.

    Args:
        baseline: `transformers`, with `model` as its shape; or a config of ours.

    Raises:
        UserError: a config or the data cannot be read, or a run fails.
    """
    configs = list(dict.fromkeys(configs))
    names = [Path(config).stem for config in configs]
    if len(set(names)) < len(names):
        raise UserError(f"bench recipe: two recipes are called {max(names, key=names.count)}: rename a file")
    load_manifest(data)
    ours = [*configs] if baseline == PEER else [baseline, *configs]
    specs = [load_experiment(config, _overrides(data, out, minutes, 0))[0].value.data for config in ours]
    if len({spec.validation_tokens for spec in specs}) > 1:
        raise UserError("bench recipe: the configs differ in data.validation_tokens: give all the same")
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for seed in range(seeds):
        if baseline == PEER:
            rows.append(_peer(load_shape(model), specs[0], data, minutes, seed, say))
        else:
            rows.append(_ours(baseline, "baseline", data, out, minutes, seed, say))
        for config, name in zip(configs, names, strict=True):
            rows.append(_ours(config, name, data, out, share * minutes, seed, say))
        results = _report(rows, minutes, share)  # after each seed, so that an interrupted race has what it came to
        write_json(out / "race.json", {**results, "runs": rows})
        draw_race(rows, results, out / "race.png")
    return results


def _overrides(data: Path, folder: Path, minutes: float, seed: int) -> list[str]:
    return [
        f"data.path={data.resolve()}",
        f"output_dir={folder.resolve()}",
        f"training.minutes={minutes}",
        f"seed={seed}",
    ]


def _peer(
    model: ModelSpec, spec: DataSpec, data: Path, minutes: float, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    order = {
        "model": model.model_dump(),
        "data": str(data),
        "minutes": minutes,
        "seed": seed,
        "batch": PEER_BATCH,
        "seq_len": spec.seq_len,
        "validation_tokens": spec.validation_tokens,
        "threads": torch.get_num_threads(),
    }
    say(f"seed {seed}: {PEER}, {minutes:g} minutes")
    with Worker("shearling.bench.recipe_peer", order) as worker:
        row = worker.ask("train")
        row["mode"] = worker.ready["mode"]
    say(f"seed {seed}: {PEER} ({row['mode']}): {row['bits_per_byte']:.4f} bits per byte, {row['tokens']:,} tokens")
    return {"name": PEER, "baseline": True, "seed": seed, "minutes": minutes, **row}


def _ours(
    config: str, name: str, data: Path, out: Path, minutes: float, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    folder = out / f"{name}_seed{seed}"
    say(f"seed {seed}: {name}, {minutes:.2f} minutes")
    command = [sys.executable, "-m", "shearling", "train", config, *_overrides(data, folder, minutes, seed)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"bench recipe: {name}, seed {seed}: training failed:\n{ended.stderr.strip()[-2000:]}")
    run = RunFolder(folder)
    results = read_json(run.results)
    lines = [line for line in run.read_metrics() if "loss" in line]
    say(f"seed {seed}: {name}: {results['bits_per_byte']:.4f} bits per byte, {results['tokens']:,} tokens")
    return {
        "name": name,
        "baseline": name == "baseline",
        "seed": seed,
        "minutes": minutes,
        "curve": [(line["seconds"], line["loss"]) for line in lines],
        **{key: results[key] for key in ("seconds", "tokens", "loss", "bits_per_byte")},
    }


def _report(rows: list[dict[str, Any]], minutes: float, share: float) -> dict[str, Any]:
    """Means over seeds, and how often each recipe was at or below the baseline of its seed."""
    targets = {row["seed"]: row["bits_per_byte"] for row in rows if row["baseline"]}
    recipes = {}
    for name in dict.fromkeys(row["name"] for row in rows if not row["baseline"]):
        own = {row["seed"]: row["bits_per_byte"] for row in rows if row["name"] == name}
        recipes[name] = {
            "bits_per_byte": own,
            "mean": mean(own.values()),
            "below_baseline": sum(own[seed] <= targets[seed] for seed in targets),
            "margin": mean(targets[seed] - own[seed] for seed in targets),
        }
    return {
        "minutes": minutes,
        "share": share,
        "baseline": next(row["name"] for row in rows if row["baseline"]),
        "target": targets,
        "target_mean": mean(targets.values()),
        "recipes": recipes,
        "tokens": {f"{row['name']}, seed {row['seed']}": row["tokens"] for row in rows},
    }


def race_table(results: dict[str, Any]) -> str:
    """The race in words and figures."""
    seeds = len(results["target"])
    lines = [
        f"{results['baseline']}: {results['target_mean']:.4f} bits per byte in {results['minutes']:g} minutes "
        f"(mean of {seeds} seeds)",
        f"{'':<24}{'minutes':>9}{'bits per byte':>15}{'below by':>10}{'seeds below':>13}",
    ]
    for name, figures in results["recipes"].items():
        lines.append(
            f"{name:<24}{results['share'] * results['minutes']:>9.2f}{figures['mean']:>15.4f}{figures['margin']:>10.4f}"
            f"{figures['below_baseline']:>9} of {seeds}"
        )
    return "\n".join(lines)
