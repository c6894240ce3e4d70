"""A config as an experienced trainer reads it."""

import math
from collections.abc import Sequence
from pathlib import Path

from shearling.data.manifest import load_manifest
from shearling.errors import UserError
from shearling.experiments.plan.choose import CHINCHILLA, MATRIX_RATE, tokens_per_update
from shearling.training.optimizer_spec import AdamSpec, AdamWSpec, MuonSpec
from shearling.training.resolve import Resolved, load_experiment
from shearling.training.spec import ExperimentSpec

USUAL_UPDATE = 100_000
"""Tokens an update that models of 10M to 100M parameters are usually trained with (llama2.c, nanoGPT)."""

FAR = 3.0
"""Factor from a rule that is remarked upon."""

Remark = tuple[str, str, str]
"""What is judged, its value, the judgement."""


def explain(path: Path, overrides: Sequence[str] = ()) -> list[Remark]:
    """Remarks on an experiment's batch, rate, length and text.

    Raises:
        UserError: the config is none of an experiment.
    """
    loaded, resolved = load_experiment(path, overrides)
    config = loaded.value
    return [
        *_length(config, resolved),
        *_batch(config, resolved),
        *_rate(config, resolved),
        *_schedule(config, resolved),
        *_text(config, resolved),
    ]


def _length(config: ExperimentSpec, resolved: Resolved) -> list[Remark]:
    n, tokens = resolved.parameters.multiplied, resolved.total_tokens
    if tokens is None:
        return [
            (
                "length",
                f"{config.training.minutes:g} minutes",
                "tokens depend on the machine: `plan --minutes` measures it",
            )
        ]
    share = tokens / n
    if share < CHINCHILLA / FAR:
        word = "short: a smaller model would reach a lower loss at this cost"
    elif share > CHINCHILLA * FAR:
        word = "long: costs more than a larger model of this loss, and runs faster ever after"
    else:
        word = "near the optimum of arXiv 2203.15556, 20"
    return [("tokens per parameter", f"{share:.1f}", word)]


def _batch(config: ExperimentSpec, resolved: Resolved) -> list[Remark]:
    per_update, tokens = config.training.tokens_per_update, resolved.total_tokens
    usual = f"{per_update / USUAL_UPDATE:.2g} of the usual 100,000 for 10M to 100M parameters"
    if tokens is None:
        return [("tokens per update", f"{per_update:,}", usual)]
    wanted = tokens_per_update(tokens, config.data.seq_len)
    factor = per_update / wanted
    if factor > FAR:
        word = f"{usual}; large for {tokens:.2g} tokens: about {wanted:,} would give more steps"
    elif factor < 1 / FAR:
        word = f"{usual}; small for {tokens:.2g} tokens: up to {wanted:,} would cost no loss and run faster"
    else:
        word = f"{usual}; right for {tokens:.2g} tokens (arXiv 2505.13738)"
    return [("tokens per update", f"{per_update:,}", word), ("steps", f"{resolved.total_steps:,}", _steps(resolved))]


def _steps(resolved: Resolved) -> str:
    return "few: under 200, most of training is warm-up" if (resolved.total_steps or 0) < 200 else ""


def _rate(config: ExperimentSpec, resolved: Resolved) -> list[Remark]:
    optimizer = config.training.optimizer
    if isinstance(optimizer, MuonSpec):
        rule, source = MATRIX_RATE, f"{MATRIX_RATE:g} is ours for small models"
    elif isinstance(optimizer, AdamWSpec | AdamSpec):
        rule = 0.003239 - 0.0001395 * math.log(max(resolved.parameters.non_embedding, 2))
        source = f"arXiv 2001.08361, equation D.1, gives {rule:.2g} at this size"
    else:
        return [
            ("learning rate", f"{optimizer.learning_rate:g}", f"no rule is known here for {optimizer.kind}: tune it")
        ]
    factor = optimizer.learning_rate / rule
    word = "high: it may diverge" if factor > FAR else "low: it may learn slowly" if factor < 1 / FAR else "usual"
    return [("learning rate", f"{optimizer.learning_rate:g}", f"{word}; {source}")]


def _schedule(config: ExperimentSpec, resolved: Resolved) -> list[Remark]:
    schedule, steps = config.training.schedule, resolved.total_steps
    remarks = []
    if steps is not None:
        share = schedule.warmup_steps / steps
        word = "long: a twentieth is enough" if share > 0.1 else "usual"
        remarks.append(("warm-up", f"{share:.1%} of the steps", word))
    floor = getattr(schedule, "min_ratio", 0.0)
    if schedule.kind == "constant":
        remarks.append(
            ("cool-down", "none", "the last tenths of a nat come with a falling rate: take wsd, or extend later")
        )
    elif floor > 0.05:
        remarks.append(("last rate", f"{floor:.0%} of the peak", "a cool-down to zero ends lower (arXiv 2502.15938)"))
    return remarks


def _text(config: ExperimentSpec, resolved: Resolved) -> list[Remark]:
    try:
        manifest = load_manifest(config.data.path)
    except UserError:
        return [("text", str(config.data.path), "not prepared here: nothing to say of repetition")]
    available = manifest.splits["train"].tokens
    if resolved.total_tokens is None:
        return [("text", f"{available:,} tokens", "")]
    epochs = resolved.total_tokens / available
    word = "all new" if epochs <= 1 else "nearly as good as new" if epochs <= 4 else "too often: prepare more text"
    return [("epochs", f"{epochs:.2f}", f"of {available:,} tokens; {word}")]
