"""What a model costs, from its specification alone: parameters, FLOPs and bytes. Imports no torch.

Closed formulas: the cost of asking does not grow with the model.
"""

from dataclasses import dataclass

from shearling.models.spec import LayerNormSpec, ModelSpec, RMSNormSpec

HEAD_LOGITS = 2**23
"""Logits that the head's loss holds at once: with fewer its products slow down, with more nothing is gained."""

HEAD_EXACT_LOGITS = 2**21
"""How many of them it holds in fp32: 8 MB, which a shared cache takes."""

FEEDFORWARD_MATRICES = {"swiglu": 3, "gelu": 2}
"""Matrices of a feed-forward sublayer: gate, up and down, or up and down."""

NORMS_PER_BLOCK = {"pre": 2}
"""Norms in one block, by placement; the final norm comes on top."""


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by part. Biases count with the part that they belong to."""

    embedding: int
    """Table of token embeddings: V·D."""
    head: int
    """Output projection: V·D, or 0 where it is the embedding's transpose."""
    attention: int
    """Query and output projections of D·D each, key and value of D·(n_kv_heads·head_dim) each, per layer."""
    feedforward: int
    """3·D·F (SwiGLU) or 2·D·F (GELU) per layer."""
    norms: int
    """Gains, and biases where norms have them, of every block and of the final norm."""
    biases: int
    """The part of `attention` and `feedforward` that is no matrix."""

    @property
    def total(self) -> int:
        """All parameters, each once."""
        return self.embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """All but the V·D tables at both ends, as in arXiv 2001.08361, section 2.1."""
        return self.attention + self.feedforward + self.norms

    @property
    def multiplied(self) -> int:
        """Matrix entries that each token is multiplied with: the head counts, tied or not; looking up is no product."""
        return self.attention + self.feedforward - self.biases + (self.head or self.embedding)


def parameters(spec: ModelSpec) -> Parameters:
    """Counts the parameters that a model of this shape has."""
    d_model, d_kv, d_ff = spec.d_model, spec.kv_heads * spec.head_dim, spec.intermediate_size
    table = spec.vocab_size * d_model
    matrices = FEEDFORWARD_MATRICES[spec.activation]
    attention_biases = spec.n_layers * (2 * d_model + 2 * d_kv) if spec.attention_bias else 0
    feedforward_biases = spec.n_layers * ((matrices - 1) * d_ff + d_model) if spec.feedforward_bias else 0
    return Parameters(
        embedding=table,
        head=0 if spec.tie_embeddings else table,
        attention=spec.n_layers * 2 * d_model * (d_model + d_kv) + attention_biases,
        feedforward=spec.n_layers * matrices * d_model * d_ff + feedforward_biases,
        norms=(spec.n_layers * NORMS_PER_BLOCK[spec.placement.kind] + 1) * _norm_parameters(spec.norm, d_model),
        biases=attention_biases + feedforward_biases,
    )


def training_flops_per_token(spec: ModelSpec, seq_len: int) -> int:
    """FLOPs to train on one token of sequences of `seq_len` tokens: the backward pass counts twice the forward.

    6 for each matrix entry that a token meets, and attention's two products with the tokens before it. The usual
    12·L·T·D of arXiv 2204.02311 (appendix B) counts the whole T×T square; causal attention needs half of it, so
    6·L·T·D are counted here, whether or not a kernel skips the other half. Norms, softmax and the optimizer are left
    out, and so is what checkpoint_activations computes a second time.
    """
    return 6 * parameters(spec).multiplied + 6 * spec.n_layers * seq_len * spec.d_model


def kv_cache_bytes(spec: ModelSpec, tokens: int, bytes_per_value: int) -> int:
    """Bytes of the keys and values that generation keeps for `tokens` tokens of one sequence."""
    return 2 * spec.n_layers * spec.kv_heads * spec.head_dim * tokens * bytes_per_value


def activation_bytes(spec: ModelSpec, tokens: int, bytes_per_value: int, recompute: bool) -> int:
    """Bytes that the forward pass of `tokens` tokens keeps for the backward pass; an estimate.

    After arXiv 2205.05198, section 4, without the attention matrix, which fused attention never writes. Per token and
    block: the residual stream before each sublayer in fp32 (8·D); and at `bytes_per_value` both normalized inputs
    (2·D), queries and keys before and after rotation and values (2·D + 3·D_kv), attention's result (D), and the
    feed-forward's hidden values (4·F for SwiGLU: gate, up, silu(gate), their product; 2·F for GELU). With
    `recompute`, every block keeps only its input, and one block at a time all of this. The last norm keeps its input
    in fp32. The head adds hidden states and their gradient, a chunk of logits, and the gradient of its weight in fp32.
    """
    d_model, d_kv = spec.d_model, spec.kv_heads * spec.head_dim
    hidden = 2 * (FEEDFORWARD_MATRICES[spec.activation] - 1) * spec.intermediate_size
    block = 8 * d_model + bytes_per_value * (5 * d_model + 3 * d_kv + hidden)
    blocks = spec.n_layers * 4 * d_model + block if recompute else spec.n_layers * block
    chunk = min(HEAD_LOGITS, tokens * spec.vocab_size) * bytes_per_value + 4 * HEAD_EXACT_LOGITS
    head = 4 * spec.vocab_size * d_model + chunk
    return tokens * (blocks + d_model * (4 + 2 * bytes_per_value)) + head


def _norm_parameters(norm: RMSNormSpec | LayerNormSpec, d_model: int) -> int:
    return d_model * (2 if isinstance(norm, LayerNormSpec) and norm.bias else 1)
