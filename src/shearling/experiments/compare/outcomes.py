"""What came of each run, counted so that none is dropped."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from shearling.data.manifest import load_manifest
from shearling.data.shards import open_dataset
from shearling.data.stream import EvaluationSet
from shearling.experiments.compare.tasks import Task
from shearling.training.run_folder import DIVERGED, read_json

OK, COLLAPSED = "ok", "collapsed"

COLLAPSE = 0.98
"""A run whose final loss is at least this share of the unigram loss is called collapsed."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Reading:
    """One evaluation of a run: tokens of training behind it, validation loss in nats per token."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Result:
    """One run as it counts.

    Attributes:
        folder: relative to the comparison's.
        outcome: `diverged` where the loss is not finite at the end or the run stopped for that, `collapsed` where it is
            at least COLLAPSE times the unigram loss, else `ok`.
        loss: the final validation loss in nats per token as counted: never above `ceiling`, and that where the run
            diverged.
        raw_loss: the final validation loss, None where it is not finite.
        first_loss: the validation loss at step 0, None where it is not finite.
        ceiling: see :func:`ceiling_of`.
        flops: of training, and of a random-data warm-up before it.
        seconds: of the whole run, evaluating and saving included.
        seconds_per_token: of training alone: the median over the recorded steps, and where none is recorded that of the
            run; None where no step was taken.
    """

    seed: int
    learning_rate: float
    folder: str
    outcome: str
    loss: float
    raw_loss: float | None
    first_loss: float | None
    ceiling: float
    bits_per_byte: float | None
    tokens: int
    flops: int
    seconds: float
    tokens_per_second: float
    seconds_per_token: float | None
    curve: tuple[Reading, ...]


def read_result(task: Task, out: Path) -> Result:
    """What came of a finished run; its folder is told relative to `out`."""
    results: dict[str, Any] = read_json(task.run.results)
    diverged = results["outcome"] == DIVERGED or results["loss"] is None
    raw, ceiling = None if diverged else float(results["loss"]), ceiling_of(task.config.data.path)
    metrics = task.run.read_metrics()
    collapsed = raw is not None and raw >= COLLAPSE * unigram_loss(
        task.config.data.path, task.config.data.validation_tokens
    )
    speeds = [line["tokens_per_second"] for line in metrics if "tokens_per_second" in line]
    speed = median(speeds) if speeds else results["tokens_per_second"]
    return Result(
        seed=task.config.seed,
        learning_rate=task.config.training.optimizer.learning_rate,
        folder=task.run.path.relative_to(out).as_posix(),
        outcome=DIVERGED if diverged else COLLAPSED if collapsed else OK,
        loss=ceiling if raw is None else min(raw, ceiling),
        raw_loss=raw,
        first_loss=results["first"]["loss"],
        ceiling=ceiling,
        bits_per_byte=None if diverged else results["bits_per_byte"],
        tokens=results["tokens"],
        flops=results["flops"] + (results["random_warmup"] or {"flops": 0})["flops"],
        seconds=results["seconds"],
        tokens_per_second=results["tokens_per_second"],
        seconds_per_token=1 / speed if speed else None,
        curve=tuple(Reading(line["tokens"], line["validation_loss"]) for line in metrics if "validation_loss" in line),
    )


def ceiling_of(data: Path) -> float:
    """The most that a loss counts, in nats per token: ln V, V the tokenizer's size. A model that knows nothing has it.

    It is one for all runs, where each run's own loss at initialization would cap one arm lower than another.
    """
    return math.log(load_manifest(data).tokenizer.vocab_size)


@functools.lru_cache
def unigram_loss(data: Path, validation_tokens: int) -> float:
    """Nats per token of a model that knows how frequent each token is, and nothing of its context.

    The mean of −ln((c(token) + 1) / (N + V)) over the targets of the run's evaluations, with c the counts in the
    training split, N their sum, and V the tokenizer's size.
    """
    train = open_dataset(data, "train")
    counts = np.ones(train.manifest.tokenizer.vocab_size, np.int64)
    for start in range(0, train.total_tokens, _CHUNK):
        tokens = train.tokens(start, min(start + _CHUNK, train.total_tokens))
        counts += np.bincount(tokens, minlength=len(counts))
    targets = EvaluationSet.take(open_dataset(data, "validation"), validation_tokens).tokens[1:]
    return float(-np.log(counts[targets] / counts.sum()).mean())
