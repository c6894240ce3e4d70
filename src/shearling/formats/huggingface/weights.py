"""The weights of a folder, by our names, as views of its files."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shearling.errors import UserError
from shearling.formats.checkpoint import StoredTensor
from shearling.formats.huggingface.families import SEGMENTS, Family
from shearling.formats.huggingface.options import Options, read_json
from shearling.formats.safetensors import SafetensorsFile, named, open_safetensors
from shearling.formats.specification import expected_shapes, shown
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = r"[A-Za-z0-9_ .+=@-]+\.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What the first BERT checkpoints call their gains and biases."""


class FolderTensors:
    """The tensors of a folder, by their names without the family's prefix."""

    def __init__(self, folder: Path, family: Family) -> None:
        self._found: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in _weight_files(folder):
            opened = open_safetensors(file)
            for name in opened.entries:
                ours = name.removeprefix(family.prefix)
                for old, new in OLD_ENDINGS.items():
                    ours = ours.removesuffix(old) + new if ours.endswith(old) else ours
                if ours in self._found:
                    raise UserError(f"{file}: {named(name)}: there twice, also in {self.called(ours)}: remove one")
                self._found[ours] = (opened, name)
        self.folder = folder
        self.names = self._found.keys()

    def called(self, name: str) -> str:
        """File and full name of a tensor, for messages."""
        file, full_name = self._found[name]
        return f"{file.path}: {named(full_name)}"

    def read(self, name: str, shape: list[Any]) -> StoredTensor:
        """A tensor of floats that must have `shape`."""
        if name not in self._found:
            raise UserError(f"{self.folder}: {name}: no weight file holds this tensor: fetch the model again")
        file, full_name = self._found[name]
        stored = list(file.entries[full_name].shape)
        if stored != shape or not all(shape):
            raise UserError(f"{self.called(name)}: its shape is {stored}, and config.json asks for "
                            f"{shown(shape)}: they belong to different models")  # fmt: skip
        return file.tensor(full_name)

    def must_equal(self, twin: str, name: str) -> None:
        """Refuses a tensor that differs from the one that takes its place, where it is there at all."""
        if twin in self._found:
            file, full_name = self._found[name]
            shape = list(file.entries[full_name].shape)
            pairs = zip(*(self.read(own, shape).encoded(CODECS["f32"]) for own in (twin, name)), strict=True)
            if not all(np.array_equal(first, second) for (first,), (second,) in pairs):
                raise UserError(f"{self.called(twin)}: not equal to {name}, though tie_word_embeddings says so: "
                                "set that to false in config.json")  # fmt: skip


def weights_of(family: Family, config: Options, spec: ModelSpec, tensors: FolderTensors) -> dict[str, StoredTensor]:
    """All parameters of the model.

    Raises:
        UserError: one is missing, does not fit the config, or there is one that has no place.
    """
    shapes = expected_shapes(spec)
    weights: dict[str, StoredTensor] = {}
    parts = grouped(family, spec, shapes)
    for theirs, names in parts.items():
        rows = [shapes[ours][0] for ours in names]
        shape = [sum(rows), *shapes[names[0]][1:]]
        turned = is_turned(family, theirs, shape)
        stored = tensors.read(theirs, shape[::-1] if turned else shape)
        (whole,) = stored.parts
        ends = np.cumsum(rows)
        for ours, start, stop in zip(names, ends - rows, ends, strict=True):
            part = (whole.T if turned else whole)[start:stop]
            weights[ours] = StoredTensor(part.shape, stored.codec, (part,))
    known = set(parts)
    if family.segments:
        segments = tensors.read(family.segments, [config[SEGMENTS], spec.d_model])
        weights["position.weight"] = StoredTensor.of(weights["position.weight"].read() + segments.read(slice(1)))
        known.add(family.segments)
    if spec.tie_embeddings:
        for twin, theirs in family.tied.items():
            tensors.must_equal(twin, theirs)
        known.update(family.tied)
    unknown = sorted(name for name in tensors.names - known if not re.fullmatch(family.left_out, name))
    if unknown:
        raise UserError(f"{tensors.called(unknown[0])}: no place for this tensor ({len(unknown)} such) in the model "
                        "that config.json describes: they belong to different models")  # fmt: skip
    return weights


def grouped(family: Family, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Their tensors, without the prefix, and which of ours each holds, one after the other."""
    parts: dict[str, list[str]] = defaultdict(list)
    for ours in shapes:
        parts[family.tensor(ours, spec.tie_embeddings)].append(ours)
    return dict(parts)


def is_turned(family: Family, theirs: str, shape: list[int]) -> bool:
    """Whether a tensor is stored as (in, out)."""
    return family.transposed and theirs.startswith(f"{family.layers}.") and len(shape) == 2


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
        if pickles:
            raise UserError(f"{folder}: its weights are pickled ({pickles[0]}), and reading a pickle can run any code: "
                            "have `transformers` load and save_pretrained them, as safetensors")  # fmt: skip
        raise UserError(f"{folder}: no weights: neither {SINGLE} nor {INDEX}: fetch the model again")
    listed = read_json(index).get("weight_map")
    if not (isinstance(listed, dict) and listed and all(isinstance(name, str) for name in listed.values())):
        raise UserError(f"{index}: weight_map: should be a map from tensors to files: fetch it again")
    for name in sorted(set(listed.values())):
        if not re.fullmatch(SHARD, name):
            raise UserError(f"{index}: weight_map: {name[:100]!r} is no safetensors file of this folder: correct it")
    return [folder / name for name in sorted(set(listed.values()))]
