"""Training speed and memory of several libraries in one run, round by round, so that noise hits all alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from shearling.bench.contenders import CONTENDERS
from shearling.bench.process import Worker
from shearling.errors import UserError
from shearling.models.cost import training_flops_per_token
from shearling.models.spec import ModelSpec
from shearling.training.device import cxx_compiler, measure_peak


@dataclass(frozen=True)
class Entry:
    """One library in one mode.

    Attributes:
        seconds: of each round.
        peak_bytes: resident memory of its whole process at its highest, libraries and compilation included.
    """

    contender: str
    compiled: bool
    seconds: list[float]
    steps: int
    tokens_per_step: int
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """The median over rounds."""
        return self.steps * self.tokens_per_step / median(self.seconds)


def bench_train(
    spec: ModelSpec,
    against: Sequence[str],
    *,
    batch: int,
    seq_len: int,
    rounds: int,
    steps: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure our training step and those of `against`, each at its best of eager and compiled.

    Every entry has a process of its own; in each round all take `steps` steps, one after the other. Ratios are medians
    of the rounds' ratios.

    Raises:
        UserError: a contender is unknown, not installed or has no such model, or the sequences are too long.
    """
    peers = sorted(CONTENDERS.keys() - {"shearling"})
    unknown = [name for name in against if name not in peers]
    if unknown:
        raise UserError(f"--against {unknown[0]}: no such peer; known are {', '.join(peers)}")
    if seq_len > spec.max_seq_len:
        raise UserError(f"--seq-len {seq_len}: the model's max_seq_len is {spec.max_seq_len}: lower it")
    modes = [False, True] if cxx_compiler() else [False]
    if len(modes) == 1:
        say("no C++ compiler found: eager only")
    peak = measure_peak(torch.device("cpu"), torch.bfloat16, seconds=2.0)
    workers = {}
    try:
        for contender in ("shearling", *dict.fromkeys(against)):
            for compiled in modes:
                say(f"warming up {contender} ({_mode(compiled)})")
                order = {
                    "contender": contender,
                    "compile": compiled,
                    "model": spec.model_dump(),
                    "batch": batch,
                    "seq_len": seq_len,
                    "threads": torch.get_num_threads(),
                }
                workers[contender, compiled] = Worker("shearling.bench.worker", order)
        rows: dict[tuple[str, bool], list[dict[str, float]]] = {key: [] for key in workers}
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for key, worker in workers.items():
                rows[key].append(worker.ask(str(steps)))
    finally:
        for worker in workers.values():
            worker.stop()
    entries = [
        Entry(name, compiled, [a["seconds"] for a in answers], steps, batch * seq_len, int(answers[-1]["peak_bytes"]))
        for (name, compiled), answers in rows.items()
    ]
    return _report(entries, training_flops_per_token(spec, seq_len), peak)


def _report(entries: list[Entry], flops_per_token: int, peak: float) -> dict[str, Any]:
    best: dict[str, Entry] = {}
    for entry in entries:
        if entry.contender not in best or entry.tokens_per_second > best[entry.contender].tokens_per_second:
            best[entry.contender] = entry
    ours = best.pop("shearling")
    return {
        "peak_flops": peak,
        "threads": torch.get_num_threads(),
        "entries": [
            {
                "contender": entry.contender,
                "mode": _mode(entry.compiled),
                "tokens_per_second": entry.tokens_per_second,
                "mfu": entry.tokens_per_second * flops_per_token / peak,
                "peak_bytes": entry.peak_bytes,
            }
            for entry in entries
        ],
        "ratios": {
            name: {
                "speed": median(b / a for a, b in zip(ours.seconds, entry.seconds, strict=True)),
                "memory": ours.peak_bytes / entry.peak_bytes,
            }
            for name, entry in best.items()
        },
    }


def _mode(compiled: bool) -> str:
    return "compiled" if compiled else "eager"
