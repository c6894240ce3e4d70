"""Checkpoints: complete or absent, and known to be whole before they are used.

`model/step_00001000/` holds `model.safetensors` (fp32 master weights), `optimizer.safetensors`, `state.json`, and
`checksums.json` with the SHA-256 of each. It is written under another name, flushed to disk and renamed; the links
`latest` and `best` are replaced in one step. A checkpoint whose sums do not match is passed over with a warning.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shearling.errors import UserError
from shearling.files import flush, sha256_file

_SUMS = "checksums.json"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        weights: parameters by name, fp32.
        optimizer: optimizer state by `key/name`.
        state: everything else, as JSON holds it.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return root / f"step_{step:08d}"


def save_checkpoint(root: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint of `step` below `root` and point `latest` at it.

    Raises:
        OSError: the disk is full or failing; what was written is removed, earlier checkpoints stay whole.
    """
    folder = step_folder(root, step)
    for left in root.glob(".draft_step_*"):  # by killed processes
        shutil.rmtree(left)
    draft = root / f".draft_{folder.name}"
    draft.mkdir(parents=True)
    try:
        _save_tensors(draft / "model.safetensors", checkpoint.weights)
        _save_tensors(draft / "optimizer.safetensors", checkpoint.optimizer)
        (draft / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
        sums = {name: sha256_file(draft / name) for name in _FILES}
        (draft / _SUMS).write_text(json.dumps(sums, indent=1))
        for path in draft.iterdir():
            flush(path)
        flush(draft)
        replaced = root / f".draft_{folder.name}_replaced"
        if folder.exists():  # damaged, come to again by a resumed run, or of an earlier step of a random-data warm-up
            folder.rename(replaced)  # removed after: that takes long enough for a kill to come between
        draft.rename(folder)
        flush(root)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    point(root, "latest", step)
    return folder


def point(root: Path, name: str, step: int) -> None:
    """Make the link `name` (`latest`, `best`) lead to the checkpoint of `step`, in one step."""
    draft = root / f".draft_{name}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(step_folder(root, step).name)
    draft.replace(root / name)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its sums verified.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    verify(folder)
    return Checkpoint(
        load_file(folder / "model.safetensors"),
        load_file(folder / "optimizer.safetensors"),
        json.loads((folder / "state.json").read_bytes()),
    )


def load_latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint below `root`, or None where none was ever saved; damaged ones are warned of.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    for step in reversed(saved_steps(root)):
        try:
            return load_checkpoint(step_folder(root, step))
        except UserError as error:
            warn(f"{error}; looking for one before it")
    if saved_steps(root):
        raise UserError(
            f"{root}: no whole checkpoint is left: choose another output_dir, or remove this folder to begin again"
        )
    return None


def saved_steps(root: Path) -> list[int]:
    """Steps that have a checkpoint below `root`, ascending."""
    return sorted(int(folder.name[5:]) for folder in root.glob("step_*") if folder.name[5:].isdecimal())


def prune(root: Path, step: int, keep_last: int, kept: Collection[int | None]) -> None:
    """Of the checkpoints up to `step`, remove all but the `keep_last` newest and those of the steps `kept`.

    Later ones are damaged: the run went back past them, and will replace them when it comes to their steps again.
    """
    for old in [saved for saved in saved_steps(root) if saved <= step][:-keep_last]:
        if old not in kept:
            folder = step_folder(root, old)
            doomed = folder.rename(root / f".draft_{folder.name}")  # never half a checkpoint under its own name
            shutil.rmtree(doomed)


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its recorded sum.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    try:
        recorded = json.loads((folder / _SUMS).read_bytes())
        actual = {name: sha256_file(folder / name) for name in _FILES}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: damaged checkpoint: {error}") from error
    if recorded != actual:
        raise UserError(f"{folder}: damaged checkpoint: the checksums of its files are not those recorded")


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights."""
    sums: dict[str, str] = json.loads((folder / _SUMS).read_bytes())
    return sums["model.safetensors"]


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how the library reports what the system said
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else None, f"{path}: {error}") from error
