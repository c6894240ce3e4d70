"""Norm types against formulas in float64, limiting cases, and each other."""

import math
import sys

import pytest
import torch

from shearling.errors import UserError
from shearling.models.layers.normalization import NORMS, build_norm
from shearling.models.spec import ModelSpec

D = 16


def made(**norm):
    """A norm over D dimensions, its parameters moved away from where they begin."""
    built = build_norm(ModelSpec(norm=norm).norm, D)
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        parameter.data += torch.rand(parameter.shape, generator=generator)
    return built


def vectors() -> torch.Tensor:
    return 3 * torch.randn(4, 5, D, generator=torch.Generator().manual_seed(1)) + 0.7


def mean(x):
    return x.mean(-1, keepdim=True)


def norm2(x):
    return (x * x).sum(-1, keepdim=True).sqrt()


def erf(x):
    return torch.tensor([math.erf(value) for value in x.flatten()], dtype=torch.double).view(x.shape)


# By kind: options, and the formula in float64 of the input and the norm's own parameters.
FORMULAS = {
    "rmsnorm": ({"eps": 0.1}, lambda x, p: p["weight"] * x / (mean(x**2) + 0.1).sqrt()),
    "prmsnorm": ({"eps": 0.1, "p": 0.3}, lambda x, p: p["weight"] * x / (mean(x[..., :4] ** 2) + 0.1).sqrt()),
    "crmsnorm": ({"eps": 0.1}, lambda x, p: x / (((x**2).sum(-1, True) + x.sum(-1, True) ** 2) / (D + 1) + 0.1).sqrt()),
    "simplermsnorm": ({}, lambda x, p: D**0.5 * x / norm2(x)),
    "scalenorm": ({}, lambda x, p: p["weight"] * x / norm2(x)),
    "ssnorm": ({"eps": 0.1}, lambda x, p: p["weight"] * x / (mean(x**2) + 0.1).sqrt()),
    "layernorm": (
        {"eps": 0.1},
        lambda x, p: p["weight"] * (x - mean(x)) / (mean((x - mean(x)) ** 2) + 0.1).sqrt() + p["bias"],
    ),
    "nonparametric_layernorm": ({"eps": 0.1}, lambda x, p: (x - mean(x)) / (mean((x - mean(x)) ** 2) + 0.1).sqrt()),
    "dyt": ({"alpha": 0.3, "bias": True}, lambda x, p: p["weight"] * (p["alpha"] * x).tanh() + p["bias"]),
    "derf": ({}, lambda x, p: p["weight"] * erf(p["alpha"] * x + p["shift"]) + p["bias"]),
    "none": ({}, lambda x, p: x),
}


def test_every_norm_has_a_formula_here():
    assert FORMULAS.keys() == NORMS.keys()


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_norm_is_its_formula_in_float64(kind):
    options, formula = FORMULAS[kind]
    norm, x = made(kind=kind, **options), vectors()
    parameters = {name: parameter.detach().double() for name, parameter in norm.named_parameters()}
    torch.testing.assert_close(norm(x).double(), formula(x.double(), parameters), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"kind": "layernorm", "bias": False}, {"kind": "dyt", "bias": False}])
def test_without_a_bias_there_is_none(options):
    assert [name for name, _ in made(**options).named_parameters() if "bias" in name] == []


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_keeps_shape_and_dtype(kind):
    x = vectors().bfloat16()
    y = made(kind=kind)(x)
    assert (y.shape, y.dtype) == (x.shape, torch.bfloat16)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm", "ssnorm", "crmsnorm", "prmsnorm", "nonparametric_layernorm"])
def test_statistics_are_fp32_under_bf16(kind):
    x = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)  # a bf16 sum of squares would stall far too low
    x[:, ::2] = -0.1
    y = build_norm(ModelSpec(norm={"kind": kind}).norm, 4096)(x)
    assert y.float().abs().mean().item() == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("kind", NORMS)
def test_norms_do_not_see_their_input_s_scale_and_what_stands_in_for_them_does(kind):
    norm, x = made(kind=kind, **({"eps": 1e-12} if kind not in ("dyt", "derf", "none") else {})), vectors()
    same = torch.allclose(norm(7 * x), norm(x), rtol=1e-4, atol=1e-5)
    assert same == (kind not in ("dyt", "derf", "none"))


def test_initially_scalenorm_simplermsnorm_ssnorm_and_rmsnorm_are_one():
    x = vectors()
    outputs = [
        build_norm(ModelSpec(norm={"kind": kind, "eps": 1e-12}).norm, D)(x)
        for kind in ("scalenorm", "simplermsnorm", "ssnorm", "rmsnorm")
    ]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_prmsnorm_over_all_dimensions_is_rmsnorm():
    x = vectors()
    whole = build_norm(ModelSpec(norm={"kind": "prmsnorm", "p": 1.0}).norm, D)
    torch.testing.assert_close(whole(x), build_norm(ModelSpec().norm, D)(x))


def test_crmsnorm_of_a_compressed_vector_is_rmsnorm_of_the_whole():
    compressed = vectors()
    whole = torch.cat([compressed, -compressed.sum(-1, keepdim=True)], -1)  # the zero-mean vector it stands for
    rms = build_norm(ModelSpec(norm={"kind": "rmsnorm", "eps": 1e-3}).norm, D + 1)
    crms = build_norm(ModelSpec(norm={"kind": "crmsnorm", "eps": 1e-3}).norm, D)
    torch.testing.assert_close(crms(compressed), rms(whole)[..., :-1])


