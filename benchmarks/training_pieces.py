"""The two pieces of a training step that are our own on a CPU, against PyTorch's: the head's loss and short attention.

    python benchmarks/training_pieces.py

Forward and backward pass, bf16, 4,096 tokens; medians of rounds in which all take turns.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from shearling.models.head import Head
from shearling.models.layers.attention import short_attention
from shearling.training.device import keep_freed_memory
from shearling.training.loss import head_loss

ROUNDS = 5


def race(title: str, contenders: dict[str, Callable[[], torch.Tensor]]) -> None:
    """Print the median milliseconds of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run().sum().backward()
            if turn:  # the first is warm-up
                seconds[name].append(time.perf_counter() - began)
    print(title)
    for name, times in seconds.items():
        print(f"  {name:<28}{1e3 * statistics.median(times):8.0f} ms")


def main() -> None:
    """Race both pieces."""
    keep_freed_memory()
    hidden = torch.randn(4096, 288, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(32_000, 288)).requires_grad_()
    targets = torch.randint(32_000, (4096,))
    race(
        "head's loss, d 288, V 32,000",
        {
            "plain cross_entropy": lambda: F.cross_entropy(F.linear(hidden, weight.to(hidden.dtype)).float(), targets),
            "F.linear_cross_entropy": lambda: F.linear_cross_entropy(
                hidden, weight.to(hidden.dtype), targets, options=torch.nn.LinearCrossEntropyOptions()
            ),
            "head_loss": lambda: head_loss(hidden, Head(weight), targets),
        },
    )
    q, k, v = (torch.randn(16, 6, 256, 48, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    race(
        "attention of one layer, 16 sequences of 256, 6 heads of 48",
        {
            "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "short_attention": lambda: short_attention(q, k, v, 48**-0.5, True),
        },
    )


if __name__ == "__main__":
    main()
