"""What a comparison's folder remembers: how it was begun, so that whatever goes on there goes on with the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shearling.config import differences, dump, load
from shearling.errors import UserError
from shearling.experiments.compare.plan import Plan
from shearling.files import write_atomically
from shearling.training.run_folder import RunFolder, read_json, write_json
from shearling.training.spec import ExperimentSpec

_ORIGINS = {"git_commit": "commits", "packages": "package versions", "device": "devices"}
"""What a run's provenance tells of the circumstances that all runs should share."""


@dataclass(frozen=True)
class Record:
    """The file plan.json of a comparison, and its arms' configs.

    Attributes:
        threads: that each run computes with.
        warnings: of what was done in this folder before.
    """

    out: Path
    threads: int
    warnings: tuple[str, ...]

    def note_verdict(self, plan: Plan) -> None:
        """Remember that a verdict over so many seeds, against this baseline, has been seen."""
        recorded = read_json(self.out / "plan.json")
        verdicts = sorted({*recorded["verdicts"], plan.count})
        baselines = sorted({*recorded.get("baselines", []), plan.baseline})
        write_json(self.out / "plan.json", {**recorded, "verdicts": verdicts, "baselines": baselines})


def begin(plan: Plan, out: Path, threads: int | None) -> Record:
    """Begin a comparison in `out`, or go on with the one there.

    Args:
        threads: that each run computes with; None: as the comparison began, else one.

    Raises:
        UserError: the folder holds something else, or a comparison with other arms of these names, another grid or
            another number of threads.
    """
    if (out / "experiment_config.yaml").exists() or (out / "manifest.json").exists():
        raise UserError(f"{out}: holds a run or prepared data: choose another --out")
    file, grid = out / "plan.json", None if plan.grid is None else list(plan.grid)
    begun: dict[str, Any] | None = read_json(file) if file.exists() else None
    recorded = begun or {"threads": threads or 1, "grid": grid, "verdicts": [], "baselines": []}
    if threads not in (None, recorded["threads"]):
        raise UserError(
            f"{out}: was begun with --threads {recorded['threads']}, and results repeat for one number of threads "
            f"only: leave out --threads {threads}, or choose another --out"
        )
    if recorded["grid"] != grid:
        raise UserError(
            f"{out}: was begun {_grid_in_words(recorded['grid'])}, and would now go on {_grid_in_words(grid)}: choose "
            "another --out"
        )
    (out / "arms").mkdir(parents=True, exist_ok=True)
    for arm in plan.arms:
        path = out / "arms" / f"{arm.name}.yaml"
        changed = differences(load(ExperimentSpec, path).value, arm.config) if path.exists() else []
        if changed:
            raise UserError(
                f"{path}: {arm.name} began with other values of {', '.join(changed)}: put them back, rename the "
                "arm, or choose another --out"
            )
    for arm in plan.arms:
        write_atomically(out / "arms" / f"{arm.name}.yaml", dump(arm.config))
    write_json(file, recorded)
    return Record(out, recorded["threads"], tuple(_warnings(plan, out, recorded)))


def doubtful_origins(runs: Iterable[Path]) -> list[str]:
    """Warnings of run folders that come from different code, packages or devices, or from code that no commit holds."""
    origins = [read_json(RunFolder(run).provenance) for run in runs]
    mixed = [what for key, what in _ORIGINS.items() if any(origin[key] != origins[0][key] for origin in origins)]
    dirty = sum((origin["git_commit"] or "").endswith("-dirty") for origin in origins)
    found = [f"the runs come from different {what}: see their provenance.json" for what in mixed]
    if dirty:
        found.append(f"{dirty} of {len(origins)} runs come from code with uncommitted changes, which no commit holds")
    return found


def _warnings(plan: Plan, out: Path, recorded: dict[str, Any]) -> list[str]:
    found, verdicts = [], recorded["verdicts"]
    left_out = {path.stem for path in (out / "arms").glob("*.yaml")} - {arm.name for arm in plan.arms}
    if left_out:
        found.append(f"arms begun in this folder are left out: {', '.join(sorted(left_out))}")
    fewer = [str(count) for count in verdicts if count < plan.count]
    if fewer:
        found.append(
            f"seeds were added after a verdict over {' and '.join(fewer)}: p and intervals hold for a number of seeds "
            "chosen beforehand"
        )
    more = [str(count) for count in verdicts if count > plan.count]
    if more:
        found.append(
            f"an earlier verdict was over more seeds, {' and '.join(more)}: p and intervals hold for a number of seeds "
            "chosen beforehand"
        )
    earlier = [name for name in recorded.get("baselines", []) if name != plan.baseline]
    if earlier:
        found.append(
            f"an earlier verdict was against {' and '.join(earlier)}: p and intervals hold for a baseline chosen "
            "beforehand"
        )
    return found


def _grid_in_words(grid: Sequence[float] | None) -> str:
    if grid is None:
        return "without tuning"
    return f"tuning the learning rate over {', '.join(f'{rate:g}' for rate in grid) or 'factors of each arm’s own'}"
