"""Optimizers against their formulas in float64, which parameters decay at which rate, and state that survives."""

import math
import sys

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from shearling.errors import UserError
from shearling.models.norm_spec import LayerNormSpec
from shearling.models.roles import role
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.training.optimizer_spec import AdamWSpec, AnyOptimizerSpec
from shearling.training.optimizers import OPTIMIZERS, Updates, build_optimizer, parameter_groups
from shearling.training.optimizers.muon import orthogonalize

SPEC = ModelSpec(
    d_model=16, n_layers=2, n_heads=2, intermediate_size=32, vocab_size=50, max_seq_len=8, norm=LayerNormSpec(),
    attention_bias=True, feedforward_bias=True, tie_embeddings=False,
)  # fmt: skip
STEPS = 12
RATE, DECAY = 0.01, 0.1
TRACED = "layers.0.attention.branch.q_proj.weight"


def options(kind: str, **others):
    return TypeAdapter(AnyOptimizerSpec).validate_python({"kind": kind, **others})


def gradients(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in model.named_parameters()}


def advance(model: nn.Module, updates: Updates, seed: int, factor: float = 1.0, done: float = 0.0) -> None:
    for name, gradient in gradients(model, seed).items():
        dict(model.named_parameters())[name].grad = gradient
    updates.prepare(factor, done)
    updates.step()
    updates.zero_grad()


# One matrix by its formula in float64: `w` in place, `g` the gradient, `n` the step from 1, `s` what is kept.


def adamw(w, g, n, s, o):
    m = s["m"] = o.betas[0] * s.get("m", 0) + (1 - o.betas[0]) * g
    v = s["v"] = o.betas[1] * s.get("v", 0) + (1 - o.betas[1]) * g**2
    w *= 1 - RATE * DECAY
    w -= RATE * (m / (1 - o.betas[0] ** n)) / ((v / (1 - o.betas[1] ** n)).sqrt() + o.eps)


def adam(w, g, n, s, o):
    g = g + DECAY * w
    m = s["m"] = o.betas[0] * s.get("m", 0) + (1 - o.betas[0]) * g
    v = s["v"] = o.betas[1] * s.get("v", 0) + (1 - o.betas[1]) * g**2
    w -= RATE * (m / (1 - o.betas[0] ** n)) / ((v / (1 - o.betas[1] ** n)).sqrt() + o.eps)


def sgd(w, g, n, s, o):
    g = g + DECAY * w
    s["v"] = o.momentum * s["v"] + g if "v" in s else g.clone()
    w -= RATE * (g + o.momentum * s["v"])


def adafactor(w, g, n, s, o):
    """Algorithm 4 of arXiv 1804.04235 with relative steps off, as PyTorch documents it."""
    beta = 1 - n**o.beta2_decay
    step = max(1e-3, w.square().mean().sqrt().item()) * min(RATE, 1 / math.sqrt(n))
    rows = s["r"] = beta * s.get("r", 0) + (1 - beta) * g.square().mean(1, keepdim=True)
    columns = s["c"] = beta * s.get("c", 0) + (1 - beta) * g.square().mean(0, keepdim=True)
    update = g / (rows @ columns / rows.mean()).clamp(min=1.2e-7**2).sqrt()
    w *= 1 - RATE * DECAY
    w -= step * update / max(1.0, update.square().mean().sqrt().item() / o.update_clip)


def muon(w, g, n, s, o):
    """The polynomial of five steps, as published, on singular values: no product of matrices."""
    m = s["m"] = o.momentum * s.get("m", 0) + (1 - o.momentum) * g
    u, sigma, vt = torch.linalg.svd((1 - o.momentum) * g + o.momentum * m, full_matrices=False)
    sigma = sigma / sigma.norm()
    for _ in range(o.ns_steps):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    w *= 1 - RATE * DECAY
    w -= RATE * max(1, w.size(0) / w.size(1)) ** 0.5 * u @ torch.diag(sigma) @ vt


def lion(w, g, n, s, o):
    m = s.get("m", torch.zeros_like(g))
    w *= 1 - RATE * DECAY
    w -= RATE * (o.betas[0] * m + (1 - o.betas[0]) * g).sign()
    s["m"] = o.betas[1] * m + (1 - o.betas[1]) * g


