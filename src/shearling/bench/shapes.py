"""Models by name, for benchmarks."""

from pathlib import Path

from shearling.config import load
from shearling.errors import UserError
from shearling.models.spec import ModelFile, ModelSpec

SHAPES = Path("configs/models")


def load_shape(name: str) -> ModelSpec:
    """The model in the file `name`, or in `configs/models/` under that name: `llama-71m`, or `71M` for short.

    Raises:
        UserError: there is no such file.
    """
    short = name.lower()
    for path in (Path(name), SHAPES / f"{short}.yaml", SHAPES / f"llama-{short}.yaml"):
        if path.is_file():
            return load(ModelFile, path).value.model
    known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.yaml")))
    names = f"no such name; known are {known}" if known else f"no {SHAPES}/ here whose names could be given"
    raise UserError(
        f"--model {name}: no such file, and {names}: give a YAML file with `model:`; `bench decode` takes a model's "
        "file or folder too"
    )
