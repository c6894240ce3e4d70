"""Computes a model's logits from its printed equations, with the model's parameters by their printed names."""

import re

import torch
from equation_reader import Reader
from torch import nn

from shearling.experiments.equations import block_equations
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer


def spec_of(**options) -> ModelSpec:
    """A small model with these options."""
    small = {"d_model": 32, "n_layers": 3, "n_heads": 2, "intermediate_size": 48, "vocab_size": 50, "max_seq_len": 16}
    ends = {"final_norm": options.get("placement", {}).get("kind") != "ngpt"}
    return ModelSpec.model_validate({**small, **ends, **options})


def read_logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits from the printed equations of the whole model."""
    (_, before), *groups, (_, after) = [(label, unfolded(lines)) for label, lines in block_equations(model)]
    known = names_of(model, tokens)
    known |= norms_of(model, before)
    streams = read(before, known)
    for index, layer in enumerate(model.blocks):
        lines, position = group_of(groups, index, len(model.blocks))
        numbers = {symbol: values[position] for symbol, values in varying(lines).items()}
        known_here = {**known, **numbers, **norms_of(layer, lines)}
        sublayers = [line for line in lines if "←" in line]
        for part, line in zip((layer.attention, layer.feedforward), sublayers, strict=True):
            streams = read([line], {**known_here, **parameters_of(part), **streams})
    return read(after, {**known, **norms_of(model, after), **streams})["logits"]


def unfolded(lines: list[str]) -> list[str]:
    """Each line with what was continued below it."""
    return re.sub(r"\n {4}(with|    ) ", r" \1 ", "\n".join(lines)).split("\n")


def read(lines: list[str], names: dict) -> dict:
    """What the equations among the lines make of their targets, one after the other."""
    made: dict = {}
    for line in lines:
        if not line.startswith("where"):
            targets, values = Reader({**names, **made}, names["K"]).equation(line)
            made.update(zip(targets, values, strict=True))
    return made


def group_of(groups, index: int, count: int) -> tuple[list[str], int]:
    """The lines of layer `index`, and its position in its group."""
    for label, lines in groups:
        spans = [tuple(map(int, span.split("–"))) for span in re.findall(r"\d+(?:–\d+)?", label.partition(" of ")[0])]
        members = [layer for span in spans for layer in range(span[0], span[-1] + 1)]
        members = range(1, count + 1) if label.startswith("every") else members
        if index + 1 in members:
            return lines, list(members).index(index + 1)
    raise AssertionError(f"no group for layer {index + 1}")


def varying(lines: list[str]) -> dict[str, list[float]]:
    """The numbers that differ by layer."""
    found = (re.match(r"where (c[₀-₉]*) = (.*), layer by layer", line) for line in lines)
    return {match[1]: [float(value) for value in match[2].split(", ")] for match in found if match}


def names_of(model: Transformer, tokens: torch.Tensor) -> dict:
    """What the model's own names mean."""
    T, positions = tokens.size(1), torch.arange(tokens.size(1))
    K = model.spec.head_dim
    cos, sin = model.position.rotation(positions) or (torch.ones(T, K // 2), torch.zeros(T, K // 2))

    def rope(x):
        first, second = x.unflatten(-1, (-1, K)).chunk(2, dim=-1) if x.ndim == 3 else x.chunk(2, dim=-1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1)

    return {
        "t": tokens,
        "E": model.embed.weight,
        "P": model.position.embedding(positions),
        "K": K,
        "RoPE": rope,
        "mask": torch.full((T, T), -torch.inf).triu(1),
        "bias": model.position.bias(positions, positions),
        "step": torch.tensor(float(model.step)),
        "W_head": getattr(model.head, "weight", None),
        "head_bias": model.head_bias,
        "head_gain": getattr(model.head_gain, "weight", None),
        "embed_scale": model.embed_scale,
        **{f"E_v{number}": table.weight for number, table in enumerate(model.value_embed, 1)},
        **(parameters_of(model.transform) if model.transform else {}),
    }


def parameters_of(part: nn.Module) -> dict:
    """A sublayer's parameters by the names that they are printed with."""
    names = {}
    for path, parameter in part.named_parameters():
        owner, _, own = path.removeprefix("branch.").rpartition(".")
        if owner.endswith("_proj"):
            names[f"{own[0].replace('w', 'W')}_{owner.removesuffix('_proj')}"] = parameter
        else:
            names[owner or own] = parameter
    return names


def norms_of(module: nn.Module, lines: list[str]) -> dict:
    """The norms that the lines define, as functions."""
    if isinstance(module, Transformer):
        modules = {
            "N_final": module.final_norm,
            "N_embed": module.embed_norm,
            "N": getattr(module.transform, "norm", None),
        }
    else:
        parts = [module.attention, module.feedforward]
        beside = [getattr(part, name) for part in parts for name in part.norms]
        modules = {"N": beside[0]} if len(beside) == 1 else {f"N{'₁₂₃₄'[i]}": norm for i, norm in enumerate(beside)}
        for part in parts:
            inside = part.branch.named_children()
            modules |= {f"N_{name.removesuffix('_norm')}": norm for name, norm in inside if name.endswith("_norm")}
    found = (re.match(r"where ((?:N\S*\(x\)(?:, )?)+) = (.*)", line) for line in lines)
    return {
        called.removesuffix("(x)"): norm_function(modules[called.removesuffix("(x)")], match[2])
        for match in found
        if match
        for called in match[1].split(", ")
    }


def norm_function(module: nn.Module, text: str):
    """x to what the text says a norm makes of it, with the parameters of `module`."""
    greek = {"alpha": "α", "weight": "g", "bias": "b"}
    parameters = {greek.get(name, name): parameter for name, parameter in module.named_parameters()}
    head = re.search(r", x one head's (\d+)", text)

    def norm(x):
        x = x.unflatten(-1, (-1, int(head[1]))) if head and x.ndim == 3 else x
        x = x.flatten(2) if not head and x.ndim == 4 else x
        return Reader({**parameters, "x": x}).equation(f"y = {text}")[1][0]

    return norm