def ademamix(w, g, n, s, o):
    fast = s["f"] = o.betas[0] * s.get("f", 0) + (1 - o.betas[0]) * g
    v = s["v"] = o.betas[1] * s.get("v", 0) + (1 - o.betas[1]) * g**2
    slow = s["s"] = o.betas[2] * s.get("s", 0) + (1 - o.betas[2]) * g
    w *= 1 - RATE * DECAY
    root = (v / (1 - o.betas[1] ** n)).sqrt() + o.eps
    w -= RATE * (fast / (1 - o.betas[0] ** n) + o.alpha * slow) / root


def mars(w, g, n, s, o):
    last = s.get("g", torch.zeros_like(g))
    c = g + o.gamma * o.betas[0] / (1 - o.betas[0]) * (g - last)
    c = c / max(1.0, c.norm().item())
    m = s["m"] = o.betas[0] * s.get("m", 0) + (1 - o.betas[0]) * c
    v = s["v"] = o.betas[1] * s.get("v", 0) + (1 - o.betas[1]) * c**2
    w *= 1 - RATE * DECAY
    w -= RATE * (m / (1 - o.betas[0] ** n)) / ((v / (1 - o.betas[1] ** n)).sqrt() + o.eps)
    s["g"] = g


def adopt(w, g, n, s, o):
    w *= 1 - RATE * DECAY
    if n == 1:
        s["v"], s["m"] = g**2, torch.zeros_like(g)
        return
    normed = (g / s["v"].sqrt().clamp(min=o.eps)).clamp(-(n**0.25), n**0.25)
    s["m"] = o.betas[0] * s["m"] + (1 - o.betas[0]) * normed
    w -= RATE * s["m"]
    s["v"] = o.betas[1] * s["v"] + (1 - o.betas[1]) * g**2


FORMULAS = {
    "adamw": adamw, "adam": adam, "sgd": sgd, "adafactor": adafactor, "muon": muon, "lion": lion,
    "ademamix": ademamix, "mars": mars, "adopt": adopt,
}  # fmt: skip
LOOSE = {"muon": 3e-2, "mars": 1e-4}
"""PyTorch's Newton-Schulz computes in bf16; MARS lives on differences of gradients, here in fp32."""


@pytest.mark.parametrize("kind", FORMULAS)
def test_steps_are_those_of_the_formula_in_float64(kind):
    model, spec = Transformer(SPEC), options(kind, learning_rate=RATE, weight_decay=DECAY)
    updates = build_optimizer(model, spec)
    traced = dict(model.named_parameters())[TRACED]
    exact, kept, start = traced.detach().double(), {}, traced.detach().clone()
    for number in range(1, STEPS + 1):
        FORMULAS[kind](exact, gradients(model, number)[TRACED].double(), number, kept, spec)
        advance(model, updates, number)
    assert (traced - start).norm() > 1e-3
    error = (traced.double() - exact).norm() / (exact - start).norm()
    assert error < LOOSE.get(kind, 1e-5)


@pytest.mark.parametrize(("iteration", "low", "high"), [("quintic", 0.6, 1.3), ("polar_express", 0.84, 1.16)])
def test_muons_iterations_bring_singular_values_towards_1_and_keep_their_vectors(iteration, low, high):
    random = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(48, 48, generator=random, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(96, 48, generator=random, dtype=torch.float64))[0]
    matrix = (u * torch.logspace(-2, 0, 48, dtype=torch.float64)) @ v.T
    found = orthogonalize(matrix.float()[None], options("muon", iteration=iteration))[0].double()
    values = u.T @ found @ v
    assert low < values.diagonal().min() < values.diagonal().max() < high
    assert (values - values.diagonal().diag()).norm() < 0.1 * values.norm()


def test_schedule_free_is_judged_by_the_weighted_average_of_where_it_went():
    """Algorithm 1 of arXiv 2405.15682, without decay and warm-up: y interpolates z and x, x averages z."""
    model, spec = Transformer(SPEC), options("schedule_free", learning_rate=RATE, weight_decay=0)
    updates = build_optimizer(model, spec)
    traced = dict(model.named_parameters())[TRACED]
    z = x = traced.detach().double()
    v = torch.zeros_like(z)
    for number in range(1, STEPS + 1):
        g = gradients(model, number)[TRACED].double()
        v = spec.betas[1] * v + (1 - spec.betas[1]) * g**2
        z = z - RATE * g / ((v / (1 - spec.betas[1] ** number)).sqrt() + spec.eps)
        x = x + (z - x) / number
        advance(model, updates, number)
    trained = traced.detach().clone()
    with updates.averaged():
        assert (traced.double() - x).norm() / (z - x).norm() < 1e-4
    torch.testing.assert_close(trained.double(), spec.betas[0] * x + (1 - spec.betas[0]) * z, rtol=1e-4, atol=1e-6)
    assert torch.equal(traced, trained)


