"""What changes while a model trains, and its way into a checkpoint and back."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from shearling.errors import UserError
from shearling.models.transformer import Transformer
from shearling.training.checkpoints import Checkpoint
from shearling.training.device import DTYPES
from shearling.training.optimizers import Updates, build_optimizer
from shearling.training.resolve import FIRST_MICRO_BATCH
from shearling.training.spec import ExperimentSpec, TrainingSpec


@dataclass
class Evaluation:
    """Figures of one evaluation: token-mean loss in nats, and what follows from it."""

    step: int
    loss: float
    perplexity: float
    bits_per_byte: float


@dataclass
class Warmed:
    """What a random-data warm-up has come to.

    Attributes:
        steps: optimizer steps taken, skipped ones included.
        seconds: of the run's, spent on it.
        first_loss, last_loss: of its first and last step that was not skipped, in nats.
    """

    steps: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None


@dataclass
class Progress:
    """How far a run has come; all of it goes into `state.json`.

    Attributes:
        step: optimizer steps taken, skipped ones included. With the seed it determines data order and dropout. Those
            of a random-data warm-up do not count.
        tokens: tokens trained on.
        seconds: wall-clock time spent so far, evaluation and checkpoints included.
        skipped: steps skipped because the loss or gradient was not finite; `skipped_in_a_row` of them just now.
        micro_batch: sequences per forward pass, where they are measured; whoever resumes the run takes them over.
        closing_seconds: the longest that evaluating and saving has taken: what a minutes budget keeps back for its end.
        cooling_since: the step before the first of the schedule's cool-down: what an extension goes on from.
        first, last, best: evaluations.
        warmed: the random-data warm-up before step 0.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    micro_batch: int | None = None
    closing_seconds: float = 0.0
    cooling_since: int | None = None
    first: Evaluation | None = None
    last: Evaluation | None = None
    best: Evaluation | None = None
    warmed: Warmed = field(default_factory=Warmed)

    def count_skips(self, finite: bool) -> None:
        """Count a step as skipped, if its loss or gradient was not finite."""
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

    def note(self, evaluation: Evaluation) -> bool:
        """Record an evaluation; whether it is the best so far."""
        self.first = self.first or evaluation
        self.last = evaluation
        if self.best is None or math.isnan(self.best.loss) or evaluation.loss < self.best.loss:
            self.best = evaluation
            return True
        return False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Progress":
        """The inverse of `dataclasses.asdict`."""
        evaluations = {key: value[key] and Evaluation(**value[key]) for key in ("first", "last", "best")}
        return cls(**{**value, **evaluations, "warmed": Warmed(**value["warmed"])})


@dataclass
class TrainState:
    """A model, its optimizer, and how far they have come."""

    model: Transformer
    optimizer: Updates
    progress: Progress = field(default_factory=Progress)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    def micro_batch(self, training: TrainingSpec) -> int:
        """Sequences per forward pass."""
        return (
            training.micro_batch if training.micro_batch != "auto" else self.progress.micro_batch or FIRST_MICRO_BATCH
        )


def build_state(config: ExperimentSpec, device: torch.device, compile_blocks: bool) -> TrainState:
    """A fresh model and optimizer on `device`, at step 0."""
    model = Transformer(config.model, config.seed).to(device)
    model.dtype = DTYPES[config.training.precision]
    model.checkpoint_activations = config.training.checkpoint_activations
    if compile_blocks:
        # Blocks that differ in a constant are compiled apart; beyond the limit they would silently run eagerly.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * len(model.layers) + 8)
        for layer in model.layers:
            layer.compile(dynamic=False)
    return TrainState(model, build_optimizer(model, config.training.optimizer))


def to_checkpoint(state: TrainState, extra: dict[str, Any]) -> Checkpoint:
    """A view of the state for saving, within `state.optimizer.averaged()`; `extra` is kept with the progress."""
    weights = {name: tensor.detach() for name, tensor in model_tensors(state.model).items()}
    return Checkpoint(weights, state.optimizer.tensors(), {"progress": asdict(state.progress), **extra})


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights, optimizer state and progress into `state`."""
    load_weights(state.model, checkpoint.weights)
    state.optimizer.load(checkpoint.optimizer)
    state.progress = Progress.from_json(checkpoint.state["progress"])


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """What a model is made of, by name, each once: parameters, and the buffers that a user's norm may keep."""
    kept = model.state_dict().keys()
    return {**dict(model.named_parameters()), **{name: b for name, b in model.named_buffers() if name in kept}}


def load_weights(model: Transformer, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights` into the model.

    Raises:
        UserError: a name or shape is not the model's.
    """
    tensors = model_tensors(model)
    wrong = sorted(tensors.keys() ^ weights.keys()) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != weights[name].shape
    )
    if wrong:
        raise UserError(f"the checkpoint's weights are not this model's: {', '.join(wrong[:3])} differ: check `model`")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights[name])
