"""What is compared: the arms, their seeds, and the refusal of arms that differ in more than what is compared."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from shearling.config import differences, flatten
from shearling.config.places import ending_in, nearest, places
from shearling.config.tree import Keys, dotted
from shearling.data.manifest import Manifest, load_manifest
from shearling.errors import UserError
from shearling.training.resolve import Resolved, check_vocabulary, load_experiment, resolve
from shearling.training.spec import ExperimentSpec

COMPARED = (
    "model.norm",
    "model.placement",
    "model.qk_norm",
    "model.embedding_norm",
    "model.final_norm",
    "model.init",
    "random_warmup",
)
"""What arms may differ in without a word: these options and all below them."""

RATE = "training.optimizer.learning_rate"
LARGEST_SEED = 2**63 - 1

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Controls = Callable[[ExperimentSpec], Mapping[str, ExperimentSpec]]
"""The control arms that an arm calls for, by what is added to its name."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    config: ExperimentSpec
    """With the first of the arm's seeds."""

    @cached_property
    def resolved(self) -> Resolved:
        """What follows from its config."""
        return resolve(self.config)

    @cached_property
    def manifest(self) -> Manifest:
        """Of its data."""
        return load_manifest(self.config.data.path)

    @property
    def hashes(self) -> tuple[str, str]:
        """Of its data and of their tokenizer."""
        return self.manifest.hash, self.manifest.tokenizer.sha256

    @property
    def learning_rate(self) -> float:
        """Its peak learning rate."""
        return self.config.training.optimizer.learning_rate

    def at(self, learning_rate: float) -> "Arm":
        """The arm at another peak learning rate."""
        training = self.config.training
        optimizer = training.optimizer.model_copy(update={"learning_rate": learning_rate})
        training = training.model_copy(update={"optimizer": optimizer})
        return Arm(self.name, self.config.model_copy(update={"training": training}))

    def run(self, folder: Path, seed: int) -> ExperimentSpec:
        """The config of one run of the arm."""
        own = {"name": f"{self.name}.{folder.name}", "output_dir": folder, "seed": seed}
        return self.config.model_copy(update=own)


@dataclass(frozen=True)
class Plan:
    """A comparison before anything has run.

    Attributes:
        count: seeds of each arm.
        grid: learning rates to tune over, the same for all arms; empty for factors around each arm's own; None for no
            tuning.
        warnings: what whoever reads the verdict should know.
    """

    arms: tuple[Arm, ...]
    baseline: str
    count: int
    grid: tuple[float, ...] | None
    warnings: tuple[str, ...]

    @property
    def baseline_arm(self) -> Arm:
        """The arm that the others are measured against."""
        return next(arm for arm in self.arms if arm.name == self.baseline)

    @property
    def others(self) -> list[Arm]:
        """The arms that are measured against the baseline."""
        return [arm for arm in self.arms if arm.name != self.baseline]

    @property
    def paired(self) -> bool:
        """Whether runs of all arms share their seeds."""
        return all(self.pairs(arm) for arm in self.arms)

    @property
    def same_start(self) -> bool:
        """Whether runs of one seed draw the same initial tensors, where shapes agree, and see the same batches.

        They do where nothing differs but what is compared, and the learning rate, which no draw depends on.
        """
        same_data = len({arm.hashes for arm in self.arms}) == 1
        return self.paired and same_data and all(within(key, [*COMPARED, RATE]) for key in differing(self.arms))

    def pairs(self, arm: Arm) -> bool:
        """Whether the arm's runs share their seeds with the baseline's."""
        return arm.config.seed == self.baseline_arm.config.seed

    def incomparable(self, arm: Arm) -> str | None:
        """Why the arm's losses are in another unit than the baseline's; None where they are in one."""
        baseline = self.baseline_arm
        if arm.config.training.objective != baseline.config.training.objective:
            return "another objective than the baseline's, whose loss measures something else"
        if arm.hashes[1] != baseline.hashes[1]:
            return "another tokenizer than the baseline's: compare bits per byte"
        return None

    def seeds(self, arm: Arm) -> list[int]:
        """The arm's seeds: its config's, and those after it."""
        return [arm.config.seed + i for i in range(self.count)]


