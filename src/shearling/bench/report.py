"""Benchmarks as text."""

from typing import Any


def training_table(results: dict[str, Any]) -> str:
    """A line for every contender and mode, then our ratios."""
    lines = [
        f"matmul peak {results['peak_flops'] / 1e9:,.0f} GFLOP/s in bf16, {results['threads']} threads",
        f"{'':<14}{'mode':<10}{'tokens/s':>10}{'of peak':>9}{'peak memory':>13}",
    ]
    for entry in results["entries"]:
        lines.append(
            f"{entry['contender']:<14}{entry['mode']:<10}{entry['tokens_per_second']:>10,.0f}{entry['mfu']:>9.0%}"
            f"{entry['peak_bytes'] / 2**30:>9.2f} GiB"
        )
    for name, ratio in results["ratios"].items():
        lines.append(f"ours / {name}, each at its best: {ratio['speed']:.2f} x speed, {ratio['memory']:.2f} x memory")
    return "\n".join(lines)
