"""Where every initial weight comes from."""

import math

import torch
from torch import nn

from shearling.models.spec import ModelSpec
from shearling.seeding import derive_seed

RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")


def initialize(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Draw all weights of a model made from `spec`.

    | parameter                                   | distribution                                     |
    |---------------------------------------------|--------------------------------------------------|
    | embedding, untied head                      | N(0, init_std²)                                  |
    | q, k, v, gate and up projections            | N(0, init_std²)                                  |
    | o and down projections (into the residual)  | N(0, init_std² / (2 · n_layers)) (GPT-2, llama2.c) |
    | biases                                      | 0                                                |
    | norm gains (biases)                         | 1 (0)                                            |

    Each tensor has a generator of its own, seeded by (seed, its name): two models that differ in some part start
    from the same values wherever names and shapes agree.
    """
    generator = torch.Generator()
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:  # vectors keep what their module gave them, except biases of projections
            if name.endswith("_proj.bias"):
                nn.init.zeros_(parameter)
            continue
        std = spec.init_std
        if name.endswith(RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * spec.n_layers)
        generator.manual_seed(derive_seed(seed, "weights", name))
        with torch.no_grad():
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
