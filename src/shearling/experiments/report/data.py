"""What a report shows: a comparison's folder or a run's, read and brought into the shape of its pictures."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.config import flatten, load
from shearling.errors import UserError
from shearling.experiments.report.contract import checked
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.spec import ExperimentSpec

COMPARISON = "comparison.json"

Array = npt.NDArray[np.float64]
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: how it ended and what it recorded; empty where its folder or file is gone."""

    folder: Path
    outcome: str
    metrics: Sequence[Line]
    diagnostics: Sequence[Line]
    provenance: Line
    equations: str | None = None

    @property
    def begun(self) -> bool:
        """Whether its config is there."""
        return RunFolder(self.folder).begun

    def curve(self, figure: str) -> tuple[Array, Array]:
        """Tokens (N,) and a figure of metrics.jsonl (N,): `loss` of each step, `validation_loss` of each evaluation."""
        lines = [line for line in self.metrics if line.get(figure) is not None and math.isfinite(line[figure])]
        points = [(line["tokens"], line[figure]) for line in lines]
        table = np.array(points, dtype=float).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def spec(self) -> ExperimentSpec:
        """The config that the run was made with. Raises UserError where it is gone or does not load."""
        return load(ExperimentSpec, RunFolder(self.folder).config).value


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: its entry in comparison.json and its runs, a run for each seed."""

    name: str
    figures: Line
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Comparison:
    """A folder of `shearling compare`. `figures` is comparison.json."""

    folder: Path
    figures: Line
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class SingleRun:
    """A run folder. `results` is None before the run has ended; `options` are those of its config by dotted key."""

    folder: Path
    name: str
    run: Run
    results: Line | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Validation loss (N,) over tokens (N,) of one run, and how the run ended."""

    tokens: Array
    losses: Array
    outcome: str

    def since(self, begin: float) -> list[float]:
        """The loss after so many tokens, and all later ones."""
        first = np.interp(begin, self.tokens, self.losses)
        return [float(first), *self.losses[self.tokens > begin]]


@dataclass(frozen=True)
class Band:
    """Curves of one arm's seeds: over x (M,) their mean and extremes (M,) as far as every seed came, and each run's.

    Runs without an evaluation have no curve; `of` counts all. x is empty where the curves have no tokens in common.
    """

    x: Array
    mean: Array
    low: Array
    high: Array
    curves: tuple[Curve, ...]
    of: int


@dataclass(frozen=True)
class Measured:
    """A diagnostic of one arm at each measured step (S,): the mean over the seeds, not a number where a seed's is none.

    Per layer the shape is (S, L); a scalar's is (S, 1). It is of `seeds` runs `of` all; the others measured nothing.
    Nothing is in `steps` where those have no measured step in common.
    """

    steps: Array
    mean: Array
    low: Array
    high: Array
    seeds: int
    of: int


def read(folder: Path) -> Comparison | SingleRun:
    """Reads a comparison's folder or a run folder.

    Raises:
        UserError: the folder is neither, or a file in it cannot be read.
    """
    if (folder / COMPARISON).exists():
        return _comparison(folder)
    if RunFolder(folder).begun:
        return _single_run(folder)
    if (folder / "plan.json").is_file():
        raise UserError(f"{folder}: this comparison is not finished: give its command again, and it goes on")
    raise UserError(
        f"{folder}: no folder to report on, for it has neither {COMPARISON} nor experiment_config.yaml: "
        "give the folder of a finished `shearling compare` (its --out), or a run folder"
    )


def _comparison(folder: Path) -> Comparison:
    path = folder / COMPARISON
    figures = checked(read_json(path), path)
    arms = tuple(
        Arm(arm["name"], arm, tuple(_run(folder / run["folder"], run["outcome"]) for run in arm["runs"]))
        for arm in figures["arms"]
    )
    return Comparison(folder, figures, arms)


