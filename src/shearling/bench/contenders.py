"""Training steps side by side: ours and those of other libraries, same shape, batch, dtype policy and optimizer.

Everyone keeps fp32 master weights, computes in bf16, clips at 1.0 and updates with PyTorch's fused AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shearling.data.stream import Batch
from shearling.errors import UserError
from shearling.formats.huggingface.config import config_of
from shearling.models.spec import ModelSpec
from shearling.training.device import keep_freed_memory
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state
from shearling.training.step import train_step

Step = Callable[[torch.Tensor], float]
"""Trains on tokens (B, T + 1) once and gives back the loss before the step, in nats."""


def shearling(spec: ModelSpec, compile_model: bool) -> Step:
    """Our own step, the very one that `train` takes."""
    keep_freed_memory()
    state = None

    def step(tokens: torch.Tensor) -> float:
        nonlocal state
        sequences, length = tokens.size(0), tokens.size(1) - 1
        config = ExperimentSpec.model_validate(
            {
                "name": "bench",
                "output_dir": "unused",
                "model": spec.model_dump(),
                "data": {"path": "unused", "seq_len": length},
                "training": {"steps": 1, "tokens_per_update": sequences * length, "micro_batch": sequences},
            }
        )
        state = state or build_state(config, torch.device("cpu"), compile_model)
        loss, _ = train_step(state, Batch(tokens.numpy()), config, factor=1.0)
        return loss

    return step


def transformers(spec: ModelSpec, compile_model: bool) -> Step:
    """Hugging Face's LlamaForCausalLM under autocast, with PyTorch's fused attention."""
    model = transformers_llama(spec)
    forward = torch.compile(model) if compile_model else model
    return stepping(model, _adamw(model), lambda tokens: forward(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss)


def litgpt(spec: ModelSpec, compile_model: bool) -> Step:
    """litgpt's GPT in LLaMA's shape, with its own loss, under autocast."""
    try:
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy
    except ImportError:
        raise UserError("bench: litgpt is not installed: pip install 'shearling[litgpt]'") from None

    _refuse_beyond_llama(spec, "litgpt's LLaMA")
    model = GPT(
        Config(
            name="bench", block_size=spec.max_seq_len, vocab_size=spec.vocab_size, padded_vocab_size=spec.vocab_size,
            n_layer=spec.n_layers, n_head=spec.n_heads, n_embd=spec.d_model, n_query_groups=spec.kv_heads,
            intermediate_size=spec.intermediate_size, rotary_percentage=1.0, parallel_residual=False, bias=False,
            norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
        )
    )  # fmt: skip
    if spec.tie_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    forward = torch.compile(model) if compile_model else model

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(forward(tokens[:, :-1]), tokens[:, 1:], chunk_size=0)

    return stepping(model, _adamw(model), loss_of)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def stepping(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> Step:
    """A step of another library's model: bf16 by autocast, clipped at 1.0."""

    def step(tokens: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def transformers_llama(spec: ModelSpec) -> Any:
    """transformers' LlamaForCausalLM of the shape `spec`, its weights drawn from PyTorch's generator.

    Raises:
        UserError: transformers is not installed, or its Llama has no such model.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise UserError("bench: transformers is not installed: pip install 'shearling[bench]'") from None
    return LlamaForCausalLM(llama_config(spec, LlamaConfig))


def llama_config(spec: ModelSpec, kind: type) -> Any:
    """A transformers LlamaConfig (`kind`) of the shape `spec`.

    Raises:
        UserError: Llama has no such model.
    """
    _refuse_beyond_llama(spec, "transformers' Llama")
    _, options = config_of(spec, "bench")
    return kind(**options, use_cache=False, attn_implementation="sdpa")


def _refuse_beyond_llama(spec: ModelSpec, whose: str) -> None:
    others = {"sliding_window": spec.sliding_window is not None, "dropout": spec.dropout > 0}
    beyond = [*spec.beyond_llama(), *(option for option, differs in others.items() if differs)]
    if beyond:
        raise UserError(f"bench: {whose} has no such {' and '.join(beyond)}: choose another --model")


CONTENDERS: dict[str, Callable[[ModelSpec, bool], Step]] = {
    "shearling": shearling,
    "transformers": transformers,
    "litgpt": litgpt,
}
