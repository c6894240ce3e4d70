"""How large a model's matrices are at first."""

from collections.abc import Sequence

from shearling.models.initialization import standard_deviations
from shearling.models.transformer import Transformer


def initial_weights(model: Transformer, whole: bool = True) -> list[str]:
    """Standard deviations that the matrices are drawn with, those of one size on one line; by layer where they vary.

    Args:
        whole: whether one that varies is told of every layer.
    """
    by_matrix: dict[str, list[str]] = {}
    for name, std in standard_deviations(model, model.spec).items():
        by_matrix.setdefault(_short(name), []).append(f"{std:.4g}")
    alike: dict[tuple[str, ...], list[str]] = {}
    for matrix, sizes in by_matrix.items():
        alike.setdefault(tuple(sizes) if len(set(sizes)) > 1 else (sizes[0],), []).append(matrix)
    lines = [f"{', '.join(matrices)} ~ N(0, σ²), σ = {_sizes(sizes, whole)}" for sizes, matrices in alike.items()]
    return [*lines, "and of each its D-vectors to unit length, now and after every step"] if model.spherical else lines


def _short(name: str) -> str:
    """`layers.3.attention.branch.q_proj.weight` as the equations call it."""
    tables = {"embed.weight": "E", "head.weight": "W_head", "position.weight": "P"}
    if name.startswith("value_embed."):
        return f"E_v{int(name.split('.')[1]) + 1}"
    return tables.get(name) or f"W_{name.split('.')[-2].removesuffix('_proj')}"


def _sizes(written: Sequence[str], whole: bool) -> str:
    if len(written) == 1:
        return written[0]
    if whole:
        return f"{', '.join(written)}, layer by layer"
    return f"{written[0]} in the first layer, {written[1]} in the second … {written[-1]} in the last"
