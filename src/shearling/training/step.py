"""One optimizer step."""

import math
from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_

from shearling.data.stream import Batch
from shearling.seeding import derive_seed
from shearling.training.examples import Examples, make_examples
from shearling.training.loss import drawn_targets, head_loss
from shearling.training.spec import ExperimentSpec
from shearling.training.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    config: ExperimentSpec,
    factor: float,
    done: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """One optimizer step on `batch`, accumulated over micro-batches; the step and token counts go up.

    Where the loss or the gradient is not finite the weights stay as they are, and the step counts as skipped.

    Args:
        factor: share of the peak learning rates.
        done: share of the horizon behind us.
        check: called between micro-batches; may raise to stop, the weights being those before the step.

    Returns:
        The batch's mean loss in nats, and the global norm of its gradient before clipping.
    """
    progress, objective = state.progress, config.training.objective
    examples = make_examples(objective, batch, config.model.vocab_size, config.seed, "objective", progress.step)
    torch.manual_seed(derive_seed(config.seed, "dropout", progress.step))
    state.model.step = progress.step
    figures = update(state, examples, config, progress.step, factor, done, check)
    progress.count_skips(all(map(math.isfinite, figures)))
    progress.step += 1
    progress.tokens += len(batch.tokens) * config.data.seq_len
    return figures


def update(
    state: TrainState,
    examples: Examples,
    config: ExperimentSpec,
    step: int,
    factor: float,
    done: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Move the weights by one step against the gradient of the mean loss of `examples`, unless it is not finite.

    Args:
        step: its number, from 0.
        factor, done, check: as `train_step` takes them.

    Returns:
        As `train_step`.
    """
    model, optimizer = state.model, state.optimizer
    model.train()
    size, n_targets = state.micro_batch(config.training), examples.n_targets
    if optimizer.curvature_due(step):
        _estimate_curvature(state, examples[:size])
    total = torch.zeros((), device=state.device)
    for first in range(0, len(examples.targets), size):
        check()
        micro = examples[first : first + size]
        if micro.n_targets:
            hidden, targets = micro.states_and_targets(model, state.device)
            loss = head_loss(hidden, model.lm_head, targets) * (micro.n_targets / n_targets)
            loss.backward()
            total += loss.detach()
    norm = clip_grad_norm_(model.parameters(), config.training.clip or math.inf)
    figures = (total.item(), norm.item())
    if all(map(math.isfinite, figures)):
        optimizer.prepare(factor, done)
        optimizer.step()
        model.constrain()
    optimizer.zero_grad()
    return figures


def _estimate_curvature(state: TrainState, examples: Examples) -> None:
    """Show the optimizer the gradients of the loss against labels that the model draws itself (arXiv 2305.14342)."""
    if examples.n_targets:
        hidden, targets = examples.states_and_targets(state.model, state.device)
        head = state.model.lm_head
        head_loss(hidden, head, drawn_targets(hidden, head)).backward()
        state.optimizer.note_curvature(len(targets))
        state.optimizer.zero_grad()
