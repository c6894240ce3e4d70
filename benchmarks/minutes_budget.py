"""A run of five minutes on a machine that does other things: when it ends, and at what rate.

`python benchmarks/minutes_budget.py CONFIG DATA [MINUTES]` trains twice, alone and beside a program that comes and goes
on one core, and prints the wall-clock time of each and its last learning rate as a share of the peak.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shearling.training.run_folder import RunFolder

BUSY = """
import time
while True:
    end = time.perf_counter() + 20
    while time.perf_counter() < end:
        pass
    time.sleep(20)
"""


def main() -> None:
    config, data, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    with tempfile.TemporaryDirectory() as folder:
        for name, command in (("alone", None), ("beside another program", [sys.executable, "-c", BUSY])):
            other = subprocess.Popen(command) if command else None
            try:
                run = RunFolder(Path(folder) / name.replace(" ", "_"))
                began = time.perf_counter()
                overrides = [f"data.path={data}", f"training.minutes={minutes}", f"output_dir={run.path}"]
                subprocess.run(
                    [sys.executable, "-m", "shearling", "train", config, *overrides], check=True, capture_output=True
                )
                seconds = time.perf_counter() - began
            finally:
                if other:
                    other.kill()
                    other.wait()
            rates = [line["learning_rate"] for line in run.read_metrics() if "learning_rate" in line]
            print(
                f"{name}: {seconds:.1f} s, {seconds / 60 / minutes - 1:+.2%} of the budget; {len(rates):,} steps; "
                f"last rate {rates[-1] / max(rates):.2%} of the peak",
                flush=True,
            )


if __name__ == "__main__":
    main()
