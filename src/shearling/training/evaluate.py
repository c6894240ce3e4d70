"""Loss on held-out text."""

import math
from collections.abc import Callable

import torch

from shearling.data.stream import Batch, EvaluationSet
from shearling.models.transformer import Transformer
from shearling.training.loss import token_losses
from shearling.training.state import Evaluation


def to_tensors(batch: Batch, device: torch.device, mask_documents: bool) -> tuple[torch.Tensor, ...]:
    """Inputs (B, T), targets (B, T) and document ids (B, T) or nothing, on `device`."""
    tokens = torch.from_numpy(batch.tokens).to(device, non_blocking=True)
    parts = (tokens[:, :-1], tokens[:, 1:])
    if not mask_documents:
        return parts
    assert batch.document_ids is not None
    return (*parts, torch.from_numpy(batch.document_ids).to(device, non_blocking=True))


@torch.no_grad()
def evaluate(
    model: Transformer,
    held_out: EvaluationSet,
    step: int,
    *,
    seq_len: int,
    sequences: int,
    mask_documents: bool,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Token-mean loss over every target of `held_out`, in nats; bits per byte over the same documents' UTF-8 bytes.

    Args:
        sequences: per forward pass.
        check: called between batches; may raise to stop.
    """
    device = model.embed.weight.device
    model.eval()
    total, count = 0.0, 0
    for batch, n_targets in held_out.batches(seq_len, sequences):
        check()
        inputs, targets, *documents = to_tensors(batch, device, mask_documents)
        hidden = model(inputs, *documents)
        total += token_losses(hidden.flatten(0, 1), model.head_weight, targets.flatten()).double().sum().item()
        count += n_targets
    loss = total / count
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return Evaluation(step, loss, perplexity, total / math.log(2) / held_out.n_bytes)