def make_plan(
    arguments: Sequence[str],
    *,
    seeds: int = 3,
    baseline: str | None = None,
    over: Sequence[str] = (),
    tune: str | None = None,
    grid: str | None = None,
    controls: Controls | None = None,
) -> Plan:
    """Reads the arms and refuses to compare what does not compare.

    Args:
        arguments: configs, each as FILE or NAME=FILE, and overrides for all of them.
        seeds: of each arm.
        baseline: name of the arm that the others are measured against; None: the first, and with controls the first
            that calls for them, so that it is tested against each of its controls.
        over: options, or groups of them, that the arms may differ in besides COMPARED.
        tune: `lr`, or None.
        grid: learning rates to tune over, separated by commas.
        controls: adds control arms.

    Raises:
        UserError: all that keeps the arms from being compared.
    """
    rates = _grid(tune, grid)
    paths, overrides = split_arguments(arguments)
    arms = [read_arm(path, overrides) for path in paths]
    first = next((arm for arm in arms if controls and controls(arm.config)), arms[0] if arms else None)
    arms = with_controls(arms, controls) if controls else arms
    _check_names([arm.name for arm in arms], baseline)
    assert first
    named = [_option(name) for name in over]
    allowed = [*COMPARED, *named, *([RATE] if rates is not None else [])]
    _check_seeds(arms, seeds, allowed)
    _check_options(arms, allowed)
    warnings = _check_data(arms, allowed)
    used = [*differing(arms), *(["data.path"] if warnings else [])]
    used += ["training.minutes"] if any(arm.config.training.minutes for arm in arms) else []
    idle = [name for name in named if not any(within(key, [name]) for key in used)]
    warnings += [f"--over {name}: the arms do not differ there" for name in idle]
    return Plan(tuple(arms), baseline or first.name, seeds, rates, tuple(warnings))


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Configs (FILE, NAME=FILE.yaml) and overrides (`key=value`, `--key=value`, `--key value`), in any order."""
    configs, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        _, equals, text = argument.partition("=")
        if argument.startswith("--"):
            overrides += [argument] if equals else [argument, *(value for value in [next(rest, None)] if value)]
        elif not equals or text.endswith((".yaml", ".yml")):
            configs.append(argument)
        else:
            overrides.append(argument)
    return configs, overrides


def read_arm(argument: str, overrides: Sequence[str]) -> Arm:
    """The arm that FILE or NAME=FILE stands for."""
    name, equals, path = argument.rpartition("=")
    loaded, _ = load_experiment(path, overrides)
    if equals and not _ARM_NAME.fullmatch(name):
        raise UserError(f"{argument}: {name!r} is no name of an arm: use letters, digits, dot, dash and underscore")
    if loaded.origins["output_dir"] == "command line":
        raise UserError("output_dir: the runs of a comparison lie in its folder: give that by --out instead")
    if loaded.origins["name"] == "command line":
        raise UserError(f"name: would name every arm alike: write {loaded.value.name}=CONFIG to name one")
    return Arm(name or loaded.value.name, loaded.value)


def with_controls(arms: Sequence[Arm], controls: Controls) -> list[Arm]:
    """The arms, and behind them the control arms that they call for: one of each, and none that is there already.

    Raises:
        UserError: no arm calls for any.
    """
    expanded = list(arms)
    for arm in arms:
        for name, config in controls(arm.config).items():
            if all(differences(config, other.config) for other in expanded):
                expanded.append(Arm(f"{arm.name}-{name}", config))
    if all(not controls(arm.config) for arm in arms):
        raise UserError("--controls: belong to a random-data warm-up, and no arm has `random_warmup`: leave it out")
    return expanded


def differing(arms: Sequence[Arm]) -> list[str]:
    """Dotted keys in which any two arms differ, of those that affect results, in the schema's order."""
    first, *others = arms
    found = {key for arm in others for key in differences(first.config, arm.config)}
    return [key for key in dict.fromkeys(key for arm in arms for key in options(arm)) if key in found]


def within(key: str, allowed: Iterable[str]) -> bool:
    """Whether a dotted key is one of those allowed, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def options(arm: Arm) -> dict[str, Any]:
    """Every value of the arm's config by dotted key."""
    return {dotted(keys): value for keys, value in flatten(arm.config).items()}


