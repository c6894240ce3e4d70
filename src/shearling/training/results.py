"""What a run leaves in results.json."""

import math
from dataclasses import asdict
from typing import Any

from shearling.training.checkpoints import step_folder, weights_hash
from shearling.training.job import Job
from shearling.training.run_folder import FINISHED
from shearling.training.state import Evaluation, Progress, Warmed


def results_of(job: Job, progress: Progress, outcome: str) -> dict[str, Any]:
    """What `results.json` holds. A diverged run's loss is that of its last evaluation, and it has no final weights.

    Tokens, FLOPs and their speed are of the training alone, seconds of all.
    """
    assert progress.first
    assert progress.last
    assert progress.best
    flops = progress.tokens * job.resolved.flops_per_token
    training_seconds = progress.seconds - progress.warmed.seconds or math.inf  # none, where it stopped before step 1
    return {
        "outcome": outcome,
        **_figures(progress.last),
        "first": _figures(progress.first),
        "best": _figures(progress.best),
        "tokens": progress.tokens,
        "epochs": job.stream.epoch(progress.step),
        "flops": flops,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / training_seconds,
        "mfu": flops / training_seconds / job.peak,
        "skipped_steps": progress.skipped,
        "random_warmup": _random_warmup(job, progress.warmed),
        "parameters": job.resolved.parameters.total,
        "weights_sha256": (
            weights_hash(step_folder(job.run.checkpoints, progress.step)) if outcome == FINISHED else None
        ),
    }


def _random_warmup(job: Job, warmed: Warmed) -> dict[str, Any] | None:
    spec, tokens = job.config.random_warmup, warmed.steps * job.config.training.tokens_per_update
    if spec is None:
        return None
    return {"kind": spec.kind, **asdict(warmed), "tokens": tokens, "flops": tokens * job.resolved.flops_per_token}


def _figures(evaluation: Evaluation) -> dict[str, float | None]:
    """An evaluation as JSON can hold it: what is not finite becomes null."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(evaluation).items()}
