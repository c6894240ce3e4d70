"""The learning rate of each arm: the best on a grid, which goes on while the best lies at its edge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shearling.experiments.compare.outcomes import Result, read_result
from shearling.experiments.compare.plan import Arm, Plan
from shearling.experiments.compare.tasks import Task, make_task
from shearling.experiments.statistics import learning_rate_sensitivity
from shearling.seeding import derive_seed

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of an arm's configured learning rate: the grid, unless one is given."""

EXTENSIONS = 4
"""Times that a grid goes on by a factor of two."""


@dataclass(frozen=True)
class Tuning:
    """The grid of one arm: runs of one seed, ascending in their learning rate."""

    seed: int
    points: tuple[Result, ...]

    @property
    def best(self) -> float:
        """The learning rate of the lowest loss; of equal ones the lowest."""
        return min(self.points, key=lambda point: (point.loss, point.learning_rate)).learning_rate

    @property
    def beyond(self) -> list[float]:
        """The learning rates that the grid must go on to, its best being at an edge."""
        lowest, highest = self.points[0].learning_rate, self.points[-1].learning_rate
        return [lowest / 2] * (self.best == lowest) + [highest * 2] * (self.best == highest)

    @property
    def sensitivity(self) -> float | None:
        """See :func:`shearling.experiments.statistics.learning_rate_sensitivity`."""
        return learning_rate_sensitivity(
            [point.learning_rate for point in self.points], [point.loss for point in self.points]
        )


def tuning_seed(plan: Plan) -> int:
    """A seed that no run of the comparison has: what is chosen and what is tested must not share their noise.

    It depends on the first arm's seed alone, so that it stays when the comparison is given more seeds.
    """
    seed = derive_seed(plan.arms[0].config.seed, "tuning") >> 32
    taken = {each for arm in plan.arms for each in plan.seeds(arm)}
    while seed in taken:
        seed += 1
    return seed


def tune(plan: Plan, out: Path, run: Callable[[Sequence[Task]], None]) -> dict[str, Tuning]:
    """The grids of all arms, each point trained with the whole budget.

    Args:
        run: brings tasks to their results.
    """
    seed = tuning_seed(plan)
    rates = {arm.name: sorted(plan.grid or (factor * arm.learning_rate for factor in FACTORS)) for arm in plan.arms}
    for _ in range(1 + EXTENSIONS):
        tasks = {arm.name: [_point(arm, out, seed, rate) for rate in rates[arm.name]] for arm in plan.arms}
        run([task for own in tasks.values() for task in own])
        tunings = {name: Tuning(seed, tuple(read_result(task, out) for task in own)) for name, own in tasks.items()}
        if not any(tuning.beyond for tuning in tunings.values()):
            break
        rates = {name: sorted([*rates[name], *tuning.beyond]) for name, tuning in tunings.items()}
    return tunings


def _point(arm: Arm, out: Path, seed: int, rate: float) -> Task:
    return make_task(arm.at(rate), out / "tuning" / arm.name / f"lr-{rate}", f"learning rate {rate:.4g}", seed)