def test_layernorm_of_a_zero_mean_vector_is_rmsnorm():
    x = vectors()
    x = x - x.mean(-1, keepdim=True)
    layer = build_norm(ModelSpec(norm={"kind": "layernorm", "eps": 1e-5}).norm, D)
    rms = build_norm(ModelSpec(norm={"kind": "rmsnorm", "eps": 1e-5}).norm, D)
    torch.testing.assert_close(layer(x), rms(x), rtol=1e-5, atol=1e-5)


class TestNormsOfTheUsersOwn:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "my_norms.py").write_text(
            "import torch\n"
            "class Halved(torch.nn.Module):\n"
            "    def __init__(self, dim, factor=0.5):\n"
            "        super().__init__()\n"
            "        self.weight = torch.nn.Parameter(torch.full((dim,), factor))\n"
            "    def forward(self, x):\n"
            "        return self.weight * x\n"
            "class Drawn(torch.nn.Module):\n"
            "    def __init__(self, dim):\n"
            "        super().__init__()\n"
            "        self.weight = torch.nn.Parameter(torch.randn(dim))\n"
            "        self.register_buffer('seen', torch.zeros(()))\n"
            "        self.gate_proj = torch.nn.Linear(2, 2)\n"
            "        torch.nn.init.eye_(self.gate_proj.weight)\n"
            "    def forward(self, x):\n"
            "        if self.training:\n"
            "            self.seen += 1\n"
            "        return self.weight * x\n"
            "not_a_norm = 3\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        yield
        sys.modules.pop("my_norms", None)

    def test_a_class_in_a_file_beside_serves_as_a_norm(self):
        spec = ModelSpec(norm={"kind": "my_norms:Halved", "factor": 0.25})
        x = vectors()
        torch.testing.assert_close(build_norm(spec.norm, D)(x), 0.25 * x)

    @pytest.mark.parametrize(
        ("norm", "message"),
        [
            ({"kind": "my_norms:Doubled"}, "my_norms:Doubled: Doubled is not there"),
            ({"kind": "my_norms:not_a_norm"}, "is no torch"),
            ({"kind": "no_such_module:Norm"}, "no module no_such_module: run the command where no_such_module.py lies"),
            ({"kind": "my_norms:Halved", "facter": 1}, "unexpected keyword argument 'facter': it takes"),
        ],
    )
    def test_what_cannot_be_made_is_told(self, norm, message):
        with pytest.raises(UserError, match=message):
            build_norm(ModelSpec(norm=norm).norm, D)

    def test_its_options_come_as_they_were_written_from_a_file_or_the_command_line(self, tmp_path):
        from shearling.config import load
        from shearling.models.spec import ModelFile

        (tmp_path / "model.yaml").write_text("model:\n  norm: {kind: my_norms:Halved, factor: 1.0}\n")
        options = load(ModelFile, tmp_path / "model.yaml").value.model.norm.options
        assert options == {"factor": 1.0}
        assert isinstance(options["factor"], float)
        assert load(ModelFile, tmp_path / "model.yaml", ["model.norm.factor=0.25"]).value.model.norm.factor == 0.25
        with pytest.raises(UserError, match=r"model\.norm\.factor: unknown key"):
            load(ModelFile, tmp_path / "model.yaml", ["model.norm.kind=rmsnorm", "model.norm.factor=0.25"])

    def test_what_it_draws_follows_from_the_model_s_seed(self):
        from shearling.models.transformer import Transformer

        spec = ModelSpec(d_model=16, n_heads=2, n_layers=1, norm={"kind": "my_norms:Drawn"})
        torch.manual_seed(3)
        one = Transformer(spec, seed=1).final_norm.weight
        torch.manual_seed(4)
        torch.testing.assert_close(Transformer(spec, seed=1).final_norm.weight, one)
        assert not torch.equal(Transformer(spec, seed=2).final_norm.weight, one)

    def test_its_own_matrices_stay_as_it_made_them_and_its_buffers_are_saved(self):
        from shearling.models.cost import parameters
        from shearling.models.transformer import Transformer
        from shearling.training.state import load_weights, model_tensors

        spec = ModelSpec(d_model=16, n_heads=2, n_layers=1, norm={"kind": "my_norms:Drawn"})
        model = Transformer(spec, seed=1).train()
        assert torch.equal(model.final_norm.gate_proj.weight, torch.eye(2))
        assert parameters(spec).norms == 3 * (16 + 4 + 2)
        model(torch.zeros(1, 4, dtype=torch.long))
        other = Transformer(spec, seed=1)
        load_weights(other, model_tensors(model))
        assert other.final_norm.seen == 1

    def test_its_code_counts_as_part_of_a_run(self, tmp_path):
        from shearling.models.custom import custom_code_hash

        spec = ModelSpec(norm={"kind": "my_norms:Halved"})
        before = custom_code_hash(spec)
        (tmp_path / "my_norms.py").write_text((tmp_path / "my_norms.py").read_text() + "# changed\n")
        assert custom_code_hash(spec) != before
        assert custom_code_hash(ModelSpec()) == ""
