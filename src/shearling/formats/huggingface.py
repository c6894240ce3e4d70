"""Folders that the `transformers` library writes: `config.json` and weights in safetensors.

What each model_type calls its options and tensors is in `huggingface_families`; the rest is the same for all.
What our graph cannot express is refused, never ignored. Of the tensors, only those are left out that neither logits nor
hidden states depend on: BERT's pooler and next-sentence head, stored masks and rotary frequencies. No pickle is read.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from shearling.errors import UserError
from shearling.formats.huggingface_families import FAMILIES, REFUSED_OF_ALL, Family, Options
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

FLOATS = ("F64", "F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""What the first BERT checkpoints call their gains and biases."""


def read_huggingface(folder: Path) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """Specification and weights (fp32, by our names) of a folder of model_type llama, gpt2 or bert.

    BERT's segment embeddings: row 0 is added to every position, so that a sequence is one segment, the first. A BERT
    without its masked-token head (a sentence encoder) gets `head: false`: it gives hidden states and refuses logits.

    Raises:
        UserError: a file is missing or damaged, the weights are pickled, an option or a tensor is missing or does not
            fit, or our graph cannot express what the folder holds.
    """
    file = folder / "config.json"
    config = _read_json(file)
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UserError(f"{file}: model_type: {kind!r} is none that is read here: {', '.join(FAMILIES)}")
    tensors = _Tensors(folder, family)
    config = family.defaults | family.flatten(config)
    spec = _spec(family, config, any(name.startswith(family.head) for name in tensors.names), file)
    return spec, _weights(family, config, spec, tensors)


def load_huggingface(folder: Path) -> Transformer:
    """The model in such a folder, in evaluation mode, in fp32. Raises as `read_huggingface`."""
    spec, weights = read_huggingface(folder)
    with torch.device("meta"):
        model = Transformer(spec)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _spec(family: Family, config: Options, head: bool, file: Path) -> ModelSpec:
    if missing := [key for key in family.options if key not in config]:
        raise UserError(f"{file}: {', '.join(missing)}: missing: fetch the model's own config.json")
    for key, (allowed, reason) in {**REFUSED_OF_ALL, **family.refused}.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"{file}: {key}: {_shown(config[key])} cannot be expressed: {reason}")
    flat: Options = {**family.fixed, "head": head}
    for theirs, ours in family.options.items():
        value = config[theirs]
        if theirs in family.values:
            names = family.values[theirs]
            if not (isinstance(value, str) and value in names):
                raise UserError(f"{file}: {theirs}: {_shown(value)} is none that is read here: {', '.join(names)}")
            value = names[value]
        if ours in flat and flat[ours] != value:
            raise UserError(f"{file}: {theirs}: {_shown(value)}: it is {flat[ours]} elsewhere in the model, and here "
                            f"one option (model.{ours}) serves both: make them equal")  # fmt: skip
        flat[ours] = value
    if not head:
        flat["tie_embeddings"] = True
    try:  # strict, so that `true` is no 1; from JSON, as all configs are
        spec = ModelSpec.model_validate_json(json.dumps(_nested(flat)), strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {_in_their_words(family, error)}") from None
    if config.get("head_dim") not in (None, spec.head_dim):
        raise UserError(f"{file}: head_dim: {_shown(config['head_dim'])} cannot be expressed: all heads together are "
                        f"as wide as the model here, {spec.head_dim} each")  # fmt: skip
    return spec


def _in_their_words(family: Family, error: ValidationError) -> str:
    """The first thing that does not fit, under the key of their config."""
    finding = error.errors(include_url=False)[0]
    theirs = {ours: key for key, ours in family.options.items()}
    if finding["type"] == "value_error":
        words = {ours: key for ours, key in theirs.items() if "." not in ours}
        return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), str(finding["ctx"]["error"]))
    place = [str(part) for part in finding["loc"]]
    ours = ".".join(dict.fromkeys(place[:1] + place[-1:]))  # between a section and its key stands the section's kind
    message = finding["msg"].replace("Input should", "should")
    return f"{theirs.get(ours, 'a value')}: {message}, not {_shown(finding['input'])}"


