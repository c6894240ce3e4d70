"""The head's cross-entropy without the logits: tokens pass through the vocabulary in chunks.

At V = 32,000 the logits of 4,096 tokens and their gradient take a gigabyte and most of a step's time. Here a chunk
of logits lives until its gradient is taken, in the forward pass, and is then overwritten by the next (the idea of
Cut Cross-Entropy, arXiv 2411.09009, and of Liger's kernel, arXiv 2410.10989).
"""

from typing import Any

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 2**22  # logits at once: 8 MB of bf16 and 16 of fp32, which a shared cache holds
SMALLEST_P = 1e-30  # below it the fp32 softmax loses digits, and the loss is taken from the logits
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
        dtype, n_tokens, vocab_size = hidden_ND.dtype, hidden_ND.size(0), weight_VD.size(0)
        weight = weight_VD.to(dtype)
        rows = min(_rows(vocab_size), n_tokens)
        chunk = _Chunk(rows, vocab_size, hidden_ND)
        gradient_NV = hidden_ND.new_empty(min(rows * CHUNKS_PER_PRODUCT, n_tokens), vocab_size)
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, n_tokens, gradient_NV.size(0)):
            hidden, targets = (part[start : start + gradient_NV.size(0)] for part in (hidden_ND, targets_N))
            gradient = gradient_NV[: hidden.size(0)]
            for first in range(0, hidden.size(0), rows):
                here = slice(first, first + rows)
                total += chunk.loss(hidden[here], weight, targets[here], out=gradient[here])
            torch.mm(gradient, weight, out=hidden_gradient[start : start + hidden.size(0)])
            weight_gradient += (gradient.t() @ hidden).float()
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / n_tokens

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0] / hidden_gradient.size(0)
        return hidden_gradient * scale.to(hidden_gradient.dtype), weight_gradient * scale, None


class _Chunk:
    """Buffers for the logits of a chunk of tokens, made once: fresh pages for each would cost more than the softmax."""

    def __init__(self, rows: int, vocab_size: int, like: torch.Tensor) -> None:
        self.logits = like.new_empty(rows, vocab_size)
        self.exact = like.new_empty(rows, vocab_size, dtype=torch.float32)
        self.softmax = like.new_empty(rows, vocab_size, dtype=torch.float32)
        self.row_numbers = torch.arange(rows, device=like.device)

    def loss(
        self, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the chunk's cross-entropies in fp32; its gradient with respect to the logits goes to `out`."""
        n = hidden_ND.size(0)
        logits, exact, softmax = self.logits[:n], self.exact[:n], self.softmax[:n]
        torch.mm(hidden_ND, weight_VD.t(), out=logits)
        exact.copy_(logits)
        torch.softmax(exact, dim=-1, out=softmax)
        p_N = softmax[self.row_numbers[:n], targets_N]
        # In fp32, before rounding: bf16 would take a sure token's 0.999 for 1, and its gradient for 0.
        softmax[self.row_numbers[:n], targets_N] = p_N - 1
        out.copy_(softmax)
        losses_N = -p_N.log()
        lost = p_N < SMALLEST_P
        if lost.any():
            losses_N[lost] = F.cross_entropy(exact[lost], targets_N[lost], reduction="none")
        return losses_N.sum()
