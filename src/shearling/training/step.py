"""One optimizer step."""

import math
from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_

from shearling.data.stream import Batch
from shearling.seeding import derive_seed
from shearling.training.evaluate import to_tensors
from shearling.training.loss import head_loss
from shearling.training.spec import ExperimentSpec
from shearling.training.state import TrainState


def train_step(
    state: TrainState, batch: Batch, config: ExperimentSpec, rate: float, check: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """One optimizer step on `batch`, accumulated over micro-batches; the step and token counts go up.

    Where the loss or the gradient is not finite the weights stay as they are, and the step counts as skipped.

    Args:
        check: called between micro-batches; may raise to stop, the weights being those before the step.

    Returns:
        The batch's mean loss in nats, and the global norm of its gradient before clipping.
    """
    model, optimizer, progress = state.model, state.optimizer, state.progress
    model.train()
    torch.manual_seed(derive_seed(config.seed, "dropout", progress.step))
    sequences, size = len(batch.tokens), config.training.micro_batch
    total = torch.zeros((), device=state.device)
    for first in range(0, sequences, size):
        check()
        micro = batch[first : first + size]
        inputs, targets, *documents = to_tensors(micro, state.device, config.data.mask_documents)
        hidden = model(inputs, *documents)
        loss = head_loss(hidden.flatten(0, 1), model.head_weight, targets.flatten()) * (len(micro.tokens) / sequences)
        loss.backward()
        total += loss.detach()
    norm = clip_grad_norm_(model.parameters(), config.training.clip or math.inf)
    figures = (total.item(), norm.item())
    if all(map(math.isfinite, figures)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        progress.skipped_in_a_row = 0
    else:
        progress.skipped += 1
        progress.skipped_in_a_row += 1
    optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    progress.tokens += sequences * config.data.seq_len
    return figures
