"""The network against independent implementations and limiting cases."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shearling.models.cost import activation_bytes, parameters
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

SMALL = {
    "d_model": 48, "n_layers": 3, "n_heads": 6, "intermediate_size": 100, "vocab_size": 97, "max_seq_len": 32,
}  # fmt: skip


def small(**options) -> Transformer:
    """A small model with weights large enough for mistakes to show."""
    model = Transformer(ModelSpec(**{**SMALL, "init_std": 0.3, **options}), seed=1).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


def tokens(batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(0))


def as_transformers(model: Transformer):
    """The same model in Hugging Face's transformers, parameter by parameter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from shearling.bench.contenders import llama_config

    other = LlamaForCausalLM(llama_config(model.spec, LlamaConfig)).eval()
    names = {
        "embed.weight": "model.embed_tokens.weight",
        "final_norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    parts = {
        "attention.norm": "input_layernorm",
        "attention.branch": "self_attn",
        "feedforward.norm": "post_attention_layernorm",
        "feedforward.branch": "mlp",
    }
    state = {}
    for name, parameter in model.named_parameters():
        theirs = names.get(name, f"model.{name}")
        for ours, part in parts.items():
            theirs = theirs.replace(ours, part)
        state[theirs] = parameter.detach().clone()
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    assert not missing or model.spec.tie_embeddings
    return other


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_kv_heads": 2},
        {"n_kv_heads": 1, "tie_embeddings": False},
        {"position": {"kind": "rope", "theta": 500.0}, "norm": {"kind": "rmsnorm", "eps": 1e-3}},
        {"attention_bias": True},
    ],
    ids=["tied", "grouped", "multi-query-untied", "theta-eps", "bias"],
)
def test_logits_and_loss_equal_those_of_transformers(options):
    model = small(**options)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    other, x = as_transformers(model), tokens()
    with torch.no_grad():
        ours = model.logits(model(x))
        theirs = other(input_ids=x, labels=x)
    assert (ours - theirs.logits).abs().max() < 1e-4
    loss = F.cross_entropy(ours[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert abs(loss - theirs.loss) < 1e-4


def test_gradients_equal_those_of_transformers():
    from shearling.training.loss import head_loss

    model = small(n_kv_heads=3)
    other, x = as_transformers(model), tokens()
    head_loss(model(x[:, :-1]).flatten(0, 1), model.lm_head, x[:, 1:].flatten()).backward()
    other(input_ids=x, labels=x).loss.backward()
    ours = dict(model.named_parameters())
    pairs = {
        "embed.weight": other.model.embed_tokens.weight,
        "layers.0.attention.branch.k_proj.weight": other.model.layers[0].self_attn.k_proj.weight,
        "layers.2.feedforward.branch.gate_proj.weight": other.model.layers[2].mlp.gate_proj.weight,
        "layers.1.attention.norm.weight": other.model.layers[1].input_layernorm.weight,
    }
    for name, theirs in pairs.items():
        torch.testing.assert_close(ours[name].grad, theirs.grad, rtol=1e-3, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    position=st.integers(0, 18),
    replacement=st.integers(0, 96),
    options=st.sampled_from(
        [{}, {"n_kv_heads": 2}, {"activation": "gelu", "feedforward_bias": True}, {"norm": {"kind": "layernorm"}}]
    ),
)
def test_logits_never_depend_on_later_tokens(position, replacement, options):
    model, x = small(**options), tokens(1)
    changed = x.clone()
    changed[0, position + 1 :] = replacement
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, : position + 1], model(changed)[:, : position + 1], rtol=0, atol=1e-5)


def test_logits_depend_on_the_token_itself_and_on_earlier_ones():
    model, x = small(), tokens(1)
    for position in (0, 7):
        changed = x.clone()
        changed[0, position] = (x[0, position] + 1) % 97
        assert (model(x)[0, 7:] - model(changed)[0, 7:]).abs().max() > 1e-3


@pytest.mark.parametrize("kv_heads", [6, 2])
def test_cached_decoding_gives_the_hidden_states_of_one_pass(kv_heads):
    model, x = small(n_kv_heads=kv_heads), tokens(2, 20)
    caches = model.new_caches(2, 32)
    with torch.no_grad():
        pieces = [model(x[:, start:stop], caches=caches) for start, stop in ((0, 9), (9, 10), (10, 16), (16, 20))]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), rtol=1e-4, atol=1e-4)


