"""From what a foreign header says to a ModelSpec, and the shapes of the tensors that such a model has. No torch."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shearling.errors import UserError
from shearling.models.spec import ModelSpec


def specification(options: Mapping[str, Any], words: Mapping[str, str], origin: str) -> ModelSpec:
    """The specification with these options, none of them converted: 1.0 is no whole number, true is no 1.

    Args:
        options: as in a config, by our names.
        words: what the header calls them, for messages.
        origin: the header's file.

    Raises:
        UserError: the first of them that does not fit, in the header's words.
    """
    try:
        return ModelSpec.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
    if finding["type"] == "value_error":  # of several options; its text names them
        text = re.sub(r"\w+", lambda word: words.get(word[0], word[0]), str(finding["ctx"]["error"]))
    else:
        key = str(finding["loc"][-1])
        text = f"{words.get(key, key)}: {finding['msg'].replace('Input should', 'should')}, not {finding['input']}"
    raise UserError(f"{origin}: {text}: the file is damaged, or no model: fetch or export it again")


def llama_shape(spec: ModelSpec, name: str) -> tuple[int, ...]:
    """The shape of a tensor of LLaMA's graph, by its name in `Transformer.state_dict()`."""
    D, F, V, KV = spec.d_model, spec.intermediate_size, spec.vocab_size, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (V, D),
        "head": (V, D),
        "norm": (D,),
        "final_norm": (D,),
        "q_proj": (D, D),
        "k_proj": (KV, D),
        "v_proj": (KV, D),
        "o_proj": (D, D),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
    }
    return shapes[name.split(".")[-2]]
