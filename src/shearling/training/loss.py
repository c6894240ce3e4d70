"""The head's cross-entropy without the logits: tokens pass through the vocabulary in chunks.

At V = 32,000 the logits of 4,096 tokens and their gradient take a gigabyte and most of a step's time. Here a chunk
of logits lives until its gradient is taken, in the forward pass, and is then overwritten by the next (the idea of
Cut Cross-Entropy, arXiv 2411.09009, and of Liger's kernel, arXiv 2410.10989).
"""

from typing import Any

import torch
import torch.nn.functional as F

from shearling.models.cost import HEAD_EXACT_LOGITS, HEAD_LOGITS
from shearling.models.head import Head

PRODUCT_ROWS = 4096  # of the weight's gradient at a time, so that a shared cache holds them
SMALLEST_P = 1e-30  # below it the fp32 softmax loses digits, and the loss is taken from the logits


def head_loss(hidden_ND: torch.Tensor, head: Head, targets_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, a scalar in fp32, of the head's logits against targets.

    The products are taken in the dtype of `hidden_ND`, softmax and sums in fp32; the weight's gradient is fp32.
    """
    return _HeadLoss.apply(hidden_ND, head.weight_VD, targets_N, head.softcap)


@torch.no_grad()
def token_losses(hidden_ND: torch.Tensor, head: Head, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token in nats, (N,) in fp32, without gradients; arguments as above."""
    head = head._replace(weight_VD=head.weight_VD.to(hidden_ND.dtype))
    rows = _rows(HEAD_LOGITS, head.weight_VD.size(0), len(targets_N))
    losses = [
        F.cross_entropy(head.logits(hidden), targets, reduction="none")
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat(losses)


@torch.no_grad()
def drawn_targets(hidden_ND: torch.Tensor, head: Head) -> torch.Tensor:
    """A token for each hidden state, (N,), drawn from what the head makes of it, by torch's own generator."""
    head = head._replace(weight_VD=head.weight_VD.to(hidden_ND.dtype))
    rows = _rows(HEAD_EXACT_LOGITS, head.weight_VD.size(0), len(hidden_ND))
    chances = (torch.softmax(head.logits(hidden), dim=-1) for hidden in hidden_ND.split(rows))
    return torch.cat([torch.multinomial(p_NV, 1)[:, 0] for p_NV in chances])


def _rows(elements: int, vocab_size: int, n_tokens: int) -> int:
    return min(max(1, elements // vocab_size), n_tokens)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, softcap: float | None
    ) -> torch.Tensor:
        n_tokens, (vocab_size, d_model) = hidden_ND.size(0), weight_VD.shape
        weight = weight_VD.to(hidden_ND.dtype)
        rows = _rows(HEAD_LOGITS, vocab_size, n_tokens)
        weight_DV = weight.t().contiguous()  # the gradient's product to the hidden states is faster in this layout
        # Buffers are made once: fresh pages for each chunk would cost more than the softmax.
        logits_NV = hidden_ND.new_empty(rows, vocab_size)
        exact_NV = hidden_ND.new_empty(_rows(HEAD_EXACT_LOGITS, vocab_size, rows), vocab_size, dtype=torch.float32)
        rounded_VD, exact_VD = weight.new_empty(PRODUCT_ROWS, d_model), weight_VD.new_empty(PRODUCT_ROWS, d_model)
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, n_tokens, rows):
            hidden, targets = hidden_ND[start : start + rows], targets_N[start : start + rows]
            logits = logits_NV[: hidden.size(0)]
            torch.mm(hidden, weight.t(), out=logits)
            for part, part_targets in zip(logits.split(exact_NV.size(0)), targets.split(exact_NV.size(0)), strict=True):
                total += _to_gradient(part, part_targets, exact_NV[: part.size(0)], Head(weight, softcap))
            torch.mm(logits, weight_DV.t(), out=hidden_gradient[start : start + rows])
            for block, columns in zip(
                weight_gradient.split(PRODUCT_ROWS), logits.split(PRODUCT_ROWS, dim=1), strict=True
            ):
                rounded, exact = rounded_VD[: block.size(0)], exact_VD[: block.size(0)]
                torch.mm(columns.t(), hidden, out=rounded)
                block += exact.copy_(rounded)
        ctx.gradients = hidden_gradient, weight_gradient
        return total / n_tokens

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.gradients
        del ctx.gradients  # scaled in place: a second backward pass would have none
        scale = gradients[0] / hidden_gradient.size(0)
        return hidden_gradient * scale, weight_gradient.mul_(scale), None, None


def _to_gradient(logits_NV: torch.Tensor, targets_N: torch.Tensor, exact_NV: torch.Tensor, head: Head) -> torch.Tensor:
    """Sum of the cross-entropies in fp32; the logits become its gradient to them. `exact_NV` is scratch."""
    rows = torch.arange(logits_NV.size(0), device=logits_NV.device)
    capped_NV = head.capped(exact_NV.copy_(logits_NV))
    slope_NV = None if head.softcap is None else 1 - (capped_NV / head.softcap).square_()
    torch.softmax(capped_NV, dim=-1, out=exact_NV)
    p_N = exact_NV[rows, targets_N]
    losses_N = -p_N.log()
    lost = p_N < SMALLEST_P
    if lost.any():
        losses_N[lost] = F.cross_entropy(head.capped(logits_NV[lost].float()), targets_N[lost], reduction="none")
    exact_NV[rows, targets_N] = p_N - 1  # in fp32: bf16 would take a sure token's 0.999 for 1, and its gradient for 0
    logits_NV.copy_(exact_NV if slope_NV is None else exact_NV.mul_(slope_NV))
    return losses_N.sum()
