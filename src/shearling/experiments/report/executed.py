"""What the runs of an arm executed: as they recorded it, or, where an old run did not, worked out today."""

from collections.abc import Sequence
from dataclasses import dataclass

from shearling.errors import UserError
from shearling.experiments.equations import model_equations
from shearling.experiments.report.data import Arm, Run
from shearling.models.custom import custom_code_hash


@dataclass(frozen=True)
class Executed:
    """Equations.

    Attributes:
        text: in full; empty where nobody knows them.
        note: of which runs they are where not of all, and where they are from if no run recorded them.
    """

    text: str
    note: str = ""


def executed(arm: Arm) -> list[Executed]:
    """What an arm's runs executed: one entry, unless they recorded different equations."""
    by_text: dict[str, list[str]] = {}
    for run in arm.runs:
        if run.equations is not None:
            by_text.setdefault(run.equations.rstrip("\n"), []).append(run.folder.name)
    if not by_text:
        return [_today(arm.runs)] if arm.runs else []
    silent = [run.folder.name for run in arm.runs if run.equations is None]
    rest = f"{_and(silent)}: not recorded" if silent else ""
    if len(by_text) == 1:
        return [Executed(text, rest) for text in by_text]
    entries = [Executed(text, f"{_and(names)}; the runs of this arm disagree") for text, names in by_text.items()]
    return [*entries, Executed("", rest)] if rest else entries


def _today(runs: Sequence[Run]) -> Executed:
    """What today's code makes of the runs' config, if the user's own part of the code is what it was."""
    try:
        spec = next((run for run in runs if run.begun), runs[0]).spec().model
        now = custom_code_hash(spec)
        if any(run.provenance.get("hashes", {}).get("code", "") != now for run in runs):
            return Executed("", "not recorded, and the code of the model's own norm or placement is another today")
        return Executed(model_equations(spec, whole=True), "not recorded by the runs: worked out by today's code")
    except UserError as error:
        return Executed("", f"not recorded: {error}")
    except Exception as error:  # whatever a user's file raises when it is imported; the rest of the page does without
        return Executed("", f"not recorded: {type(error).__name__}: {error}")


def _and(names: Sequence[str]) -> str:
    return ", ".join(names)
