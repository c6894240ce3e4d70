"""The baseline of a race of recipes, in a process of its own: transformers' LLaMA under the recipe of llm-baselines.

AdamW 0.9/0.95, peak rate 1e-3 after a linear warm-up over a twentieth of the time, half a cosine to 1e-4, decay 0.1 of
matrices, clip 1 (github.com/epfml/llm-baselines). The clock starts when eager and compiled steps have been tried and
the faster one is warm, so that nothing but training counts against it.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from shearling.bench.contenders import stepping, transformers_llama
from shearling.bench.process import answer
from shearling.data.shards import open_dataset
from shearling.data.stream import BatchStream, EvaluationSet
from shearling.errors import UserError
from shearling.models.spec import ModelSpec
from shearling.seeding import derive_seed
from shearling.training.device import cxx_compiler, keep_freed_memory

PEAK, FLOOR, WARMUP_SHARE = 1e-3, 0.1, 0.05
TRIED_STEPS = 3


def main() -> None:
    """Train as ordered on the first line of standard input; answer once warm, and after the second line once done."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    keep_freed_memory()
    try:
        run = Run(order)
    except UserError as error:
        return answer(error=str(error))
    answer(ready=True, mode=run.mode)
    sys.stdin.readline()
    answer(**run.train(60 * order["minutes"]))


class Run:
    """A model and the fastest way to step it."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.data = Path(order["data"])
        self.seq_len, self.validation_tokens = order["seq_len"], order["validation_tokens"]
        self.stream = BatchStream(
            open_dataset(self.data, "train"), self.seq_len, order["batch"], derive_seed(order["seed"], "data")
        )
        torch.manual_seed(order["seed"])
        self.model = transformers_llama(ModelSpec.model_validate(order["model"]))
        self.mode = self._pick_mode()

    def _prepare(self, forward: Callable[..., Any]) -> None:
        """A step through `forward`, with a fresh optimizer."""
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), fused=True)
        # The labels are shifted inside: of seq_len + 1 tokens, seq_len are predicted.
        self.step = stepping(self.model, self.optimizer, lambda tokens: forward(input_ids=tokens, labels=tokens).loss)

    def _pick_mode(self) -> str:
        """Try both on the real thing, keep the faster, and put the weights back."""
        initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        ways: dict[str, Callable[..., Any]] = {"eager": self.model}
        if cxx_compiler():
            ways["compiled"] = torch.compile(self.model)
        seconds = {}
        for mode, forward in ways.items():
            self._prepare(forward)
            taken = []
            for number in range(1 + TRIED_STEPS):
                began = time.perf_counter()
                self._step(number, 0.0)
                taken.append(time.perf_counter() - began)
            seconds[mode] = median(taken[1:])
        mode = min(seconds, key=seconds.__getitem__)
        self.model.load_state_dict(initial)
        self._prepare(ways[mode])
        return mode

    def _step(self, number: int, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return self.step(torch.from_numpy(self.stream.batch(number).tokens))

    def train(self, budget: float) -> dict[str, Any]:
        """Train for `budget` seconds, then evaluate; the curve's seconds are since the start."""
        curve: list[tuple[float, float]] = []
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < budget:
            loss = self._step(len(curve), PEAK * _factor(elapsed / budget))
            curve.append((time.perf_counter() - began, loss))
        seconds = time.perf_counter() - began
        tokens = len(curve) * self.stream.sequences * self.seq_len
        return {"seconds": seconds, "tokens": tokens, "curve": curve, **self._evaluate()}

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        held_out = EvaluationSet.take(open_dataset(self.data, "validation"), self.validation_tokens)
        self.model.eval()
        total, count = 0.0, 0
        for batch, n_targets in held_out.batches(self.seq_len, 16, document_ids=False):
            tokens = torch.from_numpy(batch.tokens)
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(input_ids=tokens[:, :-1]).logits
            total += F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()
            count += n_targets
        return {"loss": total / count, "bits_per_byte": total / math.log(2) / held_out.n_bytes}


def _factor(done: float) -> float:
    warm = min(1.0, done / WARMUP_SHARE)
    after = max(0.0, (done - WARMUP_SHARE) / (1 - WARMUP_SHARE))
    return warm * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(after, 1.0))) / 2)


if __name__ == "__main__":
    main()
