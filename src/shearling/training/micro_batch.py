"""How many sequences pass through the model at once: what a short measurement finds fastest."""

import time

import numpy as np
import torch

from shearling.data.stream import Batch
from shearling.seeding import derive_seed
from shearling.training.examples import make_examples
from shearling.training.loss import head_loss
from shearling.training.spec import ExperimentSpec
from shearling.training.state import TrainState

LARGEST = 64
GAIN = 0.02
"""Share of the time that twice the sequences must save to be worth twice the memory."""

LONGEST = 5.0
"""Seconds of one pass beyond which nothing larger is tried."""


def choose_micro_batch(state: TrainState, config: ExperimentSpec) -> int:
    """Powers of two, from one sequence on, as long as doubling makes a sequence's forward and backward pass faster.

    Measured without compilation, which would take longer for each size than it could save. Weights, moments and the
    buffers of a user's norm stay as they are.
    """
    most = min(LARGEST, config.training.tokens_per_update // config.data.seq_len)
    buffers = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
    best, fastest, size = 1, float("inf"), 1
    state.model.train()
    with torch.compiler.set_stance("force_eager"):
        while size <= most:
            try:
                seconds = min(_pass(state, config, size) for _ in range(2))
            except torch.OutOfMemoryError:
                break
            finally:
                state.optimizer.zero_grad()
            if seconds / size < fastest * (1 - GAIN):
                best, fastest = size, seconds / size
            if seconds > LONGEST:
                break
            size *= 2
    with torch.no_grad():
        for name, buffer in state.model.named_buffers():
            buffer.copy_(buffers[name])
    return best


def _pass(state: TrainState, config: ExperimentSpec, sequences: int) -> float:
    """Seconds of one forward and backward pass on random tokens."""
    model, device = state.model, state.device
    draw = np.random.default_rng(derive_seed(config.seed, "micro_batch"))
    batch = Batch(draw.integers(0, config.model.vocab_size, (sequences, config.data.seq_len + 1)))
    examples = make_examples(config.training.objective, batch, config.model.vocab_size, config.seed, "micro_batch")
    began = time.perf_counter()
    hidden, targets = examples.states_and_targets(model, device)
    loss = head_loss(hidden, model.lm_head, targets)
    loss.backward()
    loss.item()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