def _single_run(folder: Path) -> SingleRun:
    files = RunFolder(folder)
    results = read_json(files.results) if files.results.exists() else None
    run = _run(folder, (results or {}).get("outcome", "finished"))
    spec = run.spec()
    options = {".".join(keys): value for keys, value in flatten(spec).items()}
    return SingleRun(folder, spec.name, run, results, options)


def _run(folder: Path, outcome: str) -> Run:
    files = RunFolder(folder)
    return Run(
        folder,
        outcome,
        files.read_metrics() if files.metrics.exists() else [],
        files.read_diagnostics(),
        read_json(files.provenance) if files.provenance.exists() else {},
        files.equations.read_text() if files.equations.exists() else None,
    )


def band(runs: Sequence[Run]) -> Band:
    """Validation loss over tokens of one arm's runs, on the union of their evaluations.

    Between a run's evaluations the loss is interpolated. The mean ends where the first run ends, so that it never
    comes to be of the survivors alone.
    """
    curves = [Curve(*run.curve("validation_loss"), run.outcome) for run in runs]
    curves = [curve for curve in curves if len(curve.tokens)]
    if not curves:
        nothing = np.empty(0)
        return Band(nothing, nothing, nothing, nothing, (), len(runs))
    begin, end = max(curve.tokens[0] for curve in curves), min(curve.tokens[-1] for curve in curves)
    union = np.unique(np.concatenate([curve.tokens for curve in curves]))
    x = union[(union >= begin) & (union <= end)]
    values = np.array([np.interp(x, curve.tokens, curve.losses) for curve in curves])
    return Band(x, values.mean(0), values.min(0), values.max(0), tuple(curves), len(runs))


def share(drawn: int, of: int) -> str:
    """` (2 of 3 seeds)` where some have nothing to draw."""
    return "" if drawn == of else f" ({drawn} of {of} seeds)"


def thinned(values: Array, most: int = 300) -> Array:
    """At most so many values: means of neighbours, in groups whose sizes differ by at most one."""
    return np.array([part.mean() for part in np.array_split(values, most) if part.size])


def measured(runs: Sequence[Run], name: str) -> Measured:
    """One diagnostic of one arm over its seeds, at the steps that every seed reached that measured it at all."""
    tables = [_table(run, name) for run in runs]
    tables = [table for table in tables if table]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    if not steps:
        nothing = np.empty((0, 1))
        return Measured(np.empty(0), nothing, nothing, nothing, len(tables), len(runs))
    width = max(len(table[step]) for table in tables for step in steps)
    padded = [[table[step] + [math.nan] * (width - len(table[step])) for step in steps] for table in tables]
    values = np.array(padded)
    found = values.mean(0), values.min(0), values.max(0)
    return Measured(np.array(steps, dtype=float), *found, len(tables), len(runs))


def _table(run: Run, name: str) -> dict[int, list[float]]:
    rows = {}
    for line in run.diagnostics:
        value = line.get(name)
        row = value if isinstance(value, list) else [value]
        if name in line:
            rows[line["step"]] = [math.nan if each is None else float(each) for each in row]
    return rows


def diagnostic_names(arms: Sequence[Arm]) -> tuple[list[str], list[str]]:
    """Names of what was measured per layer, and of the scalars, in the order of the file."""
    lines = [line for arm in arms for run in arm.runs for line in run.diagnostics]
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "tokens", "seconds")))
    layered = [name for name in names if any(isinstance(line.get(name), list) for line in lines)]
    return layered, [name for name in names if name not in layered]


def is_paired(comparison: Comparison, arm: Arm) -> bool:
    """Whether an arm was measured against the baseline seed by seed; older files say it for all arms together."""
    versus = arm.figures["versus"] or {}
    return bool(versus.get("paired", comparison.figures["paired"]))


def outcomes(arm: Arm) -> Counter[str]:
    """How many of an arm's runs ended in which way."""
    return Counter(run["outcome"] for run in arm.figures["runs"])
