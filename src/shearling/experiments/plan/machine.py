"""How fast this machine trains: measured at a few widths and two depths, in between by interpolation."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from shearling.data.stream import Batch
from shearling.models.spec import ModelSpec
from shearling.training.device import keep_freed_memory, pick_compile, pick_device
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state
from shearling.training.step import train_step

CPU_WIDTHS, GPU_WIDTHS = (128, 256, 512), (256, 512, 1024)
DEPTHS = (2, 4)
TIMED_STEPS = 4

START_SECONDS = 8.0
"""Imports, reading and verifying the data, evaluating and saving at both ends, on a usual machine."""


@dataclass(frozen=True)
class Speed:
    """Seconds of one update of `tokens_per_update` tokens, by width: of what does not repeat, and of each layer.

    Attributes:
        widths: measured, ascending.
        base, layer: seconds at those widths.
        tokens_per_update: of the measured updates.
        start: seconds that a run loses before its first step and at its end: imports, compilation, two evaluations.
    """

    widths: tuple[int, ...]
    base: tuple[float, ...]
    layer: tuple[float, ...]
    tokens_per_update: int
    start: float

    def tokens_per_second(self, d_model: int, n_layers: int) -> float:
        """Between and beyond the measured widths, seconds are powers of the width."""
        seconds = self._at(self.base, d_model) + n_layers * self._at(self.layer, d_model)
        return self.tokens_per_update / seconds

    def _at(self, seconds: tuple[float, ...], d_model: int) -> float:
        x, y, at = np.log(self.widths), np.log(seconds), np.log(d_model)
        i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
        slope = max(0.0, (y[i + 1] - y[i]) / (x[i + 1] - x[i]))
        return float(np.exp(y[i] + slope * (at - x[i])))


def measure_speed(make: Callable[[int, int], ExperimentSpec], device_name: str, say: Callable[[str], None]) -> Speed:
    """Train a few steps on random tokens at each width and depth, as a long run would.

    Args:
        make: an experiment of a width and depth.
    """
    device = pick_device(device_name)
    keep_freed_memory()
    compiled, _ = pick_compile("auto", device, long=True)
    widths = CPU_WIDTHS if device.type == "cpu" else GPU_WIDTHS
    base, layer, warm = [], [], 0.0
    tokens = 0
    for d_model in widths:
        seconds = {}
        for depth in DEPTHS:
            config = make(d_model, depth)
            say(f"measuring width {d_model}, {depth} layers")
            seconds[depth], first = _time_steps(config, device, compiled)
            warm = max(warm, first)
            tokens = config.training.tokens_per_update
        per_layer = max(1e-9, (seconds[DEPTHS[1]] - seconds[DEPTHS[0]]) / (DEPTHS[1] - DEPTHS[0]))
        layer.append(per_layer)
        base.append(max(1e-9, seconds[DEPTHS[0]] - DEPTHS[0] * per_layer))
    return Speed(widths, tuple(base), tuple(layer), tokens, START_SECONDS + warm)


def _time_steps(config: ExperimentSpec, device: torch.device, compiled: bool) -> tuple[float, float]:
    """Median seconds of a step, and what the first took beyond that."""
    state = build_state(config, device, compiled)
    model: ModelSpec = config.model
    sequences = config.training.tokens_per_update // config.data.seq_len
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (sequences, config.data.seq_len + 1), generator=generator).numpy()
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        began = time.perf_counter()
        train_step(state, Batch(tokens), config, 0.0)  # its figures come to the host, which waits for the device
        seconds.append(time.perf_counter() - began)
    usual = median(seconds[1:])
    return usual, max(0.0, seconds[0] - usual)
