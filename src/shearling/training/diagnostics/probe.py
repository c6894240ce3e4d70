"""A model seen on a fixed batch: each pass through it is made when something asks for it, and once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from shearling.models.layers.attention import Attention, Context
from shearling.models.transformer import Block, Transformer
from shearling.training.diagnostics.definitions import attention_entropies, l2_norm, largest_attention_logit, log_z
from shearling.training.examples import Examples
from shearling.training.loss import head_loss, token_losses

LOGIT_ROWS = 512
"""Tokens whose logits are held at once."""


@dataclass
class Forward:
    """What one forward pass showed.

    Attributes:
        inputs, outputs: the residual stream before and after each layer, (B, T, D).
        attention: of each layer what its attention was called with, each time that its placement called it.
        hidden, targets: what the head sees and is to predict, (N, D) and (N,).
    """

    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    attention: list[list[tuple[torch.Tensor, Context]]] = field(default_factory=list)
    hidden: torch.Tensor = field(init=False)
    targets: torch.Tensor = field(init=False)


@dataclass(frozen=True)
class Predictions:
    """What the head makes of N tokens, (N,) each: log Z, the likeliest token's probability, and whether it came."""

    log_z: torch.Tensor
    confidence: torch.Tensor
    correct: torch.Tensor


class Probe:
    """One state of `model`, in evaluation mode and eager, on a batch of `examples`.

    Attributes:
        before: each layer's weights before the last optimizer step, where they were kept.
        history: the logged steps so far, as metrics.jsonl has them.
    """

    def __init__(
        self,
        model: Transformer,
        examples: Examples,
        *,
        before: Sequence[Sequence[torch.Tensor]] | None = None,
        history: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.model = model
        self.layers: list[Block] = list(model.layers)  # type: ignore[arg-type]
        self.before = before
        self.history = history
        self._examples = examples

    @cached_property
    def forward(self) -> Forward:
        """One forward pass, watched."""
        seen, handles = Forward(), []
        for layer in self.layers:
            calls: list[tuple[torch.Tensor, Context]] = []
            seen.attention.append(calls)
            handles += [
                layer.register_forward_pre_hook(lambda _, given: seen.inputs.append(_stream(given[0]))),
                layer.register_forward_hook(lambda *call: seen.outputs.append(_stream(call[2]))),
                _attention(layer).register_forward_pre_hook(lambda _, given, calls=calls: calls.append(given)),
            ]
        try:
            seen.hidden, seen.targets = self._pass()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    @cached_property
    def attention(self) -> list[tuple[float, float]]:
        """Of each layer the mean entropy of its attention's rows, normalized, and the largest logit."""
        return [
            _attention_figures(_attention(layer), calls)
            for layer, calls in zip(self.layers, self.forward.attention, strict=True)
        ]

    @cached_property
    @torch.no_grad()
    def predictions(self) -> Predictions:
        """The head's predictions, made some tokens at a time: the logits of a whole batch would be large."""
        sizes, confidences, picks = [], [], []
        for hidden_ND in self.forward.hidden.split(LOGIT_ROWS):
            logits_NV = self.model.logits(hidden_ND)
            sizes.append(log_z(logits_NV))
            top_N, pick_N = logits_NV.max(dim=-1)
            confidences.append((top_N - sizes[-1]).exp())
            picks.append(pick_N)
        return Predictions(torch.cat(sizes), torch.cat(confidences), torch.cat(picks) == self.forward.targets)

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self._loss(self.forward.hidden, self.forward.targets)

    @cached_property
    def losses_without(self) -> list[float]:
        """The loss with each layer in turn left out, its input handed on: a forward pass each."""
        losses = []
        for layer in self.layers:
            with _left_out(layer):
                losses.append(self._loss(*self._pass()))
        return losses

    @cached_property
    def gradient_norms(self) -> list[float]:
        """Of each layer the norm of the loss's gradient; the parameters' own `.grad` is not touched."""
        weights = [_trainable(layer) for layer in self.layers]
        with torch.enable_grad():
            hidden_ND, targets_N = self._examples.states_and_targets(self.model, self._device)
            loss = head_loss(hidden_ND, self.model.lm_head, targets_N)
            flat = iter(torch.autograd.grad(loss, [w for layer in weights for w in layer], materialize_grads=True))
        return [l2_norm([next(flat) for _ in layer]).item() for layer in weights]

    @torch.no_grad()
    def _pass(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._examples.states_and_targets(self.model, self._device)

    def _loss(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> float:
        return token_losses(hidden_ND, self.model.lm_head, targets_N).double().mean().item()

    @property
    def _device(self) -> torch.device:
        return self.model.embed.weight.device


def layer_weights(model: Transformer) -> list[list[torch.Tensor]]:
    """The trainable weights of each layer, without their graph."""
    return [[weight.detach() for weight in _trainable(layer)] for layer in model.layers]


def _trainable(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


def _stream(x: torch.Tensor) -> torch.Tensor:
    """The residual stream (B, T, D); of two, stacked (2, B, T, D) as in ResiDual, the first."""
    return x[0] if x.ndim == 4 else x


def _attention(layer: Any) -> Attention:
    return layer.attention.branch


@contextmanager
def _left_out(layer: nn.Module) -> Iterator[None]:
    handle = layer.register_forward_hook(lambda _, given, __: given[0])
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _attention_figures(attention: Attention, calls: list[tuple[torch.Tensor, Context]]) -> tuple[float, float]:
    """Mean normalized entropy and largest logit, made a sequence at a time: a whole batch's rows would be large."""
    entropies, largest = [], []
    for x_BTD, context in calls:
        q_BTHK, k_BSHK = attention.queries_keys(x_BTD, context)
        k_BSHK = k_BSHK.repeat_interleave(attention.groups, dim=2)
        shape = (q_BTHK.size(0), q_BTHK.size(2), q_BTHK.size(1), k_BSHK.size(1))
        bias_BHTS, visible_BHTS = (part.expand(shape) for part in _masks(context, shape, x_BTD.device))
        for q_THK, k_SHK, bias_HTS, visible_HTS in zip(q_BTHK, k_BSHK, bias_BHTS, visible_BHTS, strict=True):
            products_HTS = attention.scale * torch.einsum("thk,shk->hts", q_THK.float(), k_SHK.float())
            entropies.append(attention_entropies(products_HTS + bias_HTS, visible_HTS))
            largest.append(largest_attention_logit(products_HTS, visible_HTS))
    if not calls:  # a placement that leaves its attention out
        return float("nan"), float("nan")
    return torch.cat(entropies).mean().item(), torch.stack(largest).max().item()


def _masks(context: Context, shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What is added to the scores, and which keys a query sees; both broadcast to (B, H, T, S)."""
    nothing = torch.zeros(1, device=device)
    if context.mask is None:
        everything = torch.ones(shape[2:], dtype=torch.bool, device=device)
        return nothing, everything.tril() if context.causal else everything
    if context.mask.dtype == torch.bool:
        return nothing, context.mask
    return context.mask, ~context.mask.isneginf()
