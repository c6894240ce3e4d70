"""An arm against itself: how often a comparison finds a difference where there is none.

    shearling prepare stories_train.txt --out data/stories --vocab-size 2048
    OMP_NUM_THREADS=1 python benchmarks/aa.py data/stories

Each repetition trains a tiny model from new seeds under two names, and judges as `shearling compare --over seed` does
(Welch's test), and as it does arms that share their seeds (paired). Both may call at most 5 in 100 different.
"""

import argparse
import contextlib
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from scipy.stats import binom

from shearling.data.manifest import load_manifest
from shearling.experiments.compare.plan import Arm, Plan
from shearling.experiments.compare.verdict import compare_arms
from shearling.experiments.statistics import LEVEL
from shearling.training.loop import train
from shearling.training.spec import ExperimentSpec

APART = 1000  # seeds between one arm's and the other's


def tiny(data: Path, steps: int) -> ExperimentSpec:
    """A model that trains in a second or two."""
    vocabulary = load_manifest(data).tokenizer.vocab_size
    return ExperimentSpec.model_validate(
        {
            "name": "tiny",
            "output_dir": "unused",
            "model": {
                "d_model": 32, "n_layers": 2, "n_heads": 2, "intermediate_size": 64, "vocab_size": vocabulary,
                "max_seq_len": 64,
            },
            "data": {"path": str(data), "seq_len": 64, "validation_tokens": 8192},
            "training": {
                "steps": steps, "tokens_per_update": 1024, "schedule": {"warmup_steps": 5},
                "optimizer": {"learning_rate": 1e-2}, "evaluate_every": None, "save_every": None, "device": "cpu",
            },
        }
    )  # fmt: skip


def final_loss(arm: Arm, seed: int) -> float:
    """The validation loss of one run, in nats per token."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        return train(arm.run(Path(folder), seed))["loss"]


def main() -> None:
    """Repeat the comparison and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder written by `shearling prepare`")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: one seed has no test: give 2 or more")
    config, began = tiny(options.data, options.steps), time.perf_counter()
    different = {"independent": 0, "paired": 0}
    for repetition in range(options.repetitions):
        arms = tuple(
            Arm(name, config.model_copy(update={"seed": 2 * APART * repetition + offset}))
            for name, offset in (("a", 0), ("b", APART))
        )
        plan = Plan(arms, "a", options.seeds, None, ())
        losses = {arm.name: [final_loss(arm, seed) for seed in plan.seeds(arm)] for arm in arms}
        # As if both had the first one's seeds: independent runs are pairs without anything in common.
        sharing = replace(plan, arms=tuple(Arm(arm.name, config) for arm in arms))
        found = {"independent": compare_arms(losses, plan)["b"], "paired": compare_arms(losses, sharing)["b"]}
        for design, (_, p) in found.items():
            different[design] += p is not None and p < LEVEL
        difference, p = found["independent"]
        print(f"{repetition + 1:>3}: {difference.difference:+.4f} nats, p {p:.3f}, sd {difference.sd:.4f}", flush=True)
    bound = int(binom.ppf(0.95, options.repetitions, LEVEL))
    for design, count in different.items():
        print(
            f"{design}: {count} of {options.repetitions} different at 5 %; 95 of 100 such series have {bound} or fewer"
        )
    print(f"{options.seeds} seeds an arm, {options.steps} steps a run, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
