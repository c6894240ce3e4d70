"""A checkpoint of any format as PyTorch's model."""

import numpy as np
import torch

from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint
from shearling.models.custom import custom_parts
from shearling.models.transformer import Transformer


def load_transformer(checkpoint: Checkpoint) -> Transformer:
    """The model in evaluation mode, its weights a copy in fp32.

    Raises:
        UserError: a tensor is missing, has another shape than the specification asks for, or has no place.
    """
    custom = bool(custom_parts(checkpoint.spec))  # a user's class may make more than what is stored
    with torch.device("cpu" if custom else "meta"):
        model = Transformer(checkpoint.spec)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in shapes.items():
        if name not in checkpoint.tensors:
            raise UserError(f"{checkpoint.origin}: {name}: this tensor is missing: fetch or convert the model again")
        if checkpoint.tensors[name].shape != shape:
            raise UserError(f"{checkpoint.origin}: {name}: its shape is {checkpoint.tensors[name].shape}, and the "
                            f"model's options ask for {shape}: they belong to different models")  # fmt: skip
    if unknown := sorted(checkpoint.tensors.keys() - shapes.keys()):
        raise UserError(f"{checkpoint.origin}: {unknown[0]}: no place for this tensor ({len(unknown)} such) in the "
                        "model that its options describe: they belong to different models")  # fmt: skip
    model.load_state_dict({name: _in_fp32(checkpoint, name) for name in shapes}, assign=not custom)
    return model.eval()


def _in_fp32(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(checkpoint.in_rotary("halves", name).read(), np.float32, order="C"))
