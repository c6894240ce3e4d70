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
    known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.yaml"))) or f"none, as there is no {SHAPES}/ here"
    raise UserError(f"--model {name}: no such file, and no such name; known are {known}")
