"""A phase on random data before training: what it reads, and how it hands the model over.

Each step's data is a pure function of (seed, "random_warmup", step), so that a phase cut short goes on as if it had not
been. A new kind is a class in `warmup_spec` and an entry of `KINDS`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from shearling.data import noise
from shearling.data.shards import TokenDataset
from shearling.data.stream import Batch, BatchStream
from shearling.models.transformer import Transformer
from shearling.seeding import derive_seed
from shearling.training.examples import Examples, make_examples
from shearling.training.optimizers import build_optimizer
from shearling.training.spec import ExperimentSpec
from shearling.training.state import Progress, TrainState
from shearling.training.step import update
from shearling.training.warmup_spec import DyckSpec, GaussianSpec

NAME = "random_warmup"


@dataclass(frozen=True)
class WarmupStep:
    """One optimizer step of the phase; `number` counts from 1."""

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float


class WarmupData:
    """The examples of a phase, in batches of training's shape: S sequences of T."""

    def __init__(self, config: ExperimentSpec, dataset: TokenDataset) -> None:
        self.config = config
        self.spec: Any = config.random_warmup
        self.shape = (config.training.tokens_per_update // config.data.seq_len, config.data.seq_len)
        self._dataset = dataset

    def examples(self, step: int) -> Examples:
        """What step `step` of the phase, counted from 0, learns from."""
        draw = np.random.default_rng(derive_seed(self.config.seed, NAME, step))
        return KINDS[self.spec.kind](self, draw, step)

    def text(self, step: int) -> Batch:
        """Real sequences: the training split, cut and ordered otherwise than training sees it."""
        return self._stream.batch(step)

    def uniform(self, draw: np.random.Generator, more: int = 0) -> np.ndarray:
        """Independent uniform tokens (S, T + more)."""
        sequences, length = self.shape
        return noise.uniform_tokens(draw, (sequences, length + more), self.config.model.vocab_size)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token stands in the training split: (V,)."""
        return noise.token_counts(self._dataset, self.config.model.vocab_size)

    @cached_property
    def _stream(self) -> BatchStream:
        data, seed = self.config.data, derive_seed(self.config.seed, NAME, "text")
        return BatchStream(self._dataset, data.seq_len, self.shape[0], seed, data.mask_documents)


def warm_up(
    state: TrainState, config: ExperimentSpec, dataset: TokenDataset, check: Callable[[], None] = lambda: None
) -> Iterator[WarmupStep]:
    """Take the steps of `config.random_warmup` that are left, one each time the next is asked for.

    After the last the model and its optimizer are as training begins with them. Steps whose loss or gradient is not
    finite change no weights and count as skipped. A residual warm-up of the placement is training's alone: here all
    branches are whole.

    Args:
        dataset: the training split.
        check: called between micro-batches; may raise to stop, the weights being those before the step.
    """
    spec, progress, warmed = config.random_warmup, state.progress, state.progress.warmed
    if spec is None:
        return
    data = WarmupData(config, dataset)
    state.model.step = math.inf
    while warmed.steps < spec.steps:
        rate = spec.learning_rate * min(1.0, (warmed.steps + 1) / (spec.warmup_steps + 1))
        torch.manual_seed(derive_seed(config.seed, NAME, "dropout", warmed.steps))
        factor = rate / config.training.optimizer.learning_rate
        loss, norm = update(state, data.examples(warmed.steps), config, warmed.steps, factor, check=check)
        finite = math.isfinite(loss) and math.isfinite(norm)
        progress.count_skips(finite)
        if finite:
            warmed.first_loss = loss if warmed.first_loss is None else warmed.first_loss
            warmed.last_loss = loss
        warmed.steps += 1
        if warmed.steps == spec.steps:  # before anything is saved: a phase at its end has been handed over
            _hand_over(state, config)
        yield WarmupStep(warmed.steps, loss, norm, rate)


def position(config: ExperimentSpec, progress: Progress) -> int:
    """The step of the last line of metrics.jsonl that belongs to `progress`.

    Steps of the phase are numbered up to -1, the last one's, so that step 0 is where training begins.
    """
    left = config.random_warmup.steps - progress.warmed.steps if config.random_warmup else 0
    return -left - 1 if left else progress.step


def redraw(model: Transformer, seed: int) -> None:
    """Draw each tensor anew from N(its mean, its standard deviation²) (Per Param Mean/SD, arXiv 2206.10139).

    Whatever has one value, or one value only, keeps it.
    """
    generator = torch.Generator()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator.manual_seed(derive_seed(seed, NAME, "weights", name))
            mean, std = parameter.double().mean().item(), parameter.double().std(correction=0).item()
            parameter.copy_(torch.empty(parameter.shape).normal_(mean, std, generator=generator))
    model.constrain()


def _hand_over(state: TrainState, config: ExperimentSpec) -> None:
    assert config.random_warmup
    if config.random_warmup.keep == "moments":
        redraw(state.model, config.seed)
    if config.random_warmup.optimizer_state == "reset":
        state.optimizer = build_optimizer(state.model, config.training.optimizer)


def _next_token(tokens: np.ndarray) -> Examples:
    return Examples(tokens[:, :-1], tokens[:, 1:])


def _gaussian(data: WarmupData, draw: np.random.Generator, step: int) -> Examples:
    spec: GaussianSpec = data.spec
    vectors = noise.gaussian_vectors(draw, (*data.shape, data.config.model.d_model), spec.std)
    return Examples(vectors, data.uniform(draw))


def _random_labels(data: WarmupData, draw: np.random.Generator, step: int) -> Examples:
    batch = data.text(step)
    return Examples(batch.tokens[:, :-1], data.uniform(draw), batch.document_ids)


def _unigram(data: WarmupData, draw: np.random.Generator, step: int) -> Examples:
    sequences, length = data.shape
    return _next_token(noise.tokens_by_frequency(draw, (sequences, length + 1), data.counts))


def _dyck(data: WarmupData, draw: np.random.Generator, step: int) -> Examples:
    spec: DyckSpec = data.spec
    sequences, length = data.shape
    return _next_token(
        noise.shuffle_dyck(draw, sequences, length + 1, k=spec.k, p_open=spec.p_open, max_depth=spec.max_depth)
    )


def _real(data: WarmupData, draw: np.random.Generator, step: int) -> Examples:
    config = data.config
    return make_examples(
        config.training.objective, data.text(step), config.model.vocab_size, config.seed, NAME, "objective", step
    )


KINDS: dict[str, Callable[[WarmupData, np.random.Generator, int], Examples]] = {
    "iid_shifted": lambda data, draw, step: _next_token(data.uniform(draw, more=1)),
    "iid_unpaired": lambda data, draw, step: Examples(data.uniform(draw), data.uniform(draw)),
    "gaussian": _gaussian,
    "random_labels": _random_labels,
    "unigram": _unigram,
    "shuffled": lambda data, draw, step: _next_token(noise.shuffled(draw, data.text(step).tokens)),
    "dyck": _dyck,
    "real": _real,
}
"""By kind: a step's examples, of the phase's data, a generator of that step's own, and the step."""
