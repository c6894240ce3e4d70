"""llama2.c's files: held against bytes laid out here from the format's description, and `transformers`' logits."""

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import adjacent_rows, assert_same, drawn_llama, in_memory, our_logits, their_logits

from shearling.config import load
from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.in_torch import load_transformer
from shearling.formats.llama2c import group_size, read_llama2c, write_llama2c
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.quantization import CODECS, parse_codec
from shearling.training.spec import ExperimentSpec

MODELS = {
    "shared": {"tie_word_embeddings": True},
    "separate classifier": {"tie_word_embeddings": False},
    "grouped queries": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "one key head, separate": {"tie_word_embeddings": False, "num_key_value_heads": 1},
}


SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 24, "rms_norm_eps": 1e-5}  # fmt: skip
llama = partial(drawn_llama, **SIZES)


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.in_rotary("halves", name).read() for name in checkpoint.tensors}


def quantized(weight: np.ndarray, group: int) -> bytes:
    """As llama2.c's quantize_q80: groups along the flattened tensor, its integers and then its scales."""
    groups = weight.astype(np.float32).reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.round(groups / scales[:, None]).astype(np.int8).tobytes() + scales.astype("<f4").tobytes()


def file_of(model, version: int, group: int = 16) -> bytes:
    """The file that the format's description asks for; of version 0 the rotary tables too."""
    c, w = model.config, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = range(c.num_hidden_layers)

    def of_layers(name, heads=None):
        found = [w[f"model.layers.{layer}.{name}.weight"] for layer in layers]
        return [adjacent_rows(weight, heads) if heads else weight for weight in found]

    embedding, final = [w["model.embed_tokens.weight"]], [w["model.norm.weight"]]
    attention_norms, ffn_norms = of_layers("input_layernorm"), of_layers("post_attention_layernorm")
    attention = [
        *of_layers("self_attn.q_proj", c.num_attention_heads), *of_layers("self_attn.k_proj", c.num_key_value_heads),
        *of_layers("self_attn.v_proj"), *of_layers("self_attn.o_proj"),
    ]  # fmt: skip
    ffn = [*of_layers("mlp.gate_proj"), *of_layers("mlp.down_proj"), *of_layers("mlp.up_proj")]
    head = [] if c.tie_word_embeddings else [w["lm_head.weight"]]
    sizes = [c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads]
    if version == 0:
        head_size = c.hidden_size // c.num_attention_heads
        frequencies = 10000.0 ** (-torch.arange(0, head_size, 2).float() / head_size)
        angles = torch.outer(torch.arange(c.max_position_embeddings).float(), frequencies)
        header = struct.pack("<7i", *sizes, c.vocab_size if not head else -c.vocab_size, c.max_position_embeddings)
        body = [*embedding, *attention_norms, *attention, *ffn_norms, *ffn, *final, angles.cos(), angles.sin(), *head]
        return header + b"".join(tensor.numpy().tobytes() for tensor in body)
    header = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, c.vocab_size, c.max_position_embeddings, not head)
    body = [*attention_norms, *ffn_norms, *final, *embedding, *attention, *ffn, *head]
    if version == 1:
        return header.ljust(256, b"\0") + b"".join(tensor.numpy().tobytes() for tensor in body)
    header += struct.pack("<i", group)
    return header.ljust(256, b"\0") + b"".join(
        tensor.numpy().tobytes() if tensor.dim() == 1 else quantized(tensor.numpy(), group) for tensor in body
    )


@pytest.fixture
def saved(tmp_path):
    """A file with these bytes: `saved(content)`."""

    def save(content: bytes, name: str = "model.bin") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return save


