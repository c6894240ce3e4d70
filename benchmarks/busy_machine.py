"""What another program on one core costs, with OpenMP's threads spinning while they wait and with them sleeping.

    python benchmarks/busy_machine.py

Trains a small model for some steps in a process of its own, with and without a busy loop beside it.
"""

import os
import subprocess
import sys

STEPS = """
import time, torch
from shearling.bench.contenders import CONTENDERS
from shearling.models.spec import ModelSpec
spec = ModelSpec(d_model=128, n_heads=4, intermediate_size=352, vocab_size=4096)
step, tokens, times = CONTENDERS["shearling"](spec, False), torch.randint(4096, (16, 257)), []
for _ in range(14):
    began = time.perf_counter()
    step(tokens)
    times.append(time.perf_counter() - began)
print(f"{4096 / sorted(times[2:])[6]:,.0f}")
"""


def tokens_per_second(policy: str) -> str:
    """The median of a fresh process under an OMP_WAIT_POLICY, in tokens per second."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    return subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    """Print tokens per second for each policy, alone and beside a busy loop."""
    for policy in ("active", "passive"):
        alone = tokens_per_second(policy)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            print(f"OMP_WAIT_POLICY={policy:<8} alone {alone:>8} tokens/s, busy {tokens_per_second(policy):>8}")
        finally:
            busy.kill()


if __name__ == "__main__":
    main()
