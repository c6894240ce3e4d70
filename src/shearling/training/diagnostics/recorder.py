"""Measures a run where that is due and writes diagnostics.jsonl, leaving the training as it was."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from shearling.data.stream import EvaluationSet
from shearling.models.transformer import Transformer
from shearling.training.diagnostics.probe import Probe, layer_weights
from shearling.training.diagnostics.registry import DIAGNOSTICS, Value
from shearling.training.diagnostics.spec import Name
from shearling.training.examples import Examples, make_examples
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import TrainState

_NEED_WEIGHTS = {"update_norm", "relative_update_norm"}
_NEED_HISTORY = {"loss_spike_score", "gradient_norm_spike_score"}


class Recorder:
    """Measures what `training.diagnostics` names and adds a line to diagnostics.jsonl.

    Each line holds `step`, `tokens`, and for each name one number or a list with one a layer, what is not finite as
    null. The batch is the first `sequences` windows of the evaluation set: the same at every measurement.
    """

    def __init__(self, config: ExperimentSpec, run: RunFolder, held_out: EvaluationSet) -> None:
        self._spec = config.training.diagnostics
        self._run = run
        batch, _ = next(held_out.batches(config.data.seq_len, self._spec.sequences, config.data.mask_documents))
        self._examples = make_examples(config.training.objective, batch, config.model.vocab_size, "diagnostics")
        self._before: list[list[torch.Tensor]] | None = None
        lines = run.read_diagnostics()
        self._last = lines[-1]["step"] if lines else -1

    def record(self, state: TrainState, finished: bool) -> None:
        """Measure the state between two steps, if that is due and not done yet. To be called between any two steps.

        Weights, optimizer, gradients, random state and the model's mode stay as they are.

        Args:
            finished: whether the last step has been taken: it is measured whatever its number.
        """
        if self._spec.every is None:
            return
        step = state.progress.step
        if step > self._last and (finished or self._due(step)):
            figures = measure(
                state.model,
                self._examples,
                self._spec.measured,
                self._before,
                () if _NEED_HISTORY.isdisjoint(self._spec.measured) else self._run.read_metrics(),
                step,
            )
            line = {"step": step, "tokens": state.progress.tokens, **figures}
            with self._run.diagnostics.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            self._last = step
        keep = self._due(step + 1) and not _NEED_WEIGHTS.isdisjoint(self._spec.measured)
        self._before = [[w.clone() for w in layer] for layer in layer_weights(state.model)] if keep else None

    def _due(self, step: int) -> bool:
        return self._spec.every is not None and step % self._spec.every == 0


def measure(
    model: Transformer,
    examples: Examples,
    names: Sequence[Name],
    before: Sequence[Sequence[torch.Tensor]] | None = None,
    history: Sequence[dict[str, Any]] = (),
    step: float = math.inf,
) -> dict[str, float | list[float | None] | None]:
    """The named diagnostics of `model`, taken eagerly, without dropout and in its dtype; None for what is not finite.

    Weights, gradients, the model's mode and the random state stay as they are.

    Args:
        before, history: see `Probe`.
        step: training steps taken, for what changes with them (`Transformer.step`).
    """
    device, was = model.embed.weight.device, (model.training, model.step)
    model.eval()
    model.step = step
    try:
        # Compiled blocks would pass a probe's hooks by.
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.compiler.set_stance("force_eager"),
        ):
            probe = Probe(model, examples, before=before, history=history)
            return {name: _plain(DIAGNOSTICS[name](probe)) for name in names}
    finally:
        model.train(was[0])
        model.step = was[1]


def _plain(value: Value) -> float | list[float | None] | None:
    """`value` as JSON can hold it."""
    if isinstance(value, list):
        return [each if math.isfinite(each) else None for each in value]
    return value if math.isfinite(value) else None