@pytest.fixture
def written(tmp_path):
    """What is written of a checkpoint: `written(checkpoint, version=1)`."""

    def write(checkpoint: Checkpoint, version: int, codec=None) -> Path:
        path = tmp_path / f"written-v{version}.bin"
        write_llama2c(path, checkpoint, version=version, codec=codec, progress=lambda count: None)
        return path

    return write


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
class TestAModel:
    @pytest.mark.parametrize("version", [0, 1])
    def test_that_is_read_has_the_logits_of_transformers(self, options, version, saved):
        model = llama(**options)
        assert_same(our_logits(read_llama2c(saved(file_of(model, version)))), their_logits(model))

    def test_of_version_2_has_those_of_transformers_with_the_same_rounded_weights(self, options, saved):
        model = llama(**options)
        checkpoint = read_llama2c(saved(file_of(model, 2)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:  # row for row the same groups, in whatever order the rows are
                    groups = parameter.view(-1, 16)
                    scales = groups.abs().amax(1, keepdim=True) / 127
                    parameter.copy_((torch.round(groups / scales) * scales).view_as(parameter))
        assert_same(our_logits(checkpoint), their_logits(model))

    @pytest.mark.parametrize("version", [0, 1, 2])
    def test_is_written_byte_for_byte(self, options, version, saved, written):
        model = llama(**options)
        checkpoint = read_llama2c(saved(file_of(model, 1)))
        found = written(checkpoint, version).read_bytes()
        expected = file_of(model, version)
        if version:
            assert found == expected
        else:  # cosines and sines may differ in their last bit
            assert found[:28] == expected[:28]
            assert len(found) == len(expected)
            np.testing.assert_allclose(np.frombuffer(found[28:], "<f4"), np.frombuffer(expected[28:], "<f4"), atol=1e-6)

    def test_comes_back_the_same_through_all_versions(self, options, saved, written):
        first = read_llama2c(saved(file_of(llama(**options), 0)))
        last = first
        for version in (1, 0, 1):
            last = read_llama2c(written(last, version))
        for name, array in weights(first).items():
            np.testing.assert_array_equal(weights(last)[name], array)
        quantized_once = read_llama2c(written(last, 2))
        through_floats = read_llama2c(written(quantized_once, 0))
        for name, array in weights(quantized_once).items():
            np.testing.assert_array_equal(weights(through_floats)[name], array)
        assert through_floats.spec == first.spec


def test_queries_and_keys_in_halves_are_written_adjacent(saved, written):
    model = llama(num_key_value_heads=2, tie_word_embeddings=True)
    adjacent = read_llama2c(saved(file_of(model, 1)))
    halves = replace(
        adjacent,
        rotary="halves",
        tensors={name: adjacent.in_rotary("halves", name) for name in adjacent.tensors},
    )
    assert written(halves, 1).read_bytes() == file_of(model, 1)


class TestTheStories:
    @pytest.fixture
    def stories(self, assets):
        return assets / "models" / "stories260K.bin"

    def test_are_the_model_that_they_are(self, stories):
        spec = read_llama2c(stories).spec
        assert (spec.d_model, spec.intermediate_size, spec.n_layers, spec.n_heads, spec.kv_heads) == (64, 172, 5, 8, 4)
        assert (spec.vocab_size, spec.max_seq_len, spec.tie_embeddings) == (512, 512, True)

    def test_are_written_byte_for_byte_but_for_the_tables(self, stories, written):
        found, expected = written(read_llama2c(stories), 0).read_bytes(), stories.read_bytes()
        tables = 4 * 512 * 8  # at the end, since the classifier is shared
        assert found[:-tables] == expected[:-tables]
        np.testing.assert_allclose(
            np.frombuffer(found[-tables:], "<f4"), np.frombuffer(expected[-tables:], "<f4"), atol=1e-6
        )

    def test_go_on_greedily_as_run_does(self, stories, assets):
        tokenizer = load_tokenizer(assets / "tokenizers" / "tok512" / "tok512.bin")
        checkpoint = read_llama2c(stories)
        model = load_transformer(checkpoint)
        tokens = [1]
        with torch.no_grad():
            for _ in range(40):
                tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
        told = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
        assert tokenizer.decode(tokens).startswith(told)

    def test_are_quantized_in_groups_of_four(self, stories, written):
        path = written(read_llama2c(stories), 2)
        assert struct.unpack_from("<i", path.read_bytes(), 37) == (4,)  # of 64 and 172
        exact, rounded = weights(read_llama2c(stories)), weights(read_llama2c(path))
        assert max(np.abs(exact[name] - rounded[name]).max() for name in exact) < 0.02

    def test_that_were_exported_in_groups_that_do_not_divide_the_hidden_width_are_read_as_they_were_meant(self, saved):
        model = llama(intermediate_size=36, tie_word_embeddings=True)  # rows of w2 end within groups of 16
        checkpoint = read_llama2c(saved(file_of(model, 2, group=16)))
        w2 = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
        blob = quantized(w2, 16)
        integers = np.frombuffer(blob[: w2.size], np.int8).reshape(-1, 16)
        scales = np.frombuffer(blob[w2.size :], "<f4")
        np.testing.assert_array_equal(
            checkpoint.tensors["layers.1.feedforward.branch.down_proj.weight"].read(),
            (integers * scales[:, None]).reshape(w2.shape),
        )


class TestTheGroup:
    def checkpoint(self, dim, hidden_dim, saved) -> Checkpoint:
        return read_llama2c(saved(file_of(llama(hidden_size=dim, intermediate_size=hidden_dim), 1)))

    @pytest.mark.parametrize(
        ("dim", "hidden_dim", "group"), [(64, 172, 4), (288, 768, 32), (768, 2048, 64), (64, 170, 2), (128, 352, 32)]
    )  # of stories260K, 15M and 110M, and others
    def test_is_the_largest_power_of_two_that_divides_both_widths(self, dim, hidden_dim, group):
        assert group_size(ModelSpec(d_model=dim, intermediate_size=hidden_dim, n_heads=2)) == group

    def test_that_does_not_exist_is_refused_before_a_file_is_made(self, saved, written, tmp_path):
        with pytest.raises(
            UserError, match=r"no power of two divides both 32 \(dim\) and 45 \(hidden_dim\).* version 1"
        ):
            written(self.checkpoint(32, 45, saved), 2)
        assert not (tmp_path / "written-v2.bin").exists()

    @pytest.mark.parametrize(("dim", "hidden_dim", "group"), [(32, 48, 8), (48, 45, 3), (96, 288, 48)])
    def test_that_is_asked_for_is_taken(self, saved, written, dim, hidden_dim, group):
        path = written(self.checkpoint(dim, hidden_dim, saved), 2, codec=parse_codec("int8", group))
        assert read_llama2c(path).tensors["embed.weight"].codec.group == group

    @pytest.mark.parametrize("group", [32, 1])
    def test_that_does_not_divide_both_or_is_one_weight_is_refused(self, saved, written, group):
        with pytest.raises(UserError, match=rf"groups of {group}: .* both 32 .* and 48 .* take groups of 16"):
            written(self.checkpoint(32, 48, saved), 2, codec=parse_codec("int8", group))

    def test_of_the_source_is_kept_and_nothing_is_rounded_again(self, saved, written):
        path = saved(file_of(llama(tie_word_embeddings=False), 2, group=8))
        assert written(read_llama2c(path), 2).read_bytes() == path.read_bytes()


class TestTheTokenizer:
    @pytest.fixture
    def model(self, assets, tmp_path):
        path = tmp_path / "model.bin"
        path.write_bytes((assets / "models" / "stories260K.bin").read_bytes())
        return path

    @pytest.fixture
    def tok512(self, assets):
        return assets / "tokenizers" / "tok512" / "tok512.bin"

    @pytest.mark.parametrize("name", ["tokenizer.bin", "tok512.bin"])
    def test_beside_the_model_is_found(self, model, tok512, name):
        model.with_name(name).write_bytes(tok512.read_bytes())
        assert read_llama2c(model).tokenizer.sha256 == load_tokenizer(tok512).sha256

    def test_of_another_size_is_passed_over(self, model, tok512, assets):
        model.with_name("tokenizer.bin").write_bytes((assets / "tokenizers/llama2/tokenizer.bin").read_bytes())
        assert read_llama2c(model).tokenizer is None
        model.with_name("tok512.bin").write_bytes(tok512.read_bytes())
        assert read_llama2c(model).tokenizer.vocab_size == 512

    def test_that_is_given_goes_before_the_one_beside(self, model, tok512, assets):
        model.with_name("tokenizer.bin").write_bytes(b"no tokenizer")
        assert read_llama2c(model, tok512).tokenizer.vocab_size == 512

    def test_that_is_given_and_larger_than_the_model_is_refused(self, model, assets):
        checkpoint = read_llama2c(model, assets / "tokenizers/llama2/tokenizer.bin")
        with pytest.raises(UserError, match="32000 tokens, and the model only 512"):
            _ = checkpoint.tokenizer

    def test_stops_at_bos(self, model):
        assert read_llama2c(model).stop_ids == (1,)


FIELDS = {name: 4 * index for index, name in enumerate(
    ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"))}  # fmt: skip
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def with_integer(content: bytes, value: int, at: int) -> bytes:
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]


class TestAFileIsRefused:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            read_llama2c(path)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1

    @pytest.mark.parametrize("version", [0, 1, 2])
    @pytest.mark.parametrize("length", [0, 1, 20])
    def test_that_ends_within_its_header(self, version, length, saved):
        self.refused(saved(file_of(llama(), version)[:length]), "ends within its header")

    @pytest.mark.parametrize("version", [0, 1, 2])
    @pytest.mark.parametrize(("change", "message"), [(-3, "it ends 3 bytes early"), (5, "it is 5 bytes too long")])
    def test_of_another_length_than_its_header_says(self, version, change, message, saved):
        content = file_of(llama(), version)
        self.refused(saved(content[:change] if change < 0 else content + bytes(change)), message)

    @pytest.mark.parametrize("field", FIELDS)
    @pytest.mark.parametrize("value", [0, -1, INT_MIN, INT_MAX])
    def test_with_an_integer_that_cannot_be(self, field, value, saved):
        self.refused(saved(with_integer(file_of(llama(), 1), value, 8 + FIELDS[field])), field)
        # -1 is one token and a classifier of its own: only the length tells that this is not so
        message = "bytes too long" if (field, value) == ("vocab_size", -1) else field
        self.refused(saved(with_integer(file_of(llama(), 0), value, FIELDS[field])), message)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("n_heads", 3, "dim 32 is not a multiple of n_heads 3"),
            ("n_kv_heads", 3, "n_heads 4 is not a multiple of n_kv_heads 3"),
            ("n_heads", 32, "even head size"),
            ("dim", 2**21, "dim: should be less than or equal to 1048576, not 2097152"),
            ("n_layers", 1024, "early"),
        ],
    )
    def test_whose_sizes_do_not_go_together(self, field, value, message, saved):
        self.refused(saved(with_integer(file_of(llama(), 1), value, 8 + FIELDS[field])), message)

    @pytest.mark.parametrize("version", [0, 3, -1, INT_MAX])
    def test_of_an_unknown_version(self, version, saved):
        self.refused(saved(with_integer(file_of(llama(), 1), version, 4)), f"version {version} of llama2.c")

    def test_with_a_flag_that_is_none(self, saved):
        content = bytearray(file_of(llama(), 1))
        content[36] = 7
        self.refused(saved(bytes(content)), "shared classifier: 7")

    @pytest.mark.parametrize("group", [0, -4, 64, 5, INT_MIN, INT_MAX])
    def test_with_groups_that_do_not_divide_the_width(self, group, saved):
        self.refused(saved(with_integer(file_of(llama(), 2), group, 37)), f"group_size: {group} does not divide dim 32")

    @pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
    def test_with_a_scale_that_is_not_finite(self, scale, saved):
        content = bytearray(file_of(llama(tie_word_embeddings=True), 2))
        content[-4:] = struct.pack("<f", scale)
        self.refused(
            saved(bytes(content)), r"layers\.1\.feedforward\.branch\.up_proj\.weight: a scale .* NaN or infinite"
        )


def checkpoint_of(**options) -> Checkpoint:
    """A model of our own, with its weights in memory."""
    sizes = {"d_model": 32, "n_layers": 1, "n_heads": 4, "intermediate_size": 48, "vocab_size": 61, "max_seq_len": 8}
    spec = ModelSpec.model_validate({**sizes, "norm": {"kind": "rmsnorm", "eps": 1e-5}, **options})
    return in_memory(Transformer(spec), "outputs/tiny")


INSTEAD = "write a .gguf or a Hugging Face folder instead"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": {"kind": "rmsnorm", "eps": 1e-6}}, f"norm.eps 1e-06, where llama2.c computes with 1e-05: {INSTEAD}"),
        ({"position": {"kind": "rope", "theta": 5e5}}, f"theta 500000, where llama2.c computes with 10000: {INSTEAD}"),
        ({"position": {"kind": "rope", "scaling": {"kind": "linear", "factor": 2.0}}}, f"position.scaling.*{INSTEAD}"),
        ({"sliding_window": 4}, f"sliding_window.*{INSTEAD}"),
        ({"attention_bias": True}, f"attention_bias.*{INSTEAD}"),
        ({"feedforward_bias": True}, f"feedforward_bias.*{INSTEAD}"),
        ({"placement": {"kind": "post"}}, "placement.kind: .* keep the model in a run folder"),
        ({"qk_norm": {"kind": "per_head"}, "embedding_norm": True}, "qk_norm, embedding_norm: "),
        ({"arch": "bert"}, "arch: "),
    ],
)
@pytest.mark.parametrize("version", [0, 2])
def test_a_model_that_llama2c_cannot_run_is_refused_before_a_file_is_made(options, message, version, tmp_path):
    progress = []
    with pytest.raises(UserError, match=message) as error:
        write_llama2c(tmp_path / "x.bin", checkpoint_of(**options), version=version, progress=progress.append)
    assert str(error.value).startswith("outputs/tiny: ")
    assert not (tmp_path / "x.bin").exists()
    assert progress == []


