"""What every schema is made of."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

HARMLESS: dict[str, Any] = {"affects_results": False}
"""`Field(..., json_schema_extra=HARMLESS)`: no result depends on this option, so no fingerprint does."""


class Spec(BaseModel):
    """A frozen map of options that refuses keys it does not know.

    A field whose annotation is a union of specs with a literal `kind` each is a choice of kinds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys of which one layer may give at most one; a later layer's replaces an earlier one's."""
