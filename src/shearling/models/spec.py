"""The options of a model: its shape, and the kinds of its parts. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shearling.config import CHOICE, Spec
from shearling.models.norm_spec import NoNormSpec, NormSpec, RMSNormSpec
from shearling.models.placement_spec import (
    DeepNormSpec,
    HybridNormSpec,
    NGPTSpec,
    PlacementSpec,
    PreSpec,
    ResiDualSpec,
    SubLNSpec,
)


class LinearScalingSpec(Spec):
    """Position interpolation: all rotations slower by one factor (arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, description="how many times slower; about how many times the context grows")


class Llama3ScalingSpec(Spec):
    """LLaMA 3.1's: long wavelengths slower by a factor, short ones as they are, a ramp between (arXiv 2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0, description="how many times slower")
    low_freq_factor: float = Field(1.0, gt=0, description="wavelengths above the old context / this are slowed")
    high_freq_factor: float = Field(4.0, gt=0, description="wavelengths below the old context / this are left alone")
    original_max_seq_len: int = Field(gt=0, le=2**28, description="the context before it was made longer")

    @model_validator(mode="after")
    def _a_ramp(self) -> "Llama3ScalingSpec":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} should be greater than low_freq_factor "
                f"{self.low_freq_factor}: the ramp lies between"
            )
        return self


class YarnScalingSpec(Spec):
    """YaRN: slower by a ramp over the pairs, and queries and keys longer by a factor (arXiv 2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0, description="how many times slower; about how many times the context grows")
    original_max_seq_len: int = Field(gt=0, le=2**28, description="the context before it was made longer")
    beta_fast: float = Field(32.0, gt=0, description="pairs that turn more often in the old context are left alone")
    beta_slow: float = Field(1.0, gt=0, description="pairs that turn less often in it are slowed by the whole factor")
    attention_factor: float | None = Field(
        None, gt=0, description="length of turned queries and keys; null: 0.1 ln(factor) + 1, the paper's"
    )

    @model_validator(mode="after")
    def _a_ramp(self) -> "YarnScalingSpec":
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast} should be at least beta_slow {self.beta_slow}")
        return self


RoPEScaling = Annotated[LinearScalingSpec | Llama3ScalingSpec | YarnScalingSpec, CHOICE]


class RoPESpec(Spec):
    """Rotary position embedding on queries and keys (arXiv 2104.09864)."""

    kind: Literal["rope"] = "rope"
    theta: float = Field(10000.0, gt=0, description="base of the geometric series of rotation wavelengths")
    scaling: RoPEScaling | None = Field(None, description="how rotations were slowed for a longer context; null: not")

    @model_validator(mode="after")
    def _yarn_has_a_series(self) -> "RoPESpec":
        if isinstance(self.scaling, YarnScalingSpec) and self.theta <= 1:
            raise ValueError(f"theta {self.theta} should be greater than 1 for yarn")
        return self


class LearnedPositionSpec(Spec):
    """A learned vector for each position, added to the embedding (GPT-2, arXiv 1810.04805)."""

    kind: Literal["learned"] = "learned"


class SinusoidalPositionSpec(Spec):
    """Fixed sines and cosines, added to the embedding (arXiv 1706.03762)."""

    kind: Literal["sinusoidal"] = "sinusoidal"


class ALiBiSpec(Spec):
    """Attention's scores fall linearly with distance (arXiv 2108.12409)."""

    kind: Literal["alibi"] = "alibi"


class NoPositionSpec(Spec):
    """No positions: causal attention alone tells order (arXiv 2305.19466)."""

    kind: Literal["none"] = "none"


PositionSpec = Annotated[
    RoPESpec | LearnedPositionSpec | SinusoidalPositionSpec | ALiBiSpec | NoPositionSpec,
    CHOICE,
]


class PerHeadQKNormSpec(Spec):
    """Each head's queries and keys pass the model's norm before they are turned (arXiv 2302.05442)."""

    kind: Literal["per_head"] = "per_head"


class ProjectionQKNormSpec(Spec):
    """All heads' queries, and all keys, pass one norm each before they are turned (OLMo 2, arXiv 2501.00656)."""

    kind: Literal["projection"] = "projection"


