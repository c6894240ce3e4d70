"""What every schema is made of."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # `~nobody`
        raise ValueError(f"{path}: no such home folder") from error


UserPath = Annotated[Path, AfterValidator(_at_home)]
"""A path in which a leading `~` is the user's home: the shell does not see it in `output_dir=~/runs`."""

HARMLESS: dict[str, Any] = {"affects_results": False}
"""`Field(..., json_schema_extra=HARMLESS)`: no result depends on this option, so no fingerprint does."""


class Spec(BaseModel):
    """A frozen map of options that refuses keys it does not know.

    A field whose annotation is a union of specs with a literal `kind` each is a choice of kinds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys of which one layer may give at most one; a later layer's replaces an earlier one's."""
