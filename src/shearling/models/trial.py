"""A trial of a user's own norm or placement, before anything is trained with it."""

import copy
import functools

import torch

from shearling.errors import UserError
from shearling.models.custom import custom_parts
from shearling.models.layers.normalization import build_norm
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

TOKENS, VOCABULARY = 8, 32


@functools.lru_cache(maxsize=16)
def try_custom_parts(spec: ModelSpec) -> None:
    """Run a small model with the user's classes, and refuse what no comparison could be trusted with.

    Raises:
        UserError: a class fails, a norm changes shape or dtype, or a token's result depends on later tokens or on other
            sequences: a model that sees what it is to predict beats every other.
    """
    own = custom_parts(spec)
    if not own:
        return
    names = " and ".join(part.kind for part in own.values())
    small = {"n_layers": min(2, spec.n_layers), "vocab_size": VOCABULARY, "max_seq_len": TOKENS, "init_std": 0.3}
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(VOCABULARY, (2, TOKENS), generator=generator)
    changed_BT = tokens_BT.clone()
    changed_BT[0, -1] = (tokens_BT[0, -1] + 1) % VOCABULARY
    try:
        if "model.norm" in own:
            _try_norm(spec)
        model = Transformer(spec.model_copy(update={**small, "dropout": 0.0, "attention_dropout": 0.0}))
        with torch.no_grad():  # each on a copy: a norm may keep statistics
            before, after = (copy.deepcopy(model)(tokens) for tokens in (tokens_BT, changed_BT))
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"model: {names}: fails when it is tried: {type(error).__name__}: {error}") from error
    earlier = torch.allclose(before[0, :-1], after[0, :-1], rtol=1e-4, atol=1e-5) or not spec.causal
    others = torch.allclose(before[1], after[1], rtol=1e-4, atol=1e-5)
    if not (earlier and others):
        seen = "other sequences of the batch" if earlier else "later tokens"
        raise UserError(f"model: {names}: a token's result depends on {seen}: work over the last dimension alone")


def _try_norm(spec: ModelSpec) -> None:
    given = torch.randn(2, 3, spec.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        got = build_norm(spec.norm, spec.d_model)(given)
    if (got.shape, got.dtype) != (given.shape, given.dtype):
        raise UserError(
            f"model.norm: {spec.norm.kind}: of {tuple(given.shape)} in {given.dtype} it makes {tuple(got.shape)} in "
            f"{got.dtype}: a norm keeps shape and dtype"
        )
