"""Linear maps whose master weights stay in fp32."""

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Linear):
    """y = x Wᵀ + b, computed in the dtype of x: a bf16 input multiplies a bf16 copy of the fp32 weight."""

    def reset_parameters(self) -> None:
        """Nothing: `initialize` draws every weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)