def _weights(family: Family, config: Options, spec: ModelSpec, tensors: "_Tensors") -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Transformer(spec).named_parameters()}
    parts: dict[str, list[str]] = defaultdict(list)
    for ours in shapes:
        parts[family.tensor(ours, spec.tie_embeddings)].append(ours)
    weights: dict[str, torch.Tensor] = {}
    for theirs, names in parts.items():
        sizes = [shapes[ours][0] for ours in names]
        shape = [sum(sizes), *shapes[names[0]][1:]]
        turned = family.transposed and theirs.startswith(f"{family.layers}.") and len(shape) == 2
        tensor = tensors.read(theirs, shape[::-1] if turned else shape)
        for ours, part in zip(names, (tensor.T if turned else tensor).split(sizes), strict=True):
            weights[ours] = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    known = set(parts)
    if family.segments:
        weights["position.weight"] += tensors.read(family.segments, [config["type_vocab_size"], spec.d_model])[0]
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


class _Tensors:
    """The tensors of a folder, by their names without the family's prefix, read one at a time."""

    def __init__(self, folder: Path, family: Family) -> None:
        self._found: dict[str, tuple[Path, str, Any]] = {}
        for file in _weight_files(folder):
            try:
                opened = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: no whole safetensors file ({error}): fetch it again") from None
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                ours = name.removeprefix(family.prefix)
                for old, new in OLD_ENDINGS.items():
                    ours = ours.removesuffix(old) + new if ours.endswith(old) else ours
                if ours in self._found:
                    raise UserError(f"{file}: {name}: there twice, also in {self.called(ours)}: remove one")
                self._found[ours] = (file, name, opened)
        self.folder = folder
        self.names = self._found.keys()

    def called(self, name: str) -> str:
        """File and full name of a tensor, for messages."""
        file, full_name, _ = self._found[name]
        return f"{file}: {full_name}"

    def read(self, name: str, shape: list[Any]) -> torch.Tensor:
        """A tensor of floats that must have `shape`."""
        if name not in self._found:
            raise UserError(f"{self.folder}: {name}: no weight file holds this tensor: fetch the model again")
        _, full_name, opened = self._found[name]
        described = opened.get_slice(full_name)
        if described.get_shape() != shape or not all(shape):
            raise UserError(f"{self.called(name)}: its shape is {described.get_shape()}, and config.json asks for "
                            f"{_shown(shape)}: they belong to different models")  # fmt: skip
        if described.get_dtype() not in FLOATS:
            raise UserError(f"{self.called(name)}: {described.get_dtype()} is no dtype of weights that is read here: "
                            f"{', '.join(FLOATS)}")  # fmt: skip
        tensor: torch.Tensor = opened.get_tensor(full_name)
        return tensor

    def must_equal(self, twin: str, name: str) -> None:
        """Refuses a tensor that differs from the one that takes its place, where it is there at all."""
        if twin in self._found:
            shape = self._found[name][2].get_slice(self._found[name][1]).get_shape()
            if not torch.equal(self.read(twin, shape), self.read(name, shape)):
                raise UserError(f"{self.called(twin)}: not equal to {name}, though tie_word_embeddings says so: "
                                "set that to false in config.json")  # fmt: skip


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
    listed = _read_json(index).get("weight_map")
    if not (isinstance(listed, dict) and listed and all(isinstance(name, str) for name in listed.values())):
        raise UserError(f"{index}: weight_map: should be a map from tensors to files: fetch it again")
    for name in sorted(set(listed.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: weight_map: {name!r} is no safetensors file of this folder: correct it")
    return [folder / name for name in sorted(set(listed.values()))]


def _read_json(file: Path) -> Options:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}): fetch the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: should hold a map: fetch the model again")
    return value


def _nested(flat: Options) -> Options:
    nested: Options = {}
    for dotted, value in flat.items():
        section, _, key = dotted.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
