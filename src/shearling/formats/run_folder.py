"""Run folders as models: what training leaves, and what other formats are turned into.

Of a run's folder only this is read: `model:` in `experiment_config.yaml`, the newest checkpoint
`model/step_00001000/` whose weights and state are those that its `checksums.json` records, and `tokenizer/`. A folder
that a conversion wrote has these alone, and its weights may be quantized (`weights_file`). Imports no torch.
"""

import json
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.files import sha256_file
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.specification import expected_shapes
from shearling.formats.weights_file import read_weights, write_weights
from shearling.models.placement_spec import LNSGainSpec, PreSpec
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS, Codec

CONFIG, WEIGHTS, STATE, SUMS = "experiment_config.yaml", "model.safetensors", "state.json", "checksums.json"
FALLBACK = CODECS["f16"]
"""Of matrices whose rows are no whole groups of what was asked for."""


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def read_run_folder(folder: Path, tokenizer: Path | None = None, *, warn: Callable[[str], None] = _warn) -> Checkpoint:
    """The newest whole checkpoint of a run folder; damaged ones are warned of.

    A gain that training began at 1/√l is a gain like any other, and a residual warm-up that has ended does nothing:
    what is left of `lns_gain` and of it is plain Pre-LN. Of one that has not ended, each branch's share so far goes
    into its last matrix.

    Args:
        tokenizer: to take in place of the folder's.

    Raises:
        UserError: the config is damaged, no checkpoint is whole, its tensors are not the config's, or the tokenizer is
            not the one that the model was trained with.
    """
    config = _read_config(folder / CONFIG)
    spec = _read_spec(config, folder / CONFIG)
    step, state = _newest_whole(folder / "model", warn)
    weights = folder / "model" / f"step_{step:08d}" / WEIGHTS
    tensors = read_weights(weights)
    _check_tensors(spec, tensors, weights)
    spec, tensors = _as_trained(spec, tensors, step)
    own = _load_tokenizer(folder, tokenizer, state)
    converted = _section(state, "converted")
    template, stop_ids = converted.get("chat_template"), converted.get("stop_ids")
    # In training data each document has a beginning, which is BOS, and nothing at its end.
    adds_bos = converted.get("adds_bos") if converted else True
    if not (isinstance(stop_ids, list) and stop_ids):
        stop_ids = [own.bos_id] if own else []
    return Checkpoint(
        spec=spec,
        tensors=tensors,
        rotary="halves",
        origin=str(folder),
        load_tokenizer=None if own is None else lambda: own,
        chat_template=template if isinstance(template, str) else None,
        stop_ids=tuple(token for token in stop_ids if isinstance(token, int)),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        notes={"name": config.get("name", folder.name), "step": step},
    )


