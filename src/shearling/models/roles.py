"""What each parameter is for, from its name: what initialization and weight decay go by. Imports no torch."""

from typing import Literal

Role = Literal["embedding", "head", "matrix", "vector"]


def role(name: str) -> Role:
    """The role of a parameter of a Transformer: tables at both ends, matrices of the blocks, and all the rest.

    Gains, biases, gates and whatever a user's norm holds are vectors, whatever their shape.
    """
    if name in ("embed.weight", "position.weight"):
        return "embedding"
    if name == "head.weight":
        return "head"
    return "matrix" if name.endswith("_proj.weight") else "vector"
