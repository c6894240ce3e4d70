"""The printed equations are what runs: read back from their text and computed, they give what the model gives."""

import re

import pytest
import torch
import torch.nn.functional as F
from equation_reader import Reader
from model_reader import norm_function, read_logits
from torch import nn

from shearling.errors import UserError
from shearling.experiments.equations import block_equations, model_equations
from shearling.models.layers.normalization import NORMS
from shearling.models.layers.placement import PLACEMENTS
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer


def spec_of(**options) -> ModelSpec:
    small = {"d_model": 32, "n_layers": 3, "n_heads": 2, "intermediate_size": 48, "vocab_size": 50, "max_seq_len": 16}
    ends = {"final_norm": options.get("placement", {}).get("kind") != "ngpt"}
    return ModelSpec.model_validate({**small, **ends, **options})


def model_of(**options) -> Transformer:
    """A model all of whose weights count: every tensor is drawn, none stays 0 or 1."""
    model = Transformer(spec_of(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 + 0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim > 1 and min(parameter.shape) > 1:
                parameter.sub_(0.5)
    return model


def layer_lines(**options) -> list[str]:
    """The lines of a model all of whose layers are alike."""
    groups = model_equations(spec_of(**options)).split("\n")
    start = next(i for i, line in enumerate(groups) if line.startswith("every layer"))
    return [line[2:] for line in groups[start + 1 : groups.index("after the layers")]]


@pytest.mark.parametrize(
    ("placement", "lines"),
    [
        (
            {"kind": "pre"},
            [
                "x ← x + W_o softmax(q kᵀ / √16 + mask) v,   q = RoPE(W_q n), k = RoPE(W_k n), v = W_v n, n = N₁(x)",
                "x ← x + W_down(silu(W_gate n) ⊙ W_up n),   n = N₂(x)",
                "where N₁(x), N₂(x) = g ⊙ x / √(mean(x²) + 1e-06), each with its own g",
            ],
        ),
        (
            {"kind": "post"},
            [
                "x ← N₁(x + W_o softmax(q kᵀ / √16 + mask) v),   q = RoPE(W_q x), k = RoPE(W_k x), v = W_v x",
                "x ← N₂(x + W_down(silu(W_gate x) ⊙ W_up x))",
                "where N₁(x), N₂(x) = g ⊙ x / √(mean(x²) + 1e-06), each with its own g",
            ],
        ),
        (
            {"kind": "sandwich"},
            [
                "x ← x + N₂(W_o softmax(q kᵀ / √16 + mask) v),   "
                "q = RoPE(W_q n), k = RoPE(W_k n), v = W_v n, n = N₁(x)",
                "x ← x + N₄(W_down(silu(W_gate n) ⊙ W_up n)),   n = N₃(x)",
                "where N₁(x), N₂(x), N₃(x), N₄(x) = g ⊙ x / √(mean(x²) + 1e-06), each with its own g",
            ],
        ),
    ],
)
def test_a_placement_is_printed_as_it_runs(placement, lines):
    assert layer_lines(placement=placement) == lines


def test_deepnorm_shows_its_constant_at_twelve_layers():
    lines = layer_lines(placement={"kind": "deepnorm"}, n_layers=12)
    assert lines[0].startswith("x ← N₁(2.2134·x + W_o softmax(q kᵀ / √16 + mask) v)")
    assert lines[1] == "x ← N₂(2.2134·x + W_down(silu(W_gate x) ⊙ W_up x))"


ARCHITECTURES = {
    **{f"placement {kind}": {"placement": {"kind": kind}} for kind in PLACEMENTS},
    **{f"norm {kind}": {"norm": {"kind": kind}} for kind in NORMS},
    **{f"qk norm {kind}": {"qk_norm": {"kind": kind}} for kind in ("per_head", "projection", "l2")},
    **{f"position {kind}": {"position": {"kind": kind}} for kind in ("learned", "sinusoidal", "alibi", "none")},
    "hybrid star": {"placement": {"kind": "hybrid", "star": True}},
    "residual warm-up": {"placement": {"kind": "post", "residual_warmup": 10}},
    "grouped keys": {"n_heads": 4, "n_kv_heads": 2},
    "biases": {"attention_bias": True, "feedforward_bias": True, "activation": "gelu"},
    "gelu of nGPT": {"placement": {"kind": "ngpt"}, "activation": "gelu"},
    "scaled embedding": {"learned_embedding_scale": True, "embedding_norm": True, "tie_embeddings": False},
    "bert": {
        "arch": "bert", "position": {"kind": "learned"}, "norm": {"kind": "layernorm"}, "activation": "gelu_erf",
        "placement": {"kind": "post"}, "final_norm": False, "embedding_norm": True,
        "attention_bias": True, "feedforward_bias": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
@torch.no_grad()
def test_what_is_printed_computes_what_the_model_computes(options):
    model = model_of(**options)
    model.step = 7
    tokens = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(read_logits(model, tokens), model.logits(model(tokens)), rtol=2e-3, atol=2e-3)


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


USERS_CODE = '''
import torch
from torch import nn
from shearling.models.layers.placement import Placement

class Halved(Placement):
    """x ← (x + F(N(x))) / 2."""
    def update(self, x_BTD, F):
        return (x_BTD + F(self.norm(x_BTD))) / 2

class Moody(Placement):
    """Depends on the weather."""
    def update(self, x_BTD, F):
        return x_BTD + F(self.norm(x_BTD)) if x_BTD.sum() > 0 else x_BTD

class Deeper(Placement):
    def __init__(self, spec, where, sibling=None):
        super().__init__(spec, where, sibling)
        self.times = where.layer
    def update(self, x_BTD, F):
        y_BTD = F(x_BTD)
        for _ in range(self.times):
            y_BTD = y_BTD.tanh()
        return x_BTD + y_BTD

class Secretive(Placement):
    def __init__(self, spec, where, sibling=None):
        super().__init__(spec, where, sibling)
        self._factor = 0.5**where.layer
    def update(self, x_BTD, F):
        return x_BTD + self._factor * F(x_BTD)

class Softsign(nn.Module):
    def __init__(self, dim, slope=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.slope = slope
    def forward(self, x):
        h = self.slope * x
        return self.gain * h / (1 + h.abs())
'''


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "my_equations.py").write_text(USERS_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_equations"


def test_a_users_placement_and_norm_are_printed_without_a_further_line_of_theirs(users_module):
    norm = {"kind": f"{users_module}:Softsign", "slope": 3.0}
    assert layer_lines(placement={"kind": f"{users_module}:Halved"}, norm=norm) == [
        "x ← (x + W_o softmax(q kᵀ / √16 + mask) v) / 2,   q = RoPE(W_q n), k = RoPE(W_k n), v = W_v n, n = N₁(x)",
        "x ← (x + W_down(silu(W_gate n) ⊙ W_up n)) / 2,   n = N₂(x)",
        "where N₁(x), N₂(x) = gain ⊙ h / (|h| + 1), h = 3·x, gain (all 1), each with its own gain",
    ]


def test_a_placement_that_depends_on_values_is_named_with_the_reason(users_module):
    lines = layer_lines(placement={"kind": f"{users_module}:Moody"})
    assert lines[0] == "x ← Moody: Depends on the weather. [not traced: what it does depends on the values of a tensor]"


def test_a_class_that_is_not_there_is_a_users_error():
    with pytest.raises(UserError, match="no module nowhere"):
        model_equations(spec_of(placement={"kind": "nowhere:Mine"}))


def test_many_kinds_of_layers_are_counted_in_the_text(users_module):
    text = model_equations(spec_of(n_layers=5, placement={"kind": f"{users_module}:Deeper"}))
    assert re.findall(r"^(?:layer |…).*", text, re.MULTILINE) == [
        "layer 1 of 5",
        "layer 2 of 5",
        "layer 3 of 5",
        "… (5 groups of layers)",
    ]


def test_layers_that_do_the_same_are_one_group():
    model = Transformer(spec_of(n_layers=12, placement={"kind": "mix"}))
    labels = [label for label, _ in block_equations(model)]
    assert labels == ["before the layers", "layers 1–3 of 12", "layers 4–12 of 12", "after the layers"]


def test_layers_that_differ_in_a_number_are_one_group_with_the_numbers_listed():
    lines = layer_lines(n_layers=4, placement={"kind": "lns"})
    assert lines[1] == "x ← x + W_down(silu(W_gate h) ⊙ W_up h),   h = c·N₂(x)"
    assert lines[-1] == "where c = 1, 0.70711, 0.57735, 0.5, layer by layer"


def test_layers_are_told_apart_by_private_attributes_too(users_module):
    lines = layer_lines(placement={"kind": f"{users_module}:Secretive"})
    assert lines[-1] == "where c = 0.5, 0.25, 0.125, layer by layer"


def test_a_parameter_of_both_sublayers_is_said_to_be_shared():
    lines = layer_lines(placement={"kind": "rezero"})
    assert sum("scale (=0, shared)" in line for line in lines) == 2
    assert not any("shared" in line for line in layer_lines(placement={"kind": "skipinit"}))


def test_dropout_is_there_in_training_only():
    model = Transformer(spec_of(dropout=0.1, attention_dropout=0.2))
    text = str(block_equations(model))
    assert "dropout(W_o dropout(softmax(q kᵀ / √16 + mask), 0.2) v, 0.1)" in text
    assert "dropout" not in str(block_equations(model.eval()))


def test_printing_leaves_no_trace():
    model = model_of(placement={"kind": "ngpt"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random, called = torch.get_rng_state(), nn.Module.__call__
    block_equations(model)
    model_equations(model.spec)
    assert nn.Module.__call__ is called
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "embedding" not in vars(model.position)


def test_the_largest_models_take_no_memory():
    text = model_equations(spec_of(d_model=2**16, n_layers=256, n_heads=256, intermediate_size=2**18, vocab_size=2**17))
    assert "every layer (256)" in text


def test_the_reader_tells_a_wrong_equation():
    x, g = torch.randn(2, 3, 32), torch.ones(32)
    right, wrong = (Reader({"x": x, "g": g}).value(text) for text in ("g ⊙ x / √mean(x²)", "g ⊙ x / mean(x²)"))
    torch.testing.assert_close(right, F.rms_norm(x, (32,), g, 0.0))
    assert not torch.allclose(right, wrong)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"placement": {"kind": "pre"}}, ["W_o, W_down ~ N(0, σ²), σ = 0.004082", "E, W_q, W_k, W_v, W_gate, W_up"]),
        ({"placement": {"kind": "deepnorm"}}, ["W_v, W_o ~ N(0, σ²), σ = 0.07987", "W_q, W_k ~ N(0, σ²), σ = 0.25"]),
        ({"placement": {"kind": "pre"}, "init": "depth"}, ["σ = 0.02 in the first layer, 0.01414 in the second"]),
        ({"placement": {"kind": "ngpt"}, "final_norm": False}, ["to unit length, now and after every step"]),
    ],
)
def test_the_size_of_the_initial_weights_is_told(options, expected):
    text = model_equations(ModelSpec(d_model=16, n_heads=2, n_layers=12, intermediate_size=24, **options))
    for part in expected:
        assert part in text.partition("at first")[2]
