"""Peak memory of `prepare` over a large input, its tokenizer's training included.

    python benchmarks/prepare_memory.py [--bytes 1e9] [--tokenizer FILE] TEXT...

Repeats the texts into one file of the asked size in a temporary folder, runs `prepare` on it in a process of its own,
and samples the memory that the process and its children hold alone (PSS: shared pages divided among their users).
Prints one line of JSON.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

CALL = """
import sys
from pathlib import Path
from shearling.data.prepare import prepare

source, out, tokenizer = sys.argv[1:]
prepare([source], Path(out), tokenizer=Path(tokenizer) if tokenizer else None)
"""


def memory(process: psutil.Process) -> int:
    """Bytes that a process and its children hold, shared pages in proportion."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has ended since it was listed
            continue
    return total


def fill(path: Path, texts: list[Path], size: int) -> None:
    """Repeat the texts into a file of at least `size` bytes."""
    with path.open("wb") as file:
        while file.tell() < size:
            for text in texts:
                with text.open("rb") as source:
                    shutil.copyfileobj(source, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("texts", nargs="+", type=Path, help=".txt files whose documents end with <|endoftext|>")
    parser.add_argument("--bytes", type=float, default=1e9, help="size of the input")
    parser.add_argument("--tokenizer", default="", help="file or folder; else one is trained")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.txt"
        fill(source, arguments.texts, int(arguments.bytes))
        size = source.stat().st_size
        start = time.monotonic()
        command = [sys.executable, "-c", CALL, str(source), str(Path(folder) / "data"), arguments.tokenizer]
        with subprocess.Popen(command) as process:
            watched, peak = psutil.Process(process.pid), 0
            while process.poll() is None:
                try:
                    peak = max(peak, memory(watched))
                except psutil.Error:  # it has just ended
                    break
                time.sleep(0.1)
        if process.returncode:
            sys.exit(f"prepare ended with status {process.returncode}")
        elapsed = time.monotonic() - start
    print(
        json.dumps(
            {
                "input_mb": round(size / 1e6, 1),
                "peak_mb": round(peak / 1e6, 1),
                "seconds": round(elapsed, 1),
                "mb_per_s": round(size / 1e6 / elapsed, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
