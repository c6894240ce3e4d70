"""The options of a training run, and the experiment that nests model, data and training. Imports no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shearling.config import CHOICE, HARMLESS, Spec, UserPath
from shearling.data.spec import DataSpec
from shearling.models.spec import ModelSpec
from shearling.training.diagnostics.spec import DiagnosticsSpec
from shearling.training.optimizer_spec import AdamWSpec, AnyOptimizerSpec
from shearling.training.schedule_spec import AnyScheduleSpec, CosineSpec
from shearling.training.warmup_spec import DyckSpec, RandomWarmupSpec


class NextTokenSpec(Spec):
    """Each position predicts the token after it."""

    kind: Literal["next_token"] = "next_token"


class MaskedTokenSpec(Spec):
    """Some positions are masked and predict their token: BERT's objective (arXiv 1810.04805)."""

    kind: Literal["masked_token"] = "masked_token"
    share: float = Field(0.15, gt=0, le=1, description="of the positions that are masked")
    mask_id: int | None = Field(
        None, ge=0, description="token that stands for a masked one; default the model's last, vocab_size − 1"
    )


ObjectiveSpec = Annotated[NextTokenSpec | MaskedTokenSpec, CHOICE]


class TrainingSpec(Spec):
    """How a model is trained. Exactly one of steps, tokens, flops and minutes ends the run."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "tokens", "flops", "minutes"),)

    steps: int | None = Field(None, gt=0, description="horizon: optimizer steps")
    tokens: float | None = Field(None, gt=0, description="horizon: training tokens")
    flops: float | None = Field(None, gt=0, description="horizon: training FLOPs")
    minutes: float | None = Field(None, gt=0, description="horizon: wall-clock minutes, evaluation included")
    tokens_per_update: int = Field(65_536, gt=0, description="tokens that one optimizer step averages over")
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        16,
        description="sequences per forward pass; the rest is accumulated; auto: what a short measurement finds fastest",
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="arithmetic of the branches; masters stay fp32")
    clip: float | None = Field(1.0, gt=0, description="largest global norm of the gradient; null: none")
    objective: ObjectiveSpec = Field(default_factory=NextTokenSpec, description="what is predicted")
    optimizer: AnyOptimizerSpec = Field(default_factory=AdamWSpec)
    schedule: AnyScheduleSpec = Field(default_factory=CosineSpec)
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile of each block; auto: with a C++ compiler, on a GPU and in long runs"
    )
    checkpoint_activations: bool = Field(False, description="recompute each block's activations in the backward pass")
    evaluate_every: int | None = Field(200, gt=0, description="steps between evaluations; null: at both ends only")
    save_every: int | None = Field(
        500, gt=0, description="steps between checkpoints; null: at the end only", json_schema_extra=HARMLESS
    )
    keep_last: int = Field(2, gt=0, description="checkpoints kept besides the best", json_schema_extra=HARMLESS)
    log_every: int = Field(1, gt=0, description="steps between lines of metrics.jsonl", json_schema_extra=HARMLESS)
    max_skipped: int = Field(10, gt=0, description="non-finite steps in a row after which the run stops")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU where there is one", json_schema_extra=HARMLESS
    )
    profile: int | None = Field(
        None,
        gt=0,
        le=100,
        description="steps that torch.profiler records, from the third on",
        json_schema_extra=HARMLESS,
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="where metrics go besides metrics.jsonl", json_schema_extra=HARMLESS
    )
    diagnostics: DiagnosticsSpec = Field(
        default_factory=DiagnosticsSpec, description="what is measured inside the model", json_schema_extra=HARMLESS
    )

    @model_validator(mode="after")
    def _one_horizon(self) -> "TrainingSpec":
        given = [name for name in self.exclusive[0] if getattr(self, name) is not None]
        if not given:
            raise ValueError("one of steps, tokens, flops, minutes must say when the run ends")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given: keep one")
        return self


class ExperimentSpec(Spec):
    """One experiment: what is trained, on what, how, and where the result goes."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the experiment", json_schema_extra=HARMLESS
    )
    output_dir: UserPath = Field(description="run folder", json_schema_extra=HARMLESS)
    seed: int = Field(0, ge=0, lt=2**63, description="seed of initialization, data order and dropout")
    model: ModelSpec = Field(default_factory=ModelSpec)
    data: DataSpec
    training: TrainingSpec
    random_warmup: RandomWarmupSpec | None = Field(None, description="a phase on random data before training")

    @property
    def warmup_taken(self) -> int:
        """Steps of the schedule's warm-up that a random-data warm-up takes in place of training."""
        if self.random_warmup is None or self.random_warmup.schedule == "fresh":
            return 0
        return min(self.random_warmup.steps, self.training.schedule.warmup_steps)

    @model_validator(mode="after")
    def _random_warmup_fits(self) -> "ExperimentSpec":
        warmup = self.random_warmup
        if warmup is None:
            return self
        if warmup.shifted and not self.model.causal:
            raise ValueError(
                f"random_warmup.kind {warmup.kind} predicts the next token, which model.arch {self.model.arch} reads: "
                "take iid_unpaired, gaussian, random_labels or real"
            )
        if isinstance(warmup, DyckSpec) and 2 * warmup.k > self.model.vocab_size:
            raise ValueError(
                f"random_warmup.k {warmup.k} needs {2 * warmup.k} tokens, more than model.vocab_size "
                f"{self.model.vocab_size}: lower it"
            )
        if warmup.schedule == "continue" and not self.training.schedule.warmup_steps:
            raise ValueError(
                "random_warmup.schedule continue has nothing to continue, as training.schedule.warmup_steps is 0: "
                "set random_warmup.schedule: fresh"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> "ExperimentSpec":
        objective = self.training.objective
        if self.model.causal != isinstance(objective, NextTokenSpec):
            fitting = "next_token" if self.model.causal else "masked_token"
            raise ValueError(
                f"training.objective.kind {objective.kind} is not for model.arch {self.model.arch}: "
                f"set training.objective.kind: {fitting}"
            )
        if isinstance(objective, MaskedTokenSpec) and (objective.mask_id or 0) >= self.model.vocab_size:
            raise ValueError(
                f"training.objective.mask_id {objective.mask_id} is not below model.vocab_size {self.model.vocab_size}"
            )
        return self

    @model_validator(mode="after")
    def _sequence_fits(self) -> "ExperimentSpec":
        if self.data.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is longer than model.max_seq_len {self.model.max_seq_len}"
            )
        if self.training.tokens_per_update % self.data.seq_len:
            raise ValueError(
                f"training.tokens_per_update {self.training.tokens_per_update} is not a multiple of "
                f"data.seq_len {self.data.seq_len}"
            )
        return self
