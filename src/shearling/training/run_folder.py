"""The run folder: everything that comes of an experiment, in one place.

experiment_config.yaml, provenance.json, equations.txt, metrics.jsonl, diagnostics.jsonl, results.json, logs/, model/,
tokenizer/
"""

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from shearling.data.tokenizers import Tokenizer
from shearling.errors import UserError
from shearling.files import write_atomically

PACKAGES = ("shearling", "torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "pydantic", "omegaconf")

FINISHED, DIVERGED = "finished", "diverged"
"""How a run ended, in its results: at its horizon, or before it, as the loss or its gradient stayed non-finite."""


class RunFolder:
    """Paths of a run folder, and what is written there besides checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "experiment_config.yaml"
        self.provenance = path / "provenance.json"
        self.equations = path / "equations.txt"
        self.metrics = path / "metrics.jsonl"
        self.diagnostics = path / "diagnostics.jsonl"
        self.results = path / "results.json"
        self.log = path / "logs" / "train.log"
        self.profile = path / "profile"
        self.checkpoints = path / "model"
        self.tokenizer = path / "tokenizer"

    @property
    def begun(self) -> bool:
        """Whether a run has been started here."""
        return self.config.exists()

    def create(self, config_yaml: str, provenance: dict[str, Any], tokenizer: Tokenizer) -> None:
        """Begin a run: its config, where it comes from, its tokenizer. The config comes last and marks it as begun."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(exist_ok=True)
        tokenizer.save(self.tokenizer)
        self.equations.unlink(missing_ok=True)  # of a run that stopped here before its first checkpoint
        write_json(self.provenance, provenance)
        write_atomically(self.config, config_yaml)

    def cut_metrics(self, step: float) -> None:
        """Drop the lines of metrics.jsonl behind `step`: the steps that a resumed run takes again.

        The same of diagnostics.jsonl.
        """
        for path in (self.metrics, self.diagnostics):
            if path.exists():
                kept = [line for line in _read_lines(path) if line["step"] <= step]
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a last line that a crash cut short is left out.

        Raises:
            UserError: a line is no JSON.
        """
        return _read_lines(self.metrics)

    def read_diagnostics(self) -> list[dict[str, Any]]:
        """The same of diagnostics.jsonl; nothing where nothing was measured."""
        return _read_lines(self.diagnostics) if self.diagnostics.exists() else []


def _read_lines(path: Path) -> list[dict[str, Any]]:
    parsed = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}:{number}: no JSON ({error}): remove the line") from error
    return parsed


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def provenance(device: str, hashes: dict[str, str], extended: Path | None = None) -> dict[str, Any]:
    """Where a run comes from: code, packages, machine, command line, data, and the run that it extends."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": device,
        "command_line": sys.argv,
        "hashes": hashes,
        "extended": None if extended is None else str(extended),
    }


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, marked where it has changes; None outside of git."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).parent
    described = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=here, capture_output=True, text=True
    )
    return described.stdout.strip() or None
