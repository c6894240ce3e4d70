"""What a report needs of comparison.json: the keys that it reads, and their types."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shearling.errors import UserError

VERSION = 1


class _Run(BaseModel):
    seed: int
    folder: str
    outcome: str
    loss: float
    seconds: float | None


class _Versus(BaseModel):
    verdict: str
    difference: float | None
    low: float | None
    high: float | None
    p_holm: float | None
    smallest_visible: float | None
    paired: bool | None = None


class _Point(BaseModel):
    learning_rate: float
    loss: float | None
    outcome: str


class _Tuning(BaseModel):
    points: list[_Point]
    best_at_edge: bool
    sensitivity: float | None


class _Arm(BaseModel):
    name: str
    options: dict[str, Any]
    parameters: int
    flops_per_token: float
    learning_rate: float
    mean: float | None
    sd: float | None
    runs: list[_Run]
    tuning: _Tuning | None
    versus: _Versus | None


class _Budget(BaseModel):
    kind: str
    at: float
    losses: dict[str, float | None]
    mid_run: bool


class _Comparison(BaseModel):
    name: str
    baseline: str
    command: list[str]
    seeds: list[int]
    paired: bool
    same_start: bool | None = None
    threads: int
    jobs: int
    unigram_loss: float | None
    differs: list[str]
    recipe: dict[str, Any]
    warnings: list[str]
    arms: list[_Arm]
    budgets: list[_Budget]


def checked(figures: Any, path: Path) -> dict[str, Any]:
    """The figures as they are, once it is sure that a report can be made of them.

    Raises:
        UserError: they are no comparison of this version, or a key is missing or of another type.
    """
    mend = "run the same `shearling compare` again"
    if not isinstance(figures, dict) or figures.get("kind") != "comparison":
        raise UserError(f"{path}: no comparison: {mend}")
    if figures.get("version") != VERSION:
        raise UserError(f"{path}: a comparison of version {figures.get('version')}, not {VERSION}: {mend}")
    try:
        _Comparison.model_validate(figures)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}: {first['msg'][:1].lower()}{first['msg'][1:]}: {mend}") from error
    names = [arm["name"] for arm in figures["arms"]]
    if figures["baseline"] not in names:
        raise UserError(f"{path}: baseline: {figures['baseline']} is none of the arms: {mend}")
    return figures
