"""What a config means, before anything runs: values and their origins, size, cost, memory, learning rate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shearling.config import Loaded, fingerprint, flatten, load, sections
from shearling.experiments.equations import equation_groups
from shearling.models.cost import Parameters, parameters, training_flops_per_token
from shearling.models.spec import ModelFile, ModelSpec
from shearling.training.resolve import Resolved, load_experiment
from shearling.training.schedules import learning_rate_factor
from shearling.training.spec import ExperimentSpec

WARMUP_DRAWN = 0.05


@dataclass(frozen=True)
class Row:
    """One option of a resolved config."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Run:
    """What an experiment adds to its model."""

    spec: ExperimentSpec
    resolved: Resolved
    fingerprint: str


@dataclass(frozen=True)
class Summary:
    """All that `shearling show` tells of one config."""

    path: Path
    rows: tuple[Row, ...]
    model: ModelSpec
    parameters: Parameters
    seq_len: int
    """Tokens per training sequence; the longest context where the config is a model alone."""
    flops_per_token: int
    run: Run | None
    """None where the config is a model alone."""


def summarize(path: Path | str, overrides: Sequence[str] = ()) -> Summary:
    """Reads a config, an experiment's or a model's alone, and works out what follows from it.

    Raises:
        UserError: all that is wrong with it.
    """
    if sections(path) == {"model"}:
        part = load(ModelFile, path, overrides)
        return _summary(part, part.value.model, part.value.model.max_seq_len, None)
    loaded, resolved = load_experiment(path, overrides)
    run = Run(loaded.value, resolved, fingerprint(loaded.value))
    return _summary(loaded, loaded.value.model, loaded.value.data.seq_len, run)


def learning_rates(run: Run, points: int) -> list[tuple[float, float]]:
    """The learning rate at evenly spaced points of the horizon, as (share of the horizon, learning rate).

    Where minutes end the run, nobody knows the share that warm-up takes: it is drawn as the first twentieth.
    """
    training, total, taken = run.spec.training, run.resolved.total_steps, run.spec.warmup_taken
    curve = []
    for point in range(points):
        share = point / (points - 1)
        step = round(share * total) if total else int(share / WARMUP_DRAWN * (training.schedule.warmup_steps - taken))
        factor = learning_rate_factor(training.schedule, step, step / total if total else share, total, taken)
        curve.append((share, factor * training.optimizer.learning_rate))
    return curve


def as_data(summary: Summary) -> dict[str, Any]:
    """The summary as plain data, for `--json`. Sizes in bytes, the rest in units."""
    counts = summary.parameters
    data: dict[str, Any] = {
        "path": str(summary.path),
        "config": {row.key: row.value for row in summary.rows},
        "origins": {row.key: row.origin for row in summary.rows},
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, **asdict(counts)},
        "seq_len": summary.seq_len,
        "training_flops_per_token": summary.flops_per_token,
        "equations": [{"of": label, "lines": lines} for label, lines in equation_groups(summary.model)],
    }
    if run := summary.run:
        resolved = asdict(run.resolved)
        data["fingerprint"] = run.fingerprint
        data["resolved"] = {key: value for key, value in resolved.items() if key not in ("parameters", "memory")}
        data["memory_bytes"] = {**resolved["memory"], "total": run.resolved.memory.total}
        data["learning_rates"] = learning_rates(run, 101)
    return data


def _summary(loaded: Loaded[Any], model: ModelSpec, seq_len: int, run: Run | None) -> Summary:
    values = {".".join(keys): value for keys, value in flatten(loaded.value).items()}
    return Summary(
        path=loaded.path,
        rows=tuple(Row(key, value, loaded.origins[key]) for key, value in values.items()),
        model=model,
        parameters=parameters(model),
        seq_len=seq_len,
        flops_per_token=training_flops_per_token(model, seq_len),
        run=run,
    )
