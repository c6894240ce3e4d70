"""Classes that users write in files of their own and name in a config as `my_module:MyClass`."""

import hashlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from shearling.config import CustomSpec
from shearling.errors import UserError
from shearling.models.spec import ModelSpec

T = TypeVar("T")

NOT_THE_USERS = ("builtins", "torch", "shearling")


def load_class(name: str, parent: type[T], key: str) -> type[T]:
    """The class that `name` (`my_module:MyClass`) stands for, from the working directory or wherever Python finds it.

    Args:
        parent: what it must be a subclass of.
        key: the option that names it, for messages.

    Raises:
        UserError: the module or the class is not there, or is no `parent`.
    """
    module_name, _, class_name = name.partition(":")
    found = getattr(_module(module_name, key), class_name, None)
    if not (isinstance(found, type) and issubclass(found, parent)):
        what = "is not there" if found is None else f"is no {parent.__module__}.{parent.__name__}"
        raise UserError(f"{key}.kind: {name}: {class_name} {what}: check the name of the class in {module_name}")
    return found


def construct(made: type[T], key: str, /, *arguments: Any, **options: Any) -> T:
    """An instance of a user's class.

    Raises:
        UserError: it does not take these options.
    """
    try:
        inspect.signature(made).bind(*arguments, **options)
    except TypeError as error:
        raise UserError(f"{key}: {made.__name__}: {error}: it takes {inspect.signature(made)}") from None
    return made(*arguments, **options)


def custom_parts(spec: ModelSpec) -> dict[str, CustomSpec]:
    """The parts of a model that are the user's own, by the option that names them."""
    parts = {"model.norm": spec.norm, "model.placement": spec.placement}
    return {key: part for key, part in parts.items() if isinstance(part, CustomSpec)}


def custom_code_hash(spec: ModelSpec) -> str:
    """SHA-256, in hexadecimal, of the files of a user's own norm and placement and of the classes that they extend.

    Neither this package's files nor PyTorch's are among them; empty where nothing is the user's own.
    """
    classes = [load_class(part.kind, nn.Module, key) for key, part in custom_parts(spec).items()]
    own = {made for found in classes for made in found.__mro__ if made.__module__.split(".")[0] not in NOT_THE_USERS}
    files = sorted({inspect.getfile(made) for made in own})
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest() if files else ""


def _module(name: str, key: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look where the user stands
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(f"{key}.kind: {name} is no Python: {error.filename}:{error.lineno}: {error.msg}") from None
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{key}.kind: no module {name}: run the command where {name.replace('.', '/')}.py lies, or install it"
        ) from None