def _check_names(names: Sequence[str], baseline: str | None) -> None:
    if len(names) < 2:
        raise UserError("a comparison needs at least two arms: give two configs or more")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise UserError(f"two arms are named {doubled}: name one anew, as other={doubled}.yaml")
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no such arm: the arms are {', '.join(names)}")


def _check_seeds(arms: Sequence[Arm], count: int, allowed: Sequence[str]) -> None:
    bases = sorted({arm.config.seed for arm in arms})
    if bases[-1] > LARGEST_SEED - count:
        raise UserError(f"seed {bases[-1]}: leaves no room for {count} seeds: lower it")
    if "seed" in allowed and any(b - a < count for a, b in pairwise(bases)):
        raise UserError(
            f"seed: {', '.join(map(str, bases))} and the {count - 1} after each overlap: independent samples need "
            "seeds of their own, so choose them further apart"
        )


def _check_options(arms: Sequence[Arm], allowed: Sequence[str]) -> None:
    excess = [key for key in differing(arms) if not within(key, allowed)]
    if excess:
        values = "\n".join(f"{key}: {', '.join(f'{_plain(arm, key)} in {arm.name}' for arm in arms)}" for key in excess)
        raise UserError(
            f"{values}\nthe arms differ in more than what is compared: make them equal, or say that this is compared: "
            + " ".join(f"--over {key}" for key in excess)
        )
    if any(arm.config.training.minutes is not None for arm in arms) and not within("training.minutes", allowed):
        raise UserError(
            "training.minutes: runs side by side would not get the same work out of their minutes: give steps, tokens "
            "or flops, or say --over minutes"
        )
    for i, arm in enumerate(arms):
        for other in arms[:i]:
            if not differences(arm.config, other.config) and arm.hashes == other.hashes:
                raise UserError(
                    f"{other.name} and {arm.name} do not differ at all: for an A/A comparison give one a `seed` of its "
                    "own and say --over seed"
                )


def _check_data(arms: Sequence[Arm], allowed: Sequence[str]) -> list[str]:
    """The data's hashes must agree, or what follows from their difference is a warning; each model takes its data."""
    for arm in arms:
        check_vocabulary(arm.config, arm.manifest.tokenizer.vocab_size)
    faults = [what for i, what in enumerate(("data", "tokenizer")) if len({arm.hashes[i] for arm in arms}) > 1]
    if faults and not within("data", allowed):
        paths = ", ".join(f"{arm.config.data.path} in {arm.name}" for arm in arms)
        raise UserError(
            f"data.path: {paths}: the hashes of {' and '.join(faults)} differ: give all arms the same folder, or say "
            "--over data"
        )
    if "tokenizer" in faults:
        return ["the arms' tokenizers differ: losses per token do not compare, only bits per byte do"]
    return ["the arms' data differ: each is evaluated on text of its own"] if faults else []


def _option(name: str) -> str:
    """The dotted key that --over names: a whole one, or any ending that is unique in the schema."""
    keys: Keys = tuple(name.replace("-", "_").split("."))
    found = ending_in(ExperimentSpec, keys)
    if len(found) > 1:
        raise UserError(f"--over {name}: may be {', '.join(map(dotted, found))}: write more of the name")
    if not found:
        known = {dotted(keys): None for group in places(ExperimentSpec) for keys in group}
        endings = {key.rpartition(".")[2]: key for key in reversed(known)}  # of equal endings the schema's first
        near = nearest(name, known) or endings.get(nearest(keys[-1], endings) or "")
        raise UserError(f"--over {name}: no such option" + (f": did you mean {near}?" if near else ""))
    return dotted(found[0])


def _grid(tune: str | None, grid: str | None) -> tuple[float, ...] | None:
    if tune is None:
        if grid is not None:
            raise UserError("--grid: is what --tune lr goes over: add --tune lr, or leave it out")
        return None
    if tune != "lr":
        raise UserError(f"--tune {tune}: can only tune the learning rate: write --tune lr")
    try:
        rates = sorted({float(text) for text in grid.split(",")}) if grid is not None else []
    except ValueError:
        raise UserError(f"--grid {grid}: write learning rates separated by commas, as 3e-4,1e-3,3e-3") from None
    if any(not 0 < rate < float("inf") for rate in rates):
        raise UserError(f"--grid {grid}: learning rates are finite and greater than zero")
    return tuple(rates)


def _plain(arm: Arm, key: str) -> str:
    values = options(arm)
    return json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