def _read_config(file: Path) -> dict[str, Any]:
    from shearling.config.files import parse

    try:
        return parse(file.read_text(), str(file))[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _read_spec(config: dict[str, Any], file: Path) -> ModelSpec:
    try:  # strict and from JSON, as all configs are
        return ModelSpec.model_validate_json(json.dumps(config.get("model", {})), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(("model", *map(str, first["loc"])))
        raise UserError(f"{file}: {where}: {first['msg']}: bring back the file that training wrote") from None


def _newest_whole(root: Path, warn: Callable[[str], None]) -> tuple[int, dict[str, Any]]:
    """The step of the newest checkpoint whose weights and state are as they were written, and that state."""
    steps = sorted(int(path.name[5:]) for path in root.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))
    for step in reversed(steps):
        folder = root / f"step_{step:08d}"
        try:
            return step, _whole_state(folder)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            warn(f"{folder}: damaged checkpoint: {error}; looking for one before it")
    if not steps:
        raise UserError(f"{root}: no whole checkpoint: train the run first")
    raise UserError(f"{root}: no whole checkpoint is left: train the run again, or bring back a copy of its folder")


def _whole_state(folder: Path) -> dict[str, Any]:
    recorded = json.loads((folder / SUMS).read_bytes())
    for name in (STATE, WEIGHTS):
        if recorded[name] != sha256_file(folder / name):
            raise ValueError(f"the checksum of {name} is not the recorded one")
    state = json.loads((folder / STATE).read_bytes())
    if not isinstance(state, dict):
        raise TypeError(f"{STATE} is no map")
    return state


def _section(state: dict[str, Any], key: str) -> dict[str, Any]:
    """A map within a state; an empty one where there is none."""
    value = state.get(key)
    return value if isinstance(value, dict) else {}


def _check_tensors(spec: ModelSpec, tensors: dict[str, StoredTensor], file: Path) -> None:
    """Of a model of LLaMA's graph; what is beyond is held against its network when that is built."""
    if spec.beyond_llama():
        return
    expected, found = expected_shapes(spec), {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{file}: the checkpoint's weights are not this model's: {', '.join(wrong[:3])} differ: check `model` in "
            f"the run's {CONFIG}"
        )


def _as_trained(
    spec: ModelSpec, tensors: dict[str, StoredTensor], step: int
) -> tuple[ModelSpec, dict[str, StoredTensor]]:
    """The model at its step, without what matters to training alone; see `read_run_folder`."""
    placement = spec.placement
    if placement.residual_warmup is not None:
        shares = [min(step / (placement.residual_warmup * layer), 1.0) for layer in range(1, spec.n_layers + 1)]
        if min(shares) < 1 and not isinstance(placement, PreSpec | LNSGainSpec):
            return spec, tensors  # a norm may follow the branch: PyTorch's model has all that it takes
        for layer, share in enumerate(shares):
            for last in ("attention.branch.o_proj", "feedforward.branch.down_proj"):
                for name in (f"layers.{layer}.{last}.weight", f"layers.{layer}.{last}.bias"):
                    if share < 1 and name in tensors:
                        tensors[name] = StoredTensor.of(np.float32(share) * tensors[name].read())
        placement = placement.model_copy(update={"residual_warmup": None})
    if isinstance(placement, LNSGainSpec):
        placement = PreSpec()
    return spec.model_copy(update={"placement": placement}), tensors


def _load_tokenizer(folder: Path, given: Path | None, state: dict[str, Any]) -> Tokenizer | None:
    own = folder / "tokenizer"
    path = given or own
    trained_with = _section(state, "identity").get("tokenizer")
    if given is None and trained_with is None and not own.exists():
        return None
    tokenizer = load_tokenizer(path)
    if trained_with not in (None, tokenizer.sha256):
        mend = "put that one back" if given is None else "leave -z out" if own.exists() else "give that one"
        raise UserError(f"{path}: not the tokenizer that the model was trained with: {mend}")
    return tokenizer


def write_run_folder(
    folder: Path, checkpoint: Checkpoint, *, codec: Codec | None = None, progress: Callable[[int], None]
) -> list[str]:
    """Write a model as a run folder, at step 0: its config has a name and a model, and no training.

    Args:
        codec: of the matrices, where a row is a whole number of its groups; f16 where it is not.
        progress: takes the number of bytes just written.

    Returns:
        What the user should know: which matrices are f16 for want of whole groups.

    Raises:
        UserError: a residual warm-up has not ended, which no weights can express (nothing was written then); a weight
            is beyond what the codec can hold.
    """
    if checkpoint.spec.placement.residual_warmup is not None:
        raise UserError(f"{checkpoint.origin}: model.placement.residual_warmup has not ended: train the model further")
    codecs = {name: _codec_for(tensor, codec) for name, tensor in checkpoint.tensors.items()}
    step = folder / "model" / "step_00000000"
    step.mkdir(parents=True)
    write_weights(step / WEIGHTS, checkpoint, codecs, progress)
    (step / STATE).write_text(json.dumps(_state(checkpoint), indent=1))
    sums = {name: sha256_file(step / name) for name in (WEIGHTS, STATE)}
    (step / SUMS).write_text(json.dumps(sums, indent=1))
    (folder / "model" / "latest").symlink_to(step.name)
    if checkpoint.tokenizer:
        checkpoint.tokenizer.save(folder / "tokenizer")
    (folder / "provenance.json").write_text(json.dumps(_provenance(checkpoint), indent=2) + "\n")
    (folder / CONFIG).write_text(_config(checkpoint))
    unfit = [name for name, own in codecs.items() if codec and own is FALLBACK and codec is not FALLBACK]
    return [f"{len(unfit)} matrices are f16, since their rows are no whole groups: {unfit[0]} …"] if unfit else []


def _codec_for(tensor: StoredTensor, asked: Codec | None) -> Codec:
    if len(tensor.shape) != 2:
        return CODECS["f32"]
    codec = asked or tensor.codec
    return codec if codec.fits(tensor.shape[1]) else FALLBACK


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "progress": {"step": 0},
        "identity": {"tokenizer": checkpoint.tokenizer.sha256 if checkpoint.tokenizer else None},
        "converted": {
            "stop_ids": list(checkpoint.stop_ids),
            "chat_template": checkpoint.chat_template,
            "adds_bos": checkpoint.begins_with_bos,
        },
    }


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    notes = {key: value for key, value in checkpoint.notes.items() if isinstance(value, str | int | float | bool)}
    return {
        "converted_from": str(Path(checkpoint.origin).absolute()),
        "notes": notes,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in ("shearling", "numpy")},
        "command_line": sys.argv,
    }


def _config(checkpoint: Checkpoint) -> str:
    from omegaconf import OmegaConf

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.name)
    name = name.lstrip("._-") or "converted"
    # OmegaConf's writer quotes whatever its reader would take for a number.
    return OmegaConf.to_yaml(OmegaConf.create({"name": name, "model": checkpoint.spec.model_dump(mode="json")}))
