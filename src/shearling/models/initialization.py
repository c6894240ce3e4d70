"""Where every initial weight comes from."""

import math

import torch
from torch import nn

from shearling.models.layers.placement import Placement
from shearling.models.roles import is_projection, role
from shearling.models.spec import ModelSpec
from shearling.seeding import derive_seed

RESIDUAL_OUTPUTS = ("o_proj", "down_proj")


def initialize(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Draw all weights of a model made from `spec`.

    | parameter                                   | distribution                                     |
    |---------------------------------------------|--------------------------------------------------|
    | embedding                                   | N(0, embedding_std²), else N(0, init_std²)       |
    | untied head                                 | N(0, head_std²), else N(0, init_std²)            |
    | learned positions                           | N(0, init_std²)                                  |
    | value embeddings                            | N(0, init_std² · D): as large as the values      |
    | q, k, v, gate and up projections            | N(0, init_std²)                                  |
    | o and down projections (into the residual)  | N(0, init_std² / (2 · n_layers)) (GPT-2, llama2.c) |
    | biases                                      | 0                                                |
    | norm gains (biases)                         | 1 (0)                                            |

    With `init: plain` o and down projections are as the others; with `init: depth` every matrix of block l has
    init_std / √l (arXiv 1908.11365); with `init: zero` o and down projections are 0, so that every block begins as the
    identity (modded-nanogpt). A placement that has its own distribution for its branch (DeepNorm, SubLN, LNS, nGPT)
    goes before all this; norms and placements give their vectors and scalars themselves.

    Each tensor has a generator of its own, seeded by (seed, its name): two models that differ in some part start
    from the same values, up to their deviation, wherever names and shapes agree.
    """
    if next(model.parameters()).is_meta:
        return
    stds = standard_deviations(model, spec)
    generator = torch.Generator()
    for name, parameter in model.named_parameters():
        if name in stds:
            generator.manual_seed(derive_seed(seed, "weights", name))
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, stds[name], generator=generator))
        elif is_projection(name):  # its bias
            nn.init.zeros_(parameter)


def standard_deviations(model: nn.Module, spec: ModelSpec) -> dict[str, float]:
    """The standard deviation that each matrix and table of a model is drawn with, by name."""
    placements = {name: module for name, module in model.named_modules() if isinstance(module, Placement)}
    return {
        name: _standard_deviation(name, parameter.shape, spec, placements)
        for name, parameter in model.named_parameters()
        if role(name) != "vector"
    }


def _standard_deviation(name: str, shape: torch.Size, spec: ModelSpec, placements: dict[str, Placement]) -> float:
    if name.startswith("value_embed."):
        return spec.init_std * math.sqrt(spec.d_model)
    owner, _, inside = name.partition(".branch.")
    if not inside:
        own = {"embed.weight": spec.embedding_std, "head.weight": spec.head_std}.get(name)
        return spec.init_std if own is None else own
    matrix = inside.removesuffix(".weight")
    own = placements[owner].initial_std(matrix, shape[1], shape[0])
    if own is not None:
        return own
    if spec.init == "depth":
        return spec.init_std / math.sqrt(int(owner.split(".")[1]) + 1)
    if matrix not in RESIDUAL_OUTPUTS or spec.init == "plain":
        return spec.init_std
    return 0.0 if spec.init == "zero" else spec.init_std / math.sqrt(2 * spec.n_layers)