class TestSophia:
    def test_steps_are_those_of_algorithm_3(self):
        model = Transformer(SPEC)
        spec = options("sophia", learning_rate=RATE, weight_decay=DECAY, rho=2.0, every=3)
        updates, targets = build_optimizer(model, spec), 40
        traced = dict(model.named_parameters())[TRACED]
        w, start = traced.detach().double(), traced.detach().clone()
        m = h = torch.zeros_like(w)
        clipped = []
        for number in range(STEPS):
            assert updates.curvature_due(number) == (number % 3 == 0)
            if updates.curvature_due(number):
                sampled = gradients(model, 100 + number)
                for name, parameter in model.named_parameters():
                    parameter.grad = sampled[name]
                updates.note_curvature(targets)
                h = spec.betas[1] * h + (1 - spec.betas[1]) * targets * sampled[TRACED].double() ** 2
            m = spec.betas[0] * m + (1 - spec.betas[0]) * gradients(model, number)[TRACED].double()
            ratio = m / (spec.rho * h).clamp(min=spec.eps)
            clipped.append((ratio.abs() > 1).double().mean().item())
            w = w * (1 - RATE * DECAY) - RATE * ratio.clamp(-1, 1)
            advance(model, updates, number)
        assert 0 < clipped[-1] < 1
        assert (traced.double() - w).norm() / (w - start).norm() < 1e-5

    def test_passes_over_an_estimate_that_is_not_finite(self):
        model = Transformer(SPEC)
        updates = build_optimizer(model, options("sophia"))
        advance(model, updates, 0)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.nan)
        updates.note_curvature(4)
        assert all(torch.equal(t, torch.zeros_like(t)) for path, t in updates.tensors().items() if "curvature" in path)


def test_soap_in_one_dimension_of_eigenbases_is_adam_after_a_step_that_only_measures():
    """Where every side is too long for an eigenbasis, nothing is left of SOAP but Adam (arXiv 2409.11321)."""
    model, spec = Transformer(SPEC), options("soap", learning_rate=RATE, weight_decay=0, largest=1)
    updates = build_optimizer(model, spec)
    traced = dict(model.named_parameters())[TRACED]
    w = traced.detach().double()
    m = v = torch.zeros_like(w)
    for number in range(STEPS):
        g = gradients(model, number)[TRACED].double()
        if number:
            m = spec.betas[0] * m + (1 - spec.betas[0]) * g
            v = spec.betas[1] * v + (1 - spec.betas[1]) * g**2
            scale = math.sqrt(1 - spec.betas[1] ** number) / (1 - spec.betas[0] ** number)
            w = w - RATE * scale * m / (v.sqrt() + spec.eps)
        advance(model, updates, number)
    torch.testing.assert_close(traced.double(), w, rtol=1e-4, atol=1e-6)


class TestGroups:
    def test_matrices_decay_and_gains_and_biases_do_not(self):
        model = Transformer(SPEC)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decays = {
            names[id(parameter)]: group["decay"]
            for group in parameter_groups(model, AdamWSpec(weight_decay=0.3))
            for parameter in group["params"]
        }
        assert decays.keys() == set(names.values())
        for name, decay in decays.items():
            assert decay == (0.0 if "norm" in name or name.endswith("bias") else 0.3)

    def test_frozen_parameters_are_left_out(self):
        model = Transformer(SPEC)
        model.embed.weight.requires_grad_(False)
        groups = parameter_groups(model, AdamWSpec())
        assert not any(parameter is model.embed.weight for group in groups for parameter in group["params"])

    def test_tied_embeddings_are_updated_once(self):
        model = Transformer(SPEC.model_copy(update={"tie_embeddings": True}))
        parameters = [parameter for group in parameter_groups(model, AdamWSpec()) for parameter in group["params"]]
        assert len({id(parameter) for parameter in parameters}) == len(parameters)
        assert sum(parameter is model.embed.weight for parameter in parameters) == 1

    @pytest.mark.parametrize("kind", ["adamw", "lion"])
    def test_rates_follow_the_role(self, kind):
        rates = {"embedding": 3.0, "head": 0.5, "matrix": 2.0, "vector": 0.25}
        moved = {}
        for factors in ({}, rates):
            model = Transformer(SPEC)
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            spec = options(kind, rates=factors, weight_decay=0, learning_rate=1e-3)
            advance(model, build_optimizer(model, spec), 0, factor=0.1)
            moved[bool(factors)] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        for name, step in moved[False].items():
            torch.testing.assert_close(moved[True][name], rates[role(name)] * step, rtol=1e-2, atol=1e-7)

    def test_rates_fall_from_block_to_block_below(self):
        model = Transformer(SPEC)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        shares = {
            names[id(parameter)]: group["share"]
            for group in parameter_groups(model, AdamWSpec(layer_decay=0.5))
            for parameter in group["params"]
        }
        assert shares["embed.weight"] == 0.25
        assert {share for name, share in shares.items() if name.startswith("layers.0.")} == {0.5}
        assert {share for name, share in shares.items() if name.startswith(("layers.1.", "head", "final"))} == {1.0}

    def test_muon_takes_matrices_and_adamw_all_else_at_its_own_rate(self):
        model = Transformer(SPEC)
        updates = build_optimizer(model, options("muon", learning_rate=0.02, rate_of_others=0.003))
        updates.prepare(0.5, 0.0)
        orthogonal, rest = updates.parts
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        taken = {names[id(parameter)] for group in orthogonal.param_groups for parameter in group["params"]}
        assert taken == {name for name in names.values() if role(name) == "matrix"}
        assert {group["lr"] for group in orthogonal.param_groups} == {0.01}
        assert {group["lr"] for group in rest.param_groups} == {0.0015}


