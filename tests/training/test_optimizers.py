"""Optimizers: which parameters decay, and state that survives under its parameters' names."""

import pytest
import torch
from torch import nn

from shearling.models.norm_spec import LayerNormSpec
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.training.optimizers import build_optimizer, decay_groups, load_optimizer_tensors, optimizer_tensors
from shearling.training.spec import AdamWSpec

SPEC = ModelSpec(
    d_model=16, n_layers=2, n_heads=2, intermediate_size=32, vocab_size=50, max_seq_len=8, norm=LayerNormSpec(),
    attention_bias=True, feedforward_bias=True, tie_embeddings=False,
)  # fmt: skip


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_matrices_decay_and_gains_and_biases_do_not():
    model = Transformer(SPEC)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, plain = (
        {names[id(parameter)] for parameter in group["params"]} for group in decay_groups(model, weight_decay=0.3)
    )
    assert decaying | plain == set(names.values())
    assert plain == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert [group["weight_decay"] for group in decay_groups(model, 0.3)] == [0.3, 0.0]


def test_frozen_parameters_are_left_out():
    model = Transformer(SPEC)
    model.embed.weight.requires_grad_(False)
    groups = decay_groups(model, 0.1)
    assert not any(parameter is model.embed.weight for group in groups for parameter in group["params"])


def test_tied_embeddings_are_updated_once():
    model = Transformer(SPEC.model_copy(update={"tie_embeddings": True}))
    parameters = [parameter for group in decay_groups(model, 0.1) for parameter in group["params"]]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert sum(parameter is model.embed.weight for parameter in parameters) == 1


def test_options_reach_the_optimizer():
    spec = AdamWSpec(learning_rate=0.02, betas=(0.8, 0.7), eps=1e-5, weight_decay=0.4)
    group = build_optimizer(Transformer(SPEC), spec).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.02, (0.8, 0.7), 1e-5, 0.4)


@pytest.mark.parametrize("steps", [0, 3])
def test_state_put_back_goes_on_as_if_never_taken_out(steps):
    models = [Transformer(SPEC, seed=0) for _ in range(2)]
    first, second = (build_optimizer(model, AdamWSpec()) for model in models)
    for step in range(steps):
        advance(models[0], first, step)
    models[1].load_state_dict(models[0].state_dict())
    taken = {path: tensor.clone() for path, tensor in optimizer_tensors(models[0], first).items()}
    assert len(taken) == (3 * len(list(models[0].parameters())) if steps else 0)
    load_optimizer_tensors(models[1], second, taken)
    for step in range(steps, steps + 3):
        advance(models[0], first, step)
        advance(models[1], second, step)
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other)


def test_state_is_named_for_its_parameter_however_parameters_are_ordered():
    model = Transformer(SPEC)
    optimizer = build_optimizer(model, AdamWSpec())
    advance(model, optimizer, 0)
    backwards = torch.optim.AdamW(list(model.parameters())[::-1])
    load_optimizer_tensors(model, backwards, optimizer_tensors(model, optimizer))
    for parameter in model.parameters():
        assert torch.equal(backwards.state[parameter]["exp_avg"], 0.1 * parameter.grad)
