"""The options of a model: its shape, and the kinds of its parts. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shearling.config import Spec


class RMSNormSpec(Spec):
    """Root-mean-square norm: g · x / sqrt(mean(x²) + eps) (arXiv 1910.07467)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = Field(1e-6, gt=0, description="added to the mean square under the root")


class LayerNormSpec(Spec):
    """Layer norm: g · (x − mean) / sqrt(variance + eps) + b (arXiv 1607.06450)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: float = Field(1e-5, gt=0, description="added to the variance under the root")
    bias: bool = Field(True, description="whether b is there")


NormSpec = Annotated[RMSNormSpec | LayerNormSpec, Field(discriminator="kind")]


class PlacementSpec(Spec):
    """Where a sublayer's norm stands. `pre`: x + F(N(x)) (arXiv 2002.04745)."""

    kind: Literal["pre"] = "pre"


class RoPESpec(Spec):
    """Rotary position embedding on queries and keys (arXiv 2104.09864)."""

    kind: Literal["rope"] = "rope"
    theta: float = Field(10000.0, gt=0, description="base of the geometric series of rotation wavelengths")


class ModelSpec(Spec):
    """The shape of a decoder-only transformer, LLaMA's by default (arXiv 2302.13971)."""

    arch: Literal["llama"] = Field("llama", description="family of the architecture")
    d_model: int = Field(288, gt=0, description="width of the residual stream")
    n_layers: int = Field(6, gt=0, description="number of blocks")
    n_heads: int = Field(6, gt=0, description="query heads of each attention; divides d_model")
    n_kv_heads: int | None = Field(None, gt=0, description="key and value heads; divides n_heads; default n_heads")
    intermediate_size: int = Field(768, gt=0, description="hidden width of the feed-forward sublayer")
    vocab_size: int = Field(32000, gt=0, description="rows of the embedding; at least the tokenizer's size")
    max_seq_len: int = Field(256, gt=0, description="longest context, in tokens")
    activation: Literal["swiglu", "gelu"] = Field(
        "swiglu", description="feed-forward kind: gated SiLU (three matrices) or GELU (two matrices)"
    )
    norm: NormSpec = Field(default_factory=RMSNormSpec, description="kind of every norm")
    placement: PlacementSpec = Field(default_factory=PlacementSpec, description="where the norms stand")
    position: RoPESpec = Field(default_factory=RoPESpec, description="how positions enter")
    attention_bias: bool = Field(False, description="biases on the query, key, value and output projections")
    feedforward_bias: bool = Field(False, description="biases on the feed-forward projections")
    tie_embeddings: bool = Field(True, description="the head is the embedding's transpose")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on embeddings and on each sublayer's output")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial matrices")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSpec":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"d_model / n_heads is {self.head_dim}: rotary positions need an even head size, so change n_heads"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, the default filled in."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads


class ModelFile(Spec):
    """A file of `configs/models/`: the model's part of an experiment."""

    model: ModelSpec
