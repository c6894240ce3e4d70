"""Models in memory, of `transformers` and of our own, and what tests of formats compare of them."""

from typing import Any

import torch
import transformers as hf

from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.in_torch import load_transformer
from shearling.models.transformer import Transformer

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 58], [60, 0, 7, 9, 32, 3, 8, 4, 6, 2, 6]])


def shaken(model: torch.nn.Module) -> Any:
    """Every parameter moved, so that no bias is 0 and no gain 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def drawn_llama(**options: Any) -> hf.LlamaForCausalLM:
    """A LLaMA of `transformers`; the same options give the same."""
    torch.manual_seed(0)
    return shaken(hf.LlamaForCausalLM(hf.LlamaConfig(**options)))


def adjacent_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `permute` in transformers' conversion of Meta's weights: halves apart to adjacent."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def their_logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    logits = model(tokens).logits
    assert logits.std() > 0.3  # they say something
    return logits


@torch.no_grad()
def our_logits(checkpoint: Checkpoint, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    model = load_transformer(checkpoint)
    return model.logits(model(tokens))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def in_memory(model: Transformer, origin: str = "our model", **rest: Any) -> Checkpoint:
    """A model of our own as a checkpoint; `rest` is what else that may have."""
    tensors = {name: StoredTensor.of(tensor.numpy()) for name, tensor in model.state_dict().items()}
    return Checkpoint(model.spec, tensors, "halves", origin, **rest)
