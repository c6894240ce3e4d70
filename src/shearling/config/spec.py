"""What every schema is made of."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from shearling.errors import UserError


def at_home(path: Path) -> Path:
    """The path with a leading `~` replaced: the shell does not see it in `output_dir=~/runs` or `--out=~/x`.

    Raises:
        UserError: `~nobody` has no home.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such home folder") from error


UserPath = Annotated[Path, AfterValidator(at_home)]
"""A path in which a leading `~` is the user's home: the shell does not see it in `output_dir=~/runs`."""

HARMLESS: dict[str, Any] = {"affects_results": False}
"""`Field(..., json_schema_extra=HARMLESS)`: no result depends on this option, so no fingerprint does."""


class Spec(BaseModel):
    """A frozen map of options that refuses keys it does not know.

    A field whose annotation is `Annotated[A | B | …, CHOICE]`, with a literal `kind` in each, is a choice of kinds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys of which one layer may give at most one; a later layer's replaces an earlier one's."""


class CustomSpec(Spec):
    """A part that a user wrote: `kind: my_module:MyClass`, and beside it whatever options that class takes."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module and class, as my_module:MyClass")

    @property
    def options(self) -> dict[str, Any]:
        """What the class is made with, besides what every one of its sort is."""
        return dict(self.model_extra or {})


CUSTOM = "my_module:MyClass"
"""How complaints and schemas name a kind that a user wrote."""


def kinds(spec: type[Spec]) -> tuple[Any, ...]:
    """The kinds that a spec answers to: its literal `kind`, CUSTOM for a user's own, or none."""
    if issubclass(spec, CustomSpec):
        return (CUSTOM,)
    field = spec.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def tag(kind: Any) -> Any:
    """The kind, or CUSTOM where it names a user's own class."""
    return CUSTOM if isinstance(kind, str) and ":" in kind else kind


class Choice:
    """Makes a union of specs one that is chosen from by `kind`.

    Args:
        usual: the kind of a map that names none; None: one must be named.
    """

    def __init__(self, usual: str | None = None) -> None:
        self.usual = usual

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(spec) for spec in get_args(union) for kind in kinds(spec)}
        return core_schema.tagged_union_schema(choices, discriminator=self._tag_of)

    def _tag_of(self, value: Any) -> Any:
        return tag(value.get("kind", self.usual) if isinstance(value, dict) else getattr(value, "kind", None))


CHOICE = Choice()
