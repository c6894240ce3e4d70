"""One contender in a process of its own: `python -m shearling.bench.worker`, driven line by line on standard input.

Reads a JSON line that says what to build, and answers {"ready": …} once warm, or {"error": …}; then for each line `N`
trains N steps and answers {"seconds": …, "loss": …, "peak_bytes": …}.
"""

import json
import sys
import time
from typing import Any

import torch

from shearling.bench.contenders import CONTENDERS
from shearling.bench.process import answer, peak_bytes
from shearling.errors import UserError
from shearling.models.spec import ModelSpec

WARMUP_STEPS = 2


def main() -> None:
    """Serve until standard input ends."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    spec = ModelSpec.model_validate(order["model"])
    try:
        step = CONTENDERS[order["contender"]](spec, order["compile"])
    except UserError as error:
        return answer(error=str(error))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(spec.vocab_size, (order["batch"], order["seq_len"] + 1), generator=generator)
    began = time.perf_counter()
    for _ in range(WARMUP_STEPS):
        step(tokens)
    answer(ready=time.perf_counter() - began)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = step(tokens)
        seconds = time.perf_counter() - began
        answer(seconds=seconds, loss=loss, peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
