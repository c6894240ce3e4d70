"""Peak memory of `convert` on a large model.

    python benchmarks/convert_memory.py [--model sheared-1.3b] [--source-dtype bf16] [--suffix .gguf] [CONVERT OPTIONS]

Makes a model of random weights of that shape (a file of configs/models/) as a run folder in a temporary folder, which
takes 2.7 GB for 1.3 billion weights in bf16, converts it in a process of its own with whatever other options are given
(`--quantize q8_0`, `--dtype bf16`), and samples the memory that the process holds: all of it, which counts the pages
of mapped files that the system would take back, and its own (anonymous). Prints one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from shearling.config import load
from shearling.formats import Checkpoint, StoredTensor
from shearling.formats.run_folder import write_run_folder
from shearling.formats.specification import expected_shapes
from shearling.models.spec import ModelFile, ModelSpec
from shearling.quantization import CODECS


class Random(Mapping[str, StoredTensor]):
    """The tensors of a model, drawn when they are asked for, each time the same."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = expected_shapes(spec)

    def __getitem__(self, name: str) -> StoredTensor:
        shape = self._shapes[name]
        draw = np.random.default_rng(list(name.encode()))
        numbers = draw.standard_normal(shape, np.float32) * np.float32(0.02)
        return StoredTensor.of(numbers if len(shape) > 1 else numbers + 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def held(process: int) -> tuple[int, int]:
    """Bytes in memory of a process: all, and its own."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return tuple(1024 * int(lines[key].split()[0]) if key in lines else 0 for key in ("VmRSS", "RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="sheared-1.3b", help="a file of configs/models/")
    parser.add_argument("--source-dtype", choices=("f32", "f16", "bf16"), default="bf16")
    parser.add_argument("--suffix", default=".gguf", help="of what is written; none: a Hugging Face folder")
    arguments, options = parser.parse_known_args()
    models = Path(__file__).resolve().parents[1] / "configs" / "models"
    spec = load(ModelFile, models / f"{arguments.model}.yaml").value.model
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder) / "source", Path(folder) / f"result{arguments.suffix}"
        checkpoint = Checkpoint(spec, Random(spec), "halves", arguments.model)
        write_run_folder(source, checkpoint, codec=CODECS[arguments.source_dtype], progress=lambda _: None)
        start, peak, own = time.monotonic(), 0, 0
        command = [sys.executable, "-m", "shearling", "convert", str(source), str(dest), *options]
        with subprocess.Popen(command, stdout=sys.stderr) as process:
            while process.poll() is None:
                total, anonymous = held(process.pid)
                peak, own = max(peak, total), max(own, anonymous)
                time.sleep(0.05)
        elapsed = time.monotonic() - start
        if process.returncode:
            sys.exit(f"convert ended with status {process.returncode}")
        files = dest.rglob("*") if dest.is_dir() else [dest]
        written = sum(file.stat().st_size for file in files if file.is_file())
    print(
        json.dumps(
            {
                "model": arguments.model,
                "source": arguments.source_dtype,
                "options": options,
                "result_mb": round(written / 1e6, 1),
                "peak_mb": round(peak / 1e6, 1),
                "own_mb": round(own / 1e6, 1),
                "seconds": round(elapsed, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
