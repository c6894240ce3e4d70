"""A norm's printed equation is what its code computes, and what would be mistaken is mentioned."""

import re

import pytest
import torch
import torch.nn.functional as F
from model_reader import norm_function, spec_of
from torch import nn

from shearling.experiments.equations import block_equations
from shearling.models.transformer import Transformer


class Written(nn.Module):
    """x to whatever a function makes of it."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        self.g = nn.Parameter(torch.linspace(0.5, 1.5, 32))
        self.alpha = nn.Parameter(torch.tensor(0.75))
        self.table = torch.linspace(-1, 1, 32)

    def forward(self, x):
        return self.function(self, x)


FORMULAS = {
    "torch.rsqrt is a quotient": (
        lambda m, x: m.g * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
        "g ⊙ x / √(mean(x²) + 1e-05)",
    ),
    "a power of a half is a root": (lambda m, x: x / (x**2).mean(dim=-1, keepdim=True) ** 0.5, "x / √mean(x²)"),
    "a power of minus a half divides": (lambda m, x: x * (x**2).sum(-1, keepdim=True) ** -0.5, "x / √sum(x²)"),
    "a quotient rounded down": (
        lambda m, x: torch.div(x, 2, rounding_mode="floor") - x // m.g,
        "⌊x / 2⌋ − ⌊x / g⌋",
    ),
    "a power of a vector": (lambda m, x: x.abs() ** m.g + 2**x, "|x|^g + 2^x"),
    "plain numbers stand first": (lambda m, x: x * 3 - (1 - x) / 2, "3·x − (1 − x) / 2"),
    "five significant digits": (lambda m, x: 24**0.25 * x, "2.2134·x"),
    "signs": (lambda m, x: -x + -2 * x - (x - m.g), "−x − 2·x − (x − g)"),
    "brackets where a product needs them": (lambda m, x: m.g * (x + 1) * (x - 1), "g ⊙ (x + 1) ⊙ (x − 1)"),
    "a quotient of quotients": (lambda m, x: x / (x / m.g), "x / (x / g)"),
    "in place": (lambda m, x: x.mul(2).add_(1).tanh_(), "tanh(2·x + 1)"),
    "casts are not mentioned": (lambda m, x: x.double().clone().contiguous().float() + m.g, "x + g"),
    "a scalar parameter shows its value": (lambda m, x: torch.tanh(m.alpha * x), "tanh(α·x), α (=0.75)"),
    "its value as a number": (lambda m, x: x * float(m.alpha), "0.75·x"),
    "length": (lambda m, x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-5), "x / max(‖x‖, 1e-05)"),
    "linalg's length": (lambda m, x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), "x / ‖x‖"),
    "F.normalize": (lambda m, x: m.alpha * F.normalize(x, dim=-1), "α·x / max(‖x‖, 1e-12), α (=0.75)"),
    "biased variance": (
        lambda m, x: (x - x.mean(-1, keepdim=True)) / x.var(-1, unbiased=False, keepdim=True).sqrt(),
        "(x − mean(x)) / √var(x)",
    ),
    "F.rms_norm's own epsilon": (lambda m, x: F.rms_norm(x, (32,)), "x / √(mean(x²) + 1.1921e-07)"),
    "what is used twice has a name": (
        lambda m, x: (y := torch.erf(x + m.g)) * y.abs(),
        "h ⊙ |h|, h = erf(x + g)",
    ),
    "an interpolation": (lambda m, x: torch.lerp(x, x.tanh(), m.g), "x + g ⊙ (tanh(x) − x)"),
    "addcmul": (lambda m, x: torch.addcmul(m.g, x, x, value=0.5), "g + 0.5·x ⊙ x"),
    "stopgrad": (lambda m, x: x - F.silu(m.alpha) * x.detach(), "x − silu(α)·stopgrad(x), α (=0.75)"),
    "the first entries": (lambda m, x: x / x[..., :8].square().mean(-1, keepdim=True), "x / mean(x[…, :8]²)"),
    "softmax": (lambda m, x: x.softmax(dim=-1) * 2, "2·softmax(x)"),
}


@pytest.mark.parametrize(("function", "text"), FORMULAS.values(), ids=FORMULAS)
@torch.no_grad()
def test_a_norm_is_printed_as_its_code_computes(function, text):
    norm = Written(function)
    printed = formula_of(norm)
    assert printed == text
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm_function(norm, printed)(x), norm(x), rtol=1e-3, atol=1e-4)


OTHERS = {
    "a statistic over more than a token": (
        lambda m, x: x / x.abs().amax(dim=(1, 2), keepdim=True),
        "amax(|x|, dim=1, 2)",
    ),
    "the unbiased variance": (lambda m, x: x / x.var(-1, keepdim=True), "var(x, correction=1)"),
    "groups": (lambda m, x: (y := x.view(2, 3, 4, 8)).div(y.mean(-1, keepdim=True)).flatten(2), "reshape(x, …×4×8)"),
    "tokens in the place of features": (lambda m, x: x - x.transpose(1, 2).mean(-1)[:, None], "mean(transpose(x, …"),
    "tokens as one dimension": (
        lambda m, x: x - x.reshape(-1, 32).mean(0),
        "x − mean(reshape(x, tokens×32), dim=0)",
    ),
    "a quotient rounded towards zero": (lambda m, x: torch.div(x, 2, rounding_mode="trunc"), "trunc(x / 2)"),
    "a cast to whole numbers": (lambda m, x: x.to(torch.int64) * m.g, "int64(x) ⊙ g"),
    "a function without a sign": (lambda m, x: torch.special.i0e(x) * 1.5, "1.5·special_i0e(x)"),
    "a tensor that is no parameter": (lambda m, x: x * m.table, "x ⊙ constant"),
    "code that looks at shapes": (lambda m, x: x * x.size(-1) if x.dim() > 2 and x.shape[-1] == 32 else x, "32·x"),
}


@pytest.mark.parametrize(("function", "text"), OTHERS.values(), ids=OTHERS)
def test_what_would_be_mistaken_is_mentioned(function, text):
    assert text in formula_of(Written(function))


REFUSED = {
    "a branch on values": lambda m, x: x if x.mean() > 0 else -x,
    "a value taken out": lambda m, x: x * x.max().item(),
    "a part written into": lambda m, x: (y := x.clone(), y.__setitem__((..., 0), 0), y)[-1],
    "a part changed in place": lambda m, x: (y := x.clone(), y[..., :4].mul_(2), y)[-1],
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_said_not_guessed(function):
    printed = formula_of(Written(function))
    assert re.fullmatch(r"Written: x to whatever a function makes of it\. \[not traced: .+\]", printed)


def formula_of(norm: nn.Module) -> str:
    """What is printed of a norm."""
    model = Transformer(spec_of(n_layers=1))
    model.blocks[0].attention.norm = norm
    lines = dict(block_equations(model))["the layer"]
    return next(line for line in lines if line.startswith("where N₁(x) = ")).partition(" = ")[2]