class TestDecay:
    def test_fades_to_its_share_in_a_straight_line(self):
        updates = build_optimizer(Transformer(SPEC), AdamWSpec(weight_decay=0.4, weight_decay_end=0.5))
        for done, expected in ((0.0, 0.4), (0.5, 0.3), (1.0, 0.2)):
            updates.prepare(1.0, done)
            assert max(group["weight_decay"] for group in updates.groups) == pytest.approx(expected)
            assert min(group["weight_decay"] for group in updates.groups) == 0.0

    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_that_is_cautious_shrinks_only_what_the_update_shrinks(self, kind):
        model, plain = Transformer(SPEC), Transformer(SPEC)
        start = dict(plain.named_parameters())[TRACED].detach().clone()
        advance(model, build_optimizer(model, options(kind, weight_decay=0.5, cautious_decay=True)), 3)
        spec = options(kind, weight_decay=0)
        advance(plain, build_optimizer(plain, spec), 3)
        without, found = (dict(each.named_parameters())[TRACED].detach() for each in (plain, model))
        towards_zero = (start - without) * start > 0
        assert 0.1 < towards_zero.double().mean() < 0.9
        expected = without - spec.learning_rate * 0.5 * start * towards_zero
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_state_put_back_goes_on_as_if_never_taken_out(kind, steps):
    models = [Transformer(SPEC, seed=0) for _ in range(2)]
    spec = options(kind, **({"every": 2} if kind in ("sophia", "soap") else {}))
    first, second = (build_optimizer(model, spec) for model in models)
    for step in range(steps):
        advance(models[0], first, step)
    with first.averaged():
        models[1].load_state_dict(models[0].state_dict())
        taken = {path: tensor.clone() for path, tensor in first.tensors().items()}
    second.load(taken)
    for step in range(steps, steps + 3):
        advance(models[0], first, step)
        advance(models[1], second, step)
    for (name, mine), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_state_is_named_for_its_parameter_however_parameters_are_ordered():
    model = Transformer(SPEC)
    updates = build_optimizer(model, AdamWSpec())
    advance(model, updates, 0)
    order = [{"params": [p], "share": 1.0, "decay": 0.0} for p in reversed(list(model.parameters()))]
    backwards = Updates(model, AdamWSpec(), [torch.optim.AdamW(order)])
    backwards.load(updates.tensors())
    for parameter in model.parameters():
        for key, value in updates.parts[0].state[parameter].items():
            assert torch.equal(value, backwards.parts[0].state[parameter][key])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_lowers_a_loss(kind):
    model = Transformer(SPEC)
    tokens = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(0))
    updates, losses = build_optimizer(model, options(kind)), []
    for step in range(20):
        if updates.curvature_due(step):
            nn.functional.cross_entropy(model.logits(model(tokens)).flatten(0, 1), tokens.flatten()).backward()
            updates.note_curvature(tokens.numel())
            updates.zero_grad()
        loss = nn.functional.cross_entropy(model.logits(model(tokens)).flatten(0, 1), tokens.flatten())
        loss.backward()
        updates.prepare(1.0, 0.0)
        updates.step()
        updates.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


def test_a_library_that_is_missing_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"training\.optimizer\.kind lion: .* pip install 'shearling\[optimizers\]'"):
        build_optimizer(Transformer(SPEC), options("lion"))
