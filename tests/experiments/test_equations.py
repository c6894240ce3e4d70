"""The printed equations are what runs: read back from their text and computed, they give what the model gives."""

import re

import pytest
import torch
import torch.nn.functional as F
from equation_reader import Reader
from model_reader import read_logits, spec_of
from torch import nn

from shearling.errors import UserError
from shearling.experiments.equations import block_equations, model_equations
from shearling.models.layers.normalization import NORMS
from shearling.models.layers.placements import PLACEMENTS
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer


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
    "native": {
        "activation": "relu2", "logit_softcap": 2.0, "value_embeddings": 1, "qk_norm": {"kind": "per_head"},
    },
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


def test_a_file_that_is_no_python_is_a_users_error_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "my_slip.py").write_text("x = 1\nclass Mine(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"model\.norm\.kind: my_slip is no Python: .*my_slip\.py:2: invalid syntax"):
        model_equations(spec_of(norm={"kind": "my_slip:Mine"}))


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


def test_in_short_long_lists_are_told_by_their_ends_and_in_full_by_every_number():
    spec = spec_of(n_layers=14, placement={"kind": "lns"}, init="depth")
    short, whole = (model_equations(spec, whole).splitlines() for whole in (False, True))
    sizes = [f"{0.02 / layer**0.5:.4g}" for layer in range(1, 15)]
    assert [line for line in short if " c = " in line] == [
        "  where c = 1, 0.70711, 0.57735, 0.5, …, 0.26726, layer by layer"
    ]
    (line,) = [line for line in whole if " c = " in line]
    assert line.count(",") == 14
    assert any(f"σ = {', '.join(sizes)}, layer by layer" in line for line in whole)
    assert any(f"{sizes[1]} in the second … {sizes[-1]} in the last" in line for line in short)


def test_layers_that_the_short_text_only_counts_are_in_the_whole_one(users_module):
    text = model_equations(spec_of(n_layers=5, placement={"kind": f"{users_module}:Deeper"}), whole=True)
    assert re.findall(r"^(?:layer |…).*", text, re.MULTILINE) == [f"layer {layer} of 5" for layer in range(1, 6)]


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


def test_a_window_and_scaled_rotations_are_told():
    scaling = {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 64}
    text = model_equations(spec_of(sliding_window=8, position={"kind": "rope", "scaling": scaling}))
    assert "where mask: 0 for a token itself and the 7 before it, −∞ for others" in text
    assert "where RoPE's frequencies: YaRN" in text
    assert "factor = 4, original_max_seq_len = 64, beta_fast = 32, beta_slow = 1, attention_factor = 1.13863" in text


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
