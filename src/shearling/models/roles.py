"""What each parameter is for, from its name: what initialization and weight decay go by. Imports no torch."""

from typing import Literal

Role = Literal["embedding", "head", "matrix", "vector"]


def role(name: str) -> Role:
    """The role of a parameter of a Transformer: tables at both ends, matrices of the blocks, and all the rest.

    Gains, biases, gates and whatever a user's norm or placement holds are vectors, whatever their shape.
    """
    if name in ("embed.weight", "position.weight") or name.startswith("value_embed."):
        return "embedding"
    if name == "head.weight":
        return "head"
    return "matrix" if is_projection(name) and name.endswith(".weight") else "vector"


def is_projection(name: str) -> bool:
    """Whether a parameter is the weight or bias of a projection in a branch or before the head."""
    *_, owner, module, _ = ("", "", *name.split("."))
    return owner in ("branch", "transform") and module.endswith("_proj")
