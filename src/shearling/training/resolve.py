"""What follows from a config: figures that nobody should have to give, and nothing should compute twice.

Kept apart from the config itself, which holds only what was decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shearling.config import Loaded, load
from shearling.errors import UserError
from shearling.models.cost import (
    Parameters,
    activation_bytes,
    kv_cache_bytes,
    parameters,
    training_flops_per_token,
)
from shearling.models.trial import try_custom_parts
from shearling.training.spec import ExperimentSpec, MaskedTokenSpec

BYTES = {"bf16": 2, "fp32": 4}
"""Bytes of one value of the branches' arithmetic, by precision."""

MOST_STEPS = 10**12

FIRST_MICRO_BATCH = 16
"""Sequences that `micro_batch: auto` is taken for before it is measured."""

LONG_MINUTES, LONG_FLOPS = 2.0, 5e13
"""From where on compiling the blocks pays on a CPU: 5e13 FLOPs are two minutes at 400 GFLOP/s."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs, estimated. What the libraries, kernels and the allocator take is not in it."""

    weights: int
    """fp32 masters, and under bf16 the copy of the matrices that arithmetic uses."""
    gradients: int
    optimizer: int
    activations: int
    """Of one micro-batch; see `shearling.models.cost.activation_bytes`."""

    @property
    def total(self) -> int:
        """All of it at once, which is about the peak: at the end of a forward pass of the second micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Resolved:
    """The derived values of an experiment."""

    parameters: Parameters
    head_dim: int
    flops_per_token: int
    """Of training; see `shearling.models.cost.training_flops_per_token`."""
    sequences_per_update: int
    micro_batch: int
    """Sequences per forward pass; never more than an update has."""
    micro_batches_per_update: int
    """The last one of an update may be smaller."""
    total_steps: int | None
    """Optimizer steps of the run; None where minutes end it."""
    total_tokens: int | None
    total_flops: int | None
    long: bool
    """Whether compiling the blocks pays on a CPU; by the budget alone, so that a resumed run decides alike."""
    random_warmup_tokens: int
    """Tokens, or vectors in their place, of the phase on random data; the horizon does not count them."""
    random_warmup_flops: int
    memory: Memory
    kv_cache_bytes: int
    """Of one sequence of max_seq_len tokens in generation, at the training precision."""


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> tuple[Loaded[ExperimentSpec], Resolved]:
    """Reads an experiment's config and derives its figures; UserError, naming the file, where either fails."""
    loaded = load(ExperimentSpec, path, overrides)
    try:
        return loaded, resolve(loaded.value)
    except UserError as error:
        raise UserError(f"{loaded.path}: {error}") from None


def resolve(spec: ExperimentSpec) -> Resolved:
    """Derives an experiment's figures.

    A horizon in tokens or FLOPs becomes the nearest whole number of updates, at least one.

    Raises:
        UserError: the horizon is no number of steps, warm-up takes all of it, or a user's own class does not serve.
    """
    try_custom_parts(spec.model)
    training, counts = spec.training, parameters(spec.model)
    objective = training.objective
    predicted = objective.share if isinstance(objective, MaskedTokenSpec) else 1.0
    flops_per_token = training_flops_per_token(spec.model, spec.data.seq_len, predicted)
    sequences = training.tokens_per_update // spec.data.seq_len
    micro_batch = min(FIRST_MICRO_BATCH if training.micro_batch == "auto" else training.micro_batch, sequences)
    steps = _total_steps(spec, flops_per_token)
    tokens = None if steps is None else steps * training.tokens_per_update
    warmup_tokens = spec.random_warmup.steps * training.tokens_per_update if spec.random_warmup else 0
    return Resolved(
        parameters=counts,
        head_dim=spec.model.head_dim,
        flops_per_token=flops_per_token,
        sequences_per_update=sequences,
        micro_batch=micro_batch,
        micro_batches_per_update=-(-sequences // micro_batch),
        total_steps=steps,
        total_tokens=tokens,
        total_flops=None if tokens is None else tokens * flops_per_token,
        long=(training.minutes or 0) >= LONG_MINUTES or (tokens or 0) * flops_per_token >= LONG_FLOPS,
        random_warmup_tokens=warmup_tokens,
        random_warmup_flops=warmup_tokens * flops_per_token,
        memory=_memory(spec, counts, micro_batch),
        kv_cache_bytes=kv_cache_bytes(spec.model, spec.model.max_seq_len, BYTES[training.precision]),
    )


def check_vocabulary(spec: ExperimentSpec, tokens: int) -> None:
    """Refuses a model with fewer rows than the data's tokenizer has tokens, and the mask where it takes a row.

    Args:
        tokens: size of that tokenizer.

    Raises:
        UserError: the model has too few.
    """
    objective, rows = spec.training.objective, spec.model.vocab_size
    masking = isinstance(objective, MaskedTokenSpec) and objective.mask_id is None
    if tokens > rows - masking:
        more = " and one for the mask" if masking else ""
        raise UserError(
            f"model.vocab_size {rows:,} is smaller than the {tokens:,} of the tokenizer in {spec.data.path}{more}: "
            "raise model.vocab_size"
        )


def _total_steps(spec: ExperimentSpec, flops_per_token: int) -> int | None:
    training = spec.training
    if training.minutes is not None:
        return None
    horizon = next(name for name in training.exclusive[0] if getattr(training, name) is not None)
    per_step = {
        "steps": 1,
        "tokens": training.tokens_per_update,
        "flops": training.tokens_per_update * flops_per_token,
    }
    amount: float = getattr(training, horizon)
    steps = max(1, round(amount / per_step[horizon]))
    if steps > MOST_STEPS:
        raise UserError(f"training.{horizon}: {amount:g} is over {MOST_STEPS:,} steps: lower it")
    if training.schedule.warmup_steps - spec.warmup_taken >= steps:
        raise UserError(
            f"training.schedule.warmup_steps: {training.schedule.warmup_steps} leaves nothing of the run's {steps} "
            f"steps: lower it, or raise training.{horizon}"
        )
    growth = (spec.model.placement.residual_warmup or 0) * spec.model.n_layers
    if growth > steps:
        raise UserError(
            f"model.placement.residual_warmup: the last of {spec.model.n_layers} blocks is whole after {growth:,} "
            f"steps, more than the run's {steps:,}: lower it, or raise training.{horizon}"
        )
    return steps


def _memory(spec: ExperimentSpec, counts: Parameters, micro_batch: int) -> Memory:
    training, width = spec.training, BYTES[spec.training.precision]
    return Memory(
        weights=4 * counts.total + (width * counts.multiplied if width < 4 else 0),
        gradients=4 * counts.total,
        optimizer=4 * training.optimizer.moments * counts.total,
        activations=activation_bytes(
            spec.model, micro_batch * spec.data.seq_len, width, training.checkpoint_activations
        ),
    )
