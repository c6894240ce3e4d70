"""How large a model's matrices are at first."""

from collections.abc import Sequence

from shearling.models.initialization import standard_deviations
from shearling.models.transformer import Transformer


def initial_weights(model: Transformer) -> list[str]:
    """Standard deviations that the matrices are drawn with, those of one size on one line; by layer where they vary."""
    by_matrix: dict[str, list[float]] = {}
    for name, std in standard_deviations(model, model.spec).items():
        by_matrix.setdefault(_short(name), []).append(std)
    by_size: dict[str, list[str]] = {}
    for matrix, stds in by_matrix.items():
        by_size.setdefault(_sizes(stds), []).append(matrix)
    lines = [f"{', '.join(matrices)} ~ N(0, σ²), σ = {size}" for size, matrices in by_size.items()]
    return [*lines, "and of each its D-vectors to unit length, now and after every step"] if model.spherical else lines


def _short(name: str) -> str:
    """`layers.3.attention.branch.q_proj.weight` as the equations call it."""
    tables = {"embed.weight": "E", "head.weight": "W_head", "position.weight": "P"}
    return tables.get(name) or f"W_{name.split('.')[-2].removesuffix('_proj')}"


def _sizes(stds: Sequence[float]) -> str:
    written = [f"{std:.4g}" for std in stds]
    if len(set(written)) == 1:
        return written[0]
    return f"{written[0]} in the first layer, {written[1]} in the second … {written[-1]} in the last"