class L2QKNormSpec(Spec):
    """Queries and keys of unit length, and a learned scale a head in place of 1/√K (arXiv 2010.04245)."""

    kind: Literal["l2"] = "l2"
    scale: float = Field(10.0, gt=0, description="each head's scale at first")


QKNormSpec = Annotated[PerHeadQKNormSpec | ProjectionQKNormSpec | L2QKNormSpec, CHOICE]


class ModelSpec(Spec):
    """The shape of a transformer, LLaMA's by default (arXiv 2302.13971)."""

    arch: Literal["llama", "gpt2", "bert"] = Field(
        "llama",
        description="family: llama and gpt2 read from left to right; bert reads both ways and has a masked-token head",
    )
    d_model: int = Field(288, gt=0, le=2**20, description="width of the residual stream")
    n_layers: int = Field(6, gt=0, le=1024, description="number of blocks")
    n_heads: int = Field(6, gt=0, le=2**16, description="query heads of each attention; divides d_model")
    n_kv_heads: int | None = Field(None, gt=0, description="key and value heads; divides n_heads; default n_heads")
    intermediate_size: int = Field(768, gt=0, le=2**24, description="hidden width of the feed-forward sublayer")
    vocab_size: int = Field(32000, gt=0, le=2**24, description="rows of the embedding; at least the tokenizer's size")
    max_seq_len: int = Field(256, gt=0, le=2**28, description="longest context, in tokens")
    activation: Literal["swiglu", "gelu", "gelu_erf", "relu2"] = Field(
        "swiglu",
        description="feed-forward kind: gated SiLU (three matrices); or with two, GELU in its tanh or its exact form, "
        "or the square of ReLU",
    )
    norm: NormSpec = Field(default_factory=RMSNormSpec, description="kind of every norm")
    placement: PlacementSpec = Field(default_factory=PreSpec, description="where the norms stand")
    qk_norm: QKNormSpec | None = Field(None, description="norm of queries and keys; null: none")
    embedding_norm: bool = Field(False, description="a norm right after the embedding")
    final_norm: bool = Field(True, description="a norm after the last block")
    position: PositionSpec = Field(default_factory=RoPESpec, description="how positions enter")
    sliding_window: int | None = Field(
        None, gt=0, description="tokens that a token sees: itself and those before it (arXiv 2310.06825); null: all"
    )
    attention_bias: bool = Field(False, description="biases on the query, key, value and output projections")
    feedforward_bias: bool = Field(False, description="biases on the feed-forward projections")
    head: bool = Field(True, description="logits at the end; false: hidden states only, as in a sentence encoder")
    tie_embeddings: bool = Field(True, description="the head is the embedding's transpose")
    learned_embedding_scale: bool = Field(
        False, description="embeddings times a learned scalar, at first √d_model (DyT's LLaMA, arXiv 2503.10622)"
    )
    logit_softcap: float | None = Field(
        None,
        gt=0,
        description="c: logits become c · tanh(logits / c) (Gemma 2, arXiv 2408.00118); null: left as they are",
    )
    value_embeddings: int = Field(
        0,
        ge=0,
        description="tables whose rows join the values of that many first and as many last blocks "
        "(modded-nanogpt); 0: none",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on embeddings and on each sublayer's output")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    init: Literal["scaled", "plain", "depth", "zero"] = Field(
        "scaled",
        description="scaled: o and down projections / √(2L) (GPT-2); plain: none; depth: block l's matrices / √l "
        "(DS-Init, arXiv 1908.11365); zero: o and down projections 0. Some placements have their own",
    )
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial matrices")
    embedding_std: float | None = Field(None, gt=0, description="that of the token embedding; null: init_std")
    head_std: float | None = Field(None, ge=0, description="that of an untied head; null: init_std")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSpec":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim % 2 and isinstance(self.position, RoPESpec):
            raise ValueError(
                f"d_model / n_heads is {self.head_dim}: rotary positions need an even head size, so change n_heads"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelSpec":
        placement = self.placement
        on_sphere = isinstance(placement, NGPTSpec)
        no_norm = isinstance(self.norm, NoNormSpec)
        refused = {
            f"placement.kind {placement.kind} norms queries and keys itself: set qk_norm: null": (
                self.qk_norm is not None and isinstance(placement, HybridNormSpec | NGPTSpec)
            ),
            f"placement.kind {placement.kind} draws its weights in its own way: set init: scaled, the default": (
                self.init != "scaled" and isinstance(placement, DeepNormSpec | SubLNSpec | NGPTSpec)
            ),
            "placement.kind residual ends with a norm of its second stream: set final_norm: true": (
                isinstance(placement, ResiDualSpec) and not self.final_norm
            ),
            "placement.kind ngpt gives queries and keys one gain: set n_kv_heads: null": (
                on_sphere and self.kv_heads != self.n_heads
            ),
            "placement.kind ngpt has vectors of unit length to the end: set final_norm: false": (
                on_sphere and self.final_norm
            ),
            "placement.kind ngpt has no norms but its own: leave norm.kind out": (
                on_sphere and not isinstance(self.norm, RMSNormSpec)
            ),
            "placement.kind ngpt norms embeddings itself: set embedding_norm and learned_embedding_scale to false": (
                on_sphere and (self.embedding_norm or self.learned_embedding_scale)
            ),
            "norm.kind none leaves qk_norm nothing to norm with: set qk_norm: null": (
                no_norm and self.qk_norm is not None and not isinstance(self.qk_norm, L2QKNormSpec)
            ),
            "norm.kind none leaves embedding_norm nothing to norm with: set it to false": no_norm
            and self.embedding_norm,
            f"value_embeddings {self.value_embeddings}: first and last blocks would meet: at most half of n_layers "
            f"{self.n_layers} have a table": 2 * self.value_embeddings > self.n_layers,
            "placement.kind ngpt has values and logits of its own: set value_embeddings: 0 and logit_softcap: null": (
                on_sphere and (self.value_embeddings > 0 or self.logit_softcap is not None)
            ),
            "head_std is for a head that is neither left out nor tied: set it to null": (
                self.head_std is not None and (self.tie_embeddings or not self.head)
            ),
            "head: false leaves no logits to cap: set logit_softcap: null": (
                not self.head and self.logit_softcap is not None
            ),
        }
        for reason, applies in refused.items():
            if applies:
                raise ValueError(reason)
        if self.sliding_window is not None and not self.causal:
            raise ValueError(f"arch {self.arch} reads both ways: a window looks back only: set sliding_window: null")
        if not self.head and not self.tie_embeddings:
            raise ValueError("head: false leaves nothing to untie: set tie_embeddings: true")
        return self

    def value_table(self, layer: int) -> int | None:
        """Which of the tables of `value_embeddings` block `layer`, from 0, takes its rows from; None: it takes none.

        The last blocks have the first ones' tables again, in the same order.
        """
        from_last = layer - (self.n_layers - self.value_embeddings)
        return layer if layer < self.value_embeddings else from_last if from_last >= 0 else None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def beyond_llama(self) -> list[str]:
        """The options that LLaMA's graph does not have, so that no LLaMA file can hold this model; none if it can.

        Scaled rotations (`position.scaling`) and a window are variants of that graph, which not every format can say.
        """
        llama = {
            "arch": self.arch == "llama",
            "activation": self.activation == "swiglu",
            "norm.kind": self.norm.kind == "rmsnorm",
            "placement.kind": self.placement.kind in ("pre", "lns_gain"),
            "qk_norm": self.qk_norm is None,
            "embedding_norm": not self.embedding_norm,
            "final_norm": self.final_norm,
            "head": self.head,
            "position.kind": self.position.kind == "rope",
            "learned_embedding_scale": not self.learned_embedding_scale,
            "logit_softcap": self.logit_softcap is None,
            "value_embeddings": not self.value_embeddings,
        }
        return [option for option, fits in llama.items() if not fits]

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.arch != "bert"


class ModelFile(Spec):
    """A file of `configs/models/`: the model's part of an experiment."""

    model: ModelSpec
