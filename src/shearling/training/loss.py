"""The head's cross-entropy without the logits: tokens pass through the vocabulary in chunks.

At V = 32,000 the logits of 4,096 tokens and their gradient take a gigabyte and most of a step's time. Here a chunk
of logits lives until its gradient is taken, in the forward pass, and is then overwritten by the next (the idea of
Cut Cross-Entropy, arXiv 2411.09009, and of Liger's kernel, arXiv 2410.10989).
"""

from typing import Any

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**22  # logits at once: 8 MB of bf16 and 16 of fp32, which a shared cache holds
CHUNKS_PER_PRODUCT = 4  # the weight's gradient is added up in fp32 once in so many chunks


def head_loss(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats, a scalar in fp32, of logits = hidden · weightᵀ against targets.

    The products are taken in the dtype of `hidden_ND`, softmax and sums in fp32; the weight's gradient is fp32.
    """
    return _HeadLoss.apply(hidden_ND, weight_VD, targets_N)


@torch.no_grad()
def token_losses(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token in nats, (N,) in fp32, without gradients."""
    weight = weight_VD.to(hidden_ND.dtype)
    rows = _rows(weight.size(0))
    losses = [
        F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat(losses)


def _rows(vocab_size: int) -> int:
    return max(1, CHUNK_ELEMENTS // vocab_size)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        dtype, n_tokens = hidden_ND.dtype, hidden_ND.size(0)
        weight = weight_VD.to(dtype)
        rows = min(_rows(weight.size(0)), n_tokens)
        group = min(rows * CHUNKS_PER_PRODUCT, n_tokens)
        probabilities = torch.empty(group, weight.size(0), dtype=dtype, device=hidden_ND.device)
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        rows_of = torch.arange(group, device=hidden_ND.device)
        for start in range(0, n_tokens, group):
            hidden, targets = hidden_ND[start : start + group], targets_N[start : start + group]
            p = probabilities[: hidden.size(0)]
            for first in range(0, hidden.size(0), rows):
                chunk = slice(first, first + rows)
                total += _chunk_loss(hidden[chunk] @ weight.t(), targets[chunk], out=p[chunk])
            p[rows_of[: p.size(0)], targets] -= 1  # now d loss / d logits, but for 1 / N
            torch.mm(p, weight, out=hidden_gradient[start : start + group])
            weight_gradient += (p.t() @ hidden).float()
        ctx.save_for_backward(hidden_gradient.div_(n_tokens), weight_gradient.div_(n_tokens))
        return total / n_tokens

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0].to(hidden_gradient.dtype), weight_gradient * gradients[0], None


def _chunk_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Sum of the chunk's cross-entropies in fp32; the softmax goes to `out`."""
    largest_N1, where_N1 = logits_NV.max(dim=-1, keepdim=True)
    p_NV = torch.softmax(logits_NV, dim=-1, dtype=torch.float32)
    out.copy_(p_NV)
    log_z_N1 = largest_N1.float() - p_NV.gather(1, where_N1).log()
    return (log_z_N1 - logits_NV.gather(1, targets_N[:, None]).float()).sum()