@pytest.mark.parametrize(
    ("version", "codec", "message"),
    [
        (0, "f16", "version 0 of llama2.c's files holds f32, not f16"),
        (1, "q8_0", "version 1 of llama2.c's files holds f32, not q8_0"),
        (2, "q8_0", "version 2 of llama2.c's files holds int8, not q8_0"),
        (2, "f32", "version 2 of llama2.c's files holds int8, not f32: version 1 holds f32"),
        (3, None, "version 3: llama2.c's files are of version 0, 1, 2"),
    ],
)
def test_what_a_version_does_not_hold_is_refused(version, codec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_llama2c(
            tmp_path / "x.bin",
            checkpoint_of(),
            version=version,
            codec=codec and parse_codec(codec),
            progress=lambda count: None,
        )
    assert not (tmp_path / "x.bin").exists()


def test_eps_and_theta_that_were_rounded_to_float32_on_the_way_are_the_same(written):
    near = {"norm": {"kind": "rmsnorm", "eps": float(np.float32(1e-5))}}
    assert read_llama2c(written(checkpoint_of(**near), 1)).spec.norm.eps == 1e-5


@pytest.mark.parametrize("version", [0, 1, 2])
def test_progress_adds_up_to_the_file(version, tmp_path):
    progress = []
    write_llama2c(tmp_path / "x.bin", checkpoint_of(), version=version, progress=progress.append)
    assert sum(progress) == (tmp_path / "x.bin").stat().st_size


def test_a_model_in_bf16_is_written_as_the_same_numbers_in_f32(written):
    plain = checkpoint_of()
    bf16 = CODECS["bf16"]
    halved = {name: StoredTensor(t.shape, bf16, bf16.encode(t.read())) for name, t in plain.tensors.items()}
    back = weights(read_llama2c(written(replace(plain, tensors=halved), 1)))
    for name, array in back.items():
        exact = plain.in_rotary("halves", name).read()
        np.testing.assert_array_equal(array, torch.tensor(exact).bfloat16().float().numpy())


def test_a_piece_at_a_time_gives_the_same_file(written, monkeypatch):
    whole = written(checkpoint_of(), 2).read_bytes()
    for module in ("checkpoint", "llama2c"):
        monkeypatch.setattr(f"shearling.formats.{module}.NUMBERS_AT_ONCE", 100)
    assert written(checkpoint_of(), 2).read_bytes() == whole


def test_weights_are_views_of_the_file(saved):
    tensors = read_llama2c(saved(file_of(llama(), 1))).tensors
    assert not any(part.flags.owndata or part.flags.writeable for tensor in tensors.values() for part in tensor.parts)


def test_the_demo_s_model_is_one_that_llama2_c_runs(root, tmp_path):
    spec = load(ExperimentSpec, root / "configs/experiments/demo.yaml").value.model
    checkpoint = in_memory(Transformer(spec))
    for version in (0, 2):
        path = tmp_path / f"demo-v{version}.bin"
        write_llama2c(path, checkpoint, version=version, progress=lambda _: None)
        assert read_llama2c(path).spec.d_model == spec.d_model
