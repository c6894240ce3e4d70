"""Shearling: grow, compare, shear and ship small LLaMA-style language models.

`shearling.load(path)` opens a model of any format that is known here, and gives a `Model` to work with.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]

_PLACES = {"load": ("shearling.experiments.sample", "open_model"), "Model": ("shearling.engine.api", "Model")}
"""What is imported when it is first asked for, since most commands do without."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