def test_document_masking_equals_running_each_document_alone():
    model, x = small(), tokens(1, 20)
    ids = torch.tensor([[0] * 8 + [1] * 12])
    with torch.no_grad():
        packed = model(x, ids)
        # RoPE is relative: a document's states do not depend on where in the sequence it begins.
        torch.testing.assert_close(packed[:, :8], model(x[:, :8]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed[:, 8:], model(x[:, 8:]), rtol=1e-4, atol=1e-4)
        assert (packed[:, 8:] - model(x)[:, 8:]).abs().max() > 1e-2


def test_recomputed_activations_give_the_same_gradients_under_dropout():
    gradients = []
    for recompute in (False, True):
        model = small(dropout=0.2, attention_dropout=0.1).train()
        model.checkpoint_activations = recompute
        torch.manual_seed(0)
        model(tokens()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_tables_are_drawn_with_deviations_of_their_own():
    sizes = {"d_model": 96, "vocab_size": 500, "init_std": 0.02}
    model = small(**sizes, tie_embeddings=False, embedding_std=0.3, head_std=0.0)
    plain = small(**sizes, tie_embeddings=False)
    torch.testing.assert_close(model.embed.weight, 15 * plain.embed.weight)
    assert abs(model.embed.weight.std() - 0.3) < 0.01
    assert not model.head.weight.any()
    assert abs(plain.head.weight.std() - 0.02) < 1e-3
    torch.testing.assert_close(small(**sizes, embedding_std=0.3).embed.weight, model.embed.weight)


@pytest.mark.parametrize("options", [{"tie_embeddings": True}, {"tie_embeddings": False, "head": False}])
def test_a_head_that_is_not_there_has_no_deviation(options):
    with pytest.raises(ValueError, match="head_std"):
        small(head_std=0.0, **options)


def test_dropout_acts_in_training_only():
    model = small(dropout=0.5)
    torch.testing.assert_close(model(tokens()), model(tokens()))
    model.train()
    assert (model(tokens()) - model(tokens())).abs().max() > 1e-3


def test_bf16_arithmetic_stays_close_to_fp32_and_leaves_masters_alone():
    model = small(init_std=0.05)
    exact = model(tokens())
    model.dtype = torch.bfloat16
    rounded = model(tokens())
    assert rounded.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    relative = (rounded.float() - exact).norm() / exact.norm()
    assert 1e-4 < relative < 2e-2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_kv_heads": 2, "tie_embeddings": False},
        {"norm": {"kind": "layernorm"}, "activation": "gelu", "attention_bias": True, "feedforward_bias": True},
        {"norm": {"kind": "layernorm", "bias": False}},
    ],
)
def test_the_arithmetic_of_parameters_counts_the_real_ones(options):
    model = small(**options)
    assert parameters(model.spec).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 2}, {"activation": "gelu"}, {"n_layers": 6}])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(options):
    model = Transformer(ModelSpec(**{**SMALL, "d_model": 96, "intermediate_size": 256, **options}))
    model.dtype = torch.bfloat16
    own = {p.data_ptr() for p in model.parameters()} | {p.numel() for p in model.parameters() if p.ndim == 2}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own and tensor.numel() not in own:  # neither a weight nor its bf16 copy
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randint(97, (40, 32))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model(x)
    head = activation_bytes(model.spec.model_copy(update={"n_layers": 0}), x.numel(), 2, recompute=False)
    estimate = activation_bytes(model.spec, x.numel(), 2, recompute=False) - head
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.4)
    assert hidden.requires_grad


class TestInitialization:
    def test_a_tensor_depends_on_seed_and_name_alone(self):
        base = dict(Transformer(ModelSpec(**SMALL), seed=5).named_parameters())
        deeper = dict(Transformer(ModelSpec(**{**SMALL, "tie_embeddings": False}), seed=5).named_parameters())
        other_seed = dict(Transformer(ModelSpec(**SMALL), seed=6).named_parameters())
        for name, parameter in base.items():
            assert torch.equal(parameter, deeper[name])
        assert not torch.equal(base["embed.weight"], other_seed["embed.weight"])
        q = [base[f"layers.{i}.attention.branch.q_proj.weight"] for i in range(2)]
        assert not torch.equal(*q)

    def test_standard_deviations_are_those_of_the_table(self):
        spec = ModelSpec(**{**SMALL, "d_model": 240, "intermediate_size": 600, "tie_embeddings": False})
        for name, parameter in Transformer(spec).named_parameters():
            if parameter.ndim < 2:
                assert torch.equal(parameter, torch.ones_like(parameter))
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.02 / (6**0.5 if residual else 1)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
