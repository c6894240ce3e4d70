"""A GGUF file's metadata, each value of the type that its key must have."""

import math
from collections.abc import Mapping

import numpy as np

from shearling.errors import UserError
from shearling.formats.gguf.container import Value

MEND = "convert the model anew with llama.cpp"


class Metadata:
    """Metadata that is asked for by key.

    Args:
        values: by key.
        origin: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Value], origin: str) -> None:
        self.values = values
        self.origin = origin

    def wrong(self, key: str, what: str) -> UserError:
        """What is said of a value that cannot be right."""
        return UserError(f"{self.origin}: {key}: {what}: {MEND}")

    def inexpressible(self, key: str, why: str) -> UserError:
        """What is said of a value that means something else than our models can do."""
        value = self.values[key]
        shown = str(value[:8].tolist()) if isinstance(value, np.ndarray) else repr(value)
        return UserError(f"{self.origin}: {key}: {shown:.60} cannot be expressed here: {why}")

    def number(self, key: str, default: float | None = None) -> float:
        """A number; of an array, which gives each layer its own, the one that all layers share.

        Raises:
            UserError: it is missing and has no default, is no finite number, or differs between layers.
        """
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray):
            if not value.size or (value != value[0]).any():
                raise self.inexpressible(key, "all layers are alike")
            value = value[0].item()
        if value is None:
            raise self.wrong(key, "missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "should be a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            UserError: it is something else.
        """
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "should be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string.

        Raises:
            UserError: it is missing and has no default, or is something else.
        """
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "missing" if value is None else "should be a string")
        return value

    def token(self, key: str, vocab_size: int) -> int | None:
        """A token's id; None where the file gives none, or one beyond its vocabulary, which llama.cpp ignores too.

        Raises:
            UserError: it is no whole number.
        """
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise self.wrong(key, "should be a token's id")
        return value if value is not None and 0 <= value < vocab_size else None
