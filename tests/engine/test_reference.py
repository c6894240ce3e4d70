"""The reference engine against the torch model and `transformers`, and its sequences against each other."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.formats import Checkpoint, StoredTensor
from shearling.formats.checkpoint import rotary_order
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import CODECS

SMALL = {
    "d_model": 48, "n_layers": 3, "n_heads": 6, "intermediate_size": 100, "vocab_size": 70, "max_seq_len": 48,
    "init_std": 0.3,
}  # fmt: skip

VARIANTS = {
    "plain": {},
    "grouped queries": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1},
    "a head of its own": {"tie_embeddings": False},
    "biases": {"attention_bias": True, "feedforward_bias": True},
    "another eps": {"norm": {"kind": "rmsnorm", "eps": 0.1}},
    "a window": {"sliding_window": 5, "n_kv_heads": 3},
    "theta": {"position": {"kind": "rope", "theta": 500.0}},
    "linear": {"position": {"kind": "rope", "scaling": {"kind": "linear", "factor": 3.0}}},
    "llama3": {"position": {"kind": "rope", "scaling": {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 16}}},
    "yarn": {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 12}}},
}


def made(seed: int = 0, **options) -> tuple[Transformer, Checkpoint]:
    """A model whose gains and biases are not what they begin as, and the same as a checkpoint."""
    spec = ModelSpec.model_validate(SMALL | options)
    model = Transformer(spec, seed).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    tensors = {name: StoredTensor.of(tensor.numpy()) for name, tensor in model.state_dict().items()}
    return model, Checkpoint(spec, tensors, "halves", "made")


def torch_logits(model: Transformer, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.logits(model(torch.tensor([tokens])))[0].numpy()


def drawn(n: int, vocab_size: int = SMALL["vocab_size"], seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n).tolist()


def adjacent(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with queries' and keys' rows as Meta has them."""
    tensors = dict(checkpoint.tensors)
    for name, heads in (("q_proj", checkpoint.spec.n_heads), ("k_proj", checkpoint.spec.kv_heads)):
        for full in [full for full in tensors if f".{name}." in full]:
            order = rotary_order(tensors[full].shape[0], heads, "adjacent")
            tensors[full] = StoredTensor.of(tensors[full].read()[order])
    return Checkpoint(checkpoint.spec, tensors, "adjacent", "made")


class TestLogits:
    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
    def test_are_the_torch_model_s(self, options):
        model, checkpoint = made(**options)
        tokens = drawn(40)
        ours = ReferenceEngine(checkpoint).session().feed_for_all_logits(tokens)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)

    @pytest.mark.parametrize("options", [VARIANTS["grouped queries"], VARIANTS["biases"]], ids=["grouped", "biases"])
    def test_do_not_depend_on_which_rows_of_a_head_turn_together(self, options):
        _, checkpoint = made(**options)
        tokens = drawn(20)
        expected, other = (
            ReferenceEngine(each).session().feed_for_all_logits(tokens) for each in (checkpoint, adjacent(checkpoint))
        )
        np.testing.assert_allclose(other, expected, atol=1e-4)

    def test_are_those_of_transformers(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=100,
            vocab_size=70, max_position_embeddings=48, rms_norm_eps=1e-5, tie_word_embeddings=False,
            initializer_range=0.3,
        )  # fmt: skip
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(config).eval()
        renamed = {
            "model.embed_tokens": "embed", "model.norm": "final_norm", "lm_head": "head", "model.layers": "layers",
            "input_layernorm": "attention.norm", "post_attention_layernorm": "feedforward.norm",
            "self_attn": "attention.branch", "mlp": "feedforward.branch",
        }  # fmt: skip
        tensors = {}
        for name, tensor in theirs.state_dict().items():
            for old, new in renamed.items():
                name = name.replace(old, new)
            tensors[name] = StoredTensor.of(tensor.numpy())
        spec = ModelSpec.model_validate(
            {**SMALL, "n_layers": 2, "n_kv_heads": 2, "norm": {"kind": "rmsnorm", "eps": 1e-5}, "tie_embeddings": False}
        )
        tokens = drawn(30)
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens])).logits[0].numpy()
        ours = ReferenceEngine(Checkpoint(spec, tensors, "halves", "made")).session().feed_for_all_logits(tokens)
        np.testing.assert_allclose(ours, expected, atol=1e-4)

    def test_of_rounded_weights_are_those_of_what_the_codec_gives_back(self):
        model, checkpoint = made(d_model=64, n_heads=4, intermediate_size=128)
        codec = CODECS["q8_0"]
        rounded = {
            name: StoredTensor(tensor.shape, codec, codec.encode(tensor.read())) if len(tensor.shape) == 2 else tensor
            for name, tensor in checkpoint.tensors.items()
        }
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(rounded[name].read()))
        tokens = drawn(20)
        ours = ReferenceEngine(Checkpoint(checkpoint.spec, rounded, "halves", "made")).session()
        np.testing.assert_allclose(ours.feed_for_all_logits(tokens), torch_logits(model, tokens), atol=1e-4)

    def test_stay_finite_where_a_gate_is_far_below_zero(self):
        _, checkpoint = made()
        gate = "layers.0.feedforward.branch.gate_proj.weight"
        large = dict(checkpoint.tensors) | {gate: StoredTensor.of(1e4 * checkpoint.tensors[gate].read())}
        session = ReferenceEngine(Checkpoint(checkpoint.spec, large, "halves", "made")).session()
        assert np.isfinite(session.feed(drawn(5))).all()


