"""Models to convert, and what is looked at afterwards."""

from pathlib import Path

import numpy as np

from shearling.engine.reference import ReferenceEngine
from shearling.formats import Checkpoint, StoredTensor, open_checkpoint
from shearling.formats.run_folder import write_run_folder
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

LLAMA2C = {"norm": {"kind": "rmsnorm", "eps": 1e-5}}
"""What llama2.c's programs have for constants."""


def made(folder: Path, **options) -> Path:
    """A run folder of a model whose weights are random, and large enough to matter."""
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 4, "intermediate_size": 128, "vocab_size": 300, "max_seq_len": 64}
    spec = ModelSpec.model_validate(shape | LLAMA2C | {"init_std": 0.2} | options)
    tensors = {
        name: StoredTensor.of(tensor.detach().numpy()) for name, tensor in Transformer(spec, 3).named_parameters()
    }
    write_run_folder(folder, Checkpoint(spec, tensors, "halves", "made"), progress=lambda _: None)
    return folder


def logits(path: Path) -> np.ndarray:
    return ReferenceEngine(open_checkpoint(path)).session().feed_for_all_logits(list(range(3, 33)))


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