class TestASequence:
    @pytest.mark.parametrize("options", [VARIANTS["grouped queries"], VARIANTS["a window"]], ids=["grouped", "window"])
    def test_fed_in_parts_gives_the_logits_of_the_whole(self, options):
        model, checkpoint = made(**options)
        tokens = drawn(30)
        expected = torch_logits(model, tokens)
        session = ReferenceEngine(checkpoint).session()
        np.testing.assert_allclose(session.feed(tokens[:11]), expected[10], atol=1e-4)
        np.testing.assert_allclose(session.feed_for_all_logits(tokens[11:20]), expected[11:20], atol=1e-4)
        for at in range(20, 30):
            np.testing.assert_allclose(session.step([tokens[at]])[0], expected[at], atol=1e-4)
        assert session.lengths == [30]

    def test_goes_on_from_where_it_was_cut(self):
        model, checkpoint = made()
        session = ReferenceEngine(checkpoint).session()
        session.feed(drawn(20))
        session.rewind(7)
        other = drawn(9, seed=2)
        expected = torch_logits(model, drawn(20)[:7] + other)
        np.testing.assert_allclose(session.feed(other), expected[-1], atol=1e-4)

    def test_does_not_depend_on_those_beside_it(self):
        model, checkpoint = made(n_kv_heads=3)
        texts = [drawn(length, seed=length) for length in (4, 9, 6)]
        session = ReferenceEngine(checkpoint).session(sequences=3)
        for number, text in enumerate(texts):
            session.feed(text, number)
        stepped = session.step([1, 2], [2, 0])
        np.testing.assert_allclose(stepped[0], torch_logits(model, [*texts[2], 1])[-1], atol=1e-4)
        np.testing.assert_allclose(stepped[1], torch_logits(model, [*texts[0], 2])[-1], atol=1e-4)
        assert session.lengths == [5, 9, 7]

    @pytest.mark.parametrize(
        ("tokens", "reason"), [([], "no tokens"), ([70], "vocabulary has 70"), ([-1], "vocabulary"), ([0] * 49, "48")]
    )
    def test_refuses_what_does_not_fit(self, tokens, reason):
        _, checkpoint = made()
        with pytest.raises(UserError, match=reason):
            ReferenceEngine(checkpoint).session().feed(tokens)


def test_a_model_beyond_llama_s_graph_is_refused_by_option():
    spec = ModelSpec.model_validate(SMALL | {"placement": {"kind": "post"}, "activation": "gelu"})
    with pytest.raises(UserError, match=r"made: activation, placement\.kind: beyond"):
        ReferenceEngine(Checkpoint(spec, {}, "halves", "made"))


def test_nothing_of_it_imports_torch():
    code = "import sys, shearling.engine.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_memory_does_not_grow_with_the_model(tmp_path):
    """480 MB of bf16 weights pass through a process that stays well below them."""
    spec = {"d_model": 1024, "n_layers": 18, "n_heads": 16, "intermediate_size": 3072, "vocab_size": 4096}
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from shearling.engine.reference import ReferenceEngine
from shearling.formats import Checkpoint
from shearling.formats.specification import expected_shapes
from shearling.formats.weights_file import read_weights
from shearling.formats.safetensors import write_safetensors
from shearling.models.spec import ModelSpec
spec = ModelSpec(**{spec!r})
draw = np.random.default_rng(0)
numbers = draw.integers(0x3C00, 0x3D00, 1 << 22, dtype=np.uint16)
shapes = expected_shapes(spec)
file = Path({str(tmp_path / "weights")!r})
write_safetensors(file, [(name, "BF16", shape) for name, shape in shapes.items()],
                  lambda name: iter([numbers[: int(np.prod(shapes[name]))]]))
started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine = ReferenceEngine(Checkpoint(spec, read_weights(file), "halves", "made"))
assert np.isfinite(engine.session().feed_for_all_logits(list(range(64)))).all()
print(file.stat().st_size >> 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    weights, grown = map(int, done.stdout.split())
    assert weights > 400_000
    assert grown < 250_000
