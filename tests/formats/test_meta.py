"""Meta's folders, made here from models of `transformers`: what those compute from them is what we compute."""

import json
import pickle
import shutil
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import TOKENS, adjacent_rows, assert_same, drawn_llama, our_logits, their_logits

from shearling.errors import UserError
from shearling.formats.meta import Params, read_meta
from shearling.formats.pages import PagesHeld
from shearling.models.spec import Llama3ScalingSpec
from shearling.quantization import CODECS

PARAMS = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": 16, "norm_eps": 1e-5,
}  # fmt: skip


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}  # fmt: skip
llama = partial(drawn_llama, **SIZES)


def state_of(model) -> dict[str, torch.Tensor]:
    """Its weights under Meta's names, the rows of queries and keys in Meta's order."""
    names = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "layers",
    }  # fmt: skip
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    state = {}
    for name, tensor in model.state_dict().items():
        count = next((n for module, n in heads.items() if module in name), None)
        if count:
            tensor = adjacent_rows(tensor, count)
        for theirs, metas in names.items():
            name = name.replace(theirs, metas)
        state[name] = tensor.clone()
    return state


def split(state: dict[str, torch.Tensor], count: int, embedding_by_rows: bool) -> list[dict[str, torch.Tensor]]:
    """As model parallelism over `count` processes holds it."""

    def axis_of(name: str) -> int | None:
        by_columns = "wo" in name or "w2" in name or ("tok_embeddings" in name and not embedding_by_rows)
        return None if "norm" in name else int(by_columns)

    shards = [{} for _ in range(count)]
    for name, tensor in state.items():
        axis = axis_of(name)
        pieces = [tensor] * count if axis is None else tensor.chunk(count, axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.clone()
    return shards


@pytest.fixture
def saved(tmp_path):
    """A folder of these shards: `saved([state], norm_eps=1e-6)`; a parameter that is `...` goes."""

    def save(shards: list[dict], **params) -> Path:
        folder = tmp_path / "llama"
        folder.mkdir()
        for index, shard in enumerate(shards):
            torch.save(shard, folder / f"consolidated.{index:02d}.pth")
        described = {key: value for key, value in {**PARAMS, **params}.items() if value is not ...}
        (folder / "params.json").write_text(json.dumps(described))
        return folder

    return save


def logits(folder: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return our_logits(read_meta(folder), tokens)


class TestLogitsAreThoseOfTransformers:
    @pytest.mark.parametrize("embedding_by_rows", [False, True], ids=["LLaMA 1 and 2", "LLaMA 3"])
    @pytest.mark.parametrize("count", [1, 2])
    def test_from_one_file_and_from_several(self, count, embedding_by_rows, saved):
        model = llama()
        assert_same(logits(saved(split(state_of(model), count, embedding_by_rows))), their_logits(model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_of_weights_of_half_width(self, dtype, saved):
        model = llama()
        state = {name: tensor.to(dtype) for name, tensor in state_of(model).items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype))
        assert_same(logits(saved(split(state, 2, True))), their_logits(model))

    def test_without_grouped_queries(self, saved):
        model = llama(num_key_value_heads=4)
        assert_same(logits(saved([state_of(model)], n_kv_heads=...)), their_logits(model))

    def test_with_a_vocabulary_that_only_the_tensors_tell(self, saved):
        model = llama()
        assert_same(logits(saved(split(state_of(model), 2, True), vocab_size=-1)), their_logits(model))

    def test_with_another_theta_and_epsilon(self, saved):
        rope = {"rope_type": "default", "rope_theta": 500.0}
        model = llama(rope_parameters=rope, rms_norm_eps=1e-3)
        assert_same(logits(saved([state_of(model)], rope_theta=500.0, norm_eps=1e-3)), their_logits(model))

    def test_with_the_slowed_rotations_of_llama_3_1(self, saved):
        rope = {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        # Heads of 16, as long wavelengths as any, and positions enough that the slowed ones can be told.
        model = llama(rope_parameters=rope, num_attention_heads=2, max_position_embeddings=131072)
        tokens = torch.arange(1500)[None] * 7 % 64
        sizes = {"n_heads": 2, "rope_theta": 500000.0}
        slowed = their_logits(model, tokens)
        folder = saved([state_of(model)], **sizes, use_scaled_rope=True)
        assert_same(logits(folder, tokens), slowed)
        (folder / "params.json").write_text(json.dumps({**PARAMS, **sizes}))
        assert (logits(folder, tokens) - slowed).abs().max() > 0.01

    def test_of_parameters_as_a_module_has_them(self, saved):
        model = llama()
        state = {name: torch.nn.Parameter(tensor) for name, tensor in state_of(model).items()}
        assert_same(logits(saved([state])), their_logits(model))


def test_stored_frequencies_are_left_out(saved):
    state = state_of(llama()) | {
        "rope.freqs": torch.ones(4),
        "layers.0.attention.inner_attention.rope.freqs": torch.ones(4),
    }
    assert not any("rope" in name for name in read_meta(saved([state])).tensors)


def test_without_a_head_the_embedding_is_one(saved):
    state = state_of(llama(tie_word_embeddings=True))
    del state["output.weight"]
    checkpoint = read_meta(saved([state]))
    assert checkpoint.spec.tie_embeddings
    assert "head.weight" not in checkpoint.tensors


def test_a_head_that_is_the_embeddings_memory_is_tied(saved):
    state = state_of(llama(tie_word_embeddings=True))
    state["output.weight"] = state["tok_embeddings.weight"].detach()
    assert read_meta(saved([state])).spec.tie_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_one_file_nothing_is_copied(saved, dtype):
    folder = saved([{name: tensor.to(dtype) for name, tensor in state_of(llama()).items()}])
    checkpoint = read_meta(folder)
    tensor = checkpoint.tensors["layers.1.attention.branch.q_proj.weight"]
    start = tensor.parts[0].ctypes.data
    mapped = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("consolidated.00.pth")
    ]
    assert any(start in addresses for addresses in mapped)


@pytest.mark.parametrize(
    ("params", "length"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({}, 4096),
        ({"rope_theta": 1e6}, 16384),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
        ({"max_seq_len": 77}, 77),
    ],
    ids=["LLaMA 1", "LLaMA 2", "Code Llama", "LLaMA 3", "LLaMA 3.1", "told"],
)
def test_the_context_is_that_of_the_published_models(params, length, saved):
    assert read_meta(saved([state_of(llama())], **params)).spec.max_seq_len == length


def test_a_factor_that_is_told_is_taken(saved):
    folder = saved([state_of(llama())], use_scaled_rope=True, rope_scaling_factor=32.0)
    assert read_meta(folder).spec.position.scaling == Llama3ScalingSpec(factor=32.0, original_max_seq_len=8192)


@pytest.mark.parametrize(("dim", "factor"), [(2048, 32.0), (3072, 32.0), (4096, 8.0)])
def test_the_factor_of_llama_3_2_is_known_by_its_width(dim, factor):
    params = Params.model_validate({**PARAMS, "dim": dim, "use_scaled_rope": True})
    assert params.scaling["factor"] == factor


class TestTheTokenizer:
    @pytest.fixture
    def folder(self, saved):
        return saved([state_of(llama())])

    def test_beside_the_model_is_found(self, folder, assets):
        shutil.copy(assets / "tokenizers" / "llama2" / "tokenizer.model", folder)
        assert read_meta(folder).load_tokenizer().vocab_size == 32000

    def test_is_none_where_there_is_none(self, folder):
        assert read_meta(folder).tokenizer is None

    def test_of_tiktoken_is_refused_with_what_to_take(self, folder):
        (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
        with pytest.raises(UserError, match=r"tokenizer.model: a tiktoken vocabulary.* tokenizer.json"):
            _ = read_meta(folder).tokenizer


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_meta(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


class TestAFolderIsRefused:
    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"dim": ...}, "params.json: dim: Field required"),
            ({"dim": "32"}, "dim: should be a valid integer"),
            ({"n_heads": 5}, "dim 32 is not a multiple of n_heads 5"),
            ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
            ({"n_layers": 10**9}, "n_layers: should be less than or equal to 1024"),
            ({"n_layers": 10**400}, "n_layers"),
            ({"n_layers": 3}, r"layers\.2\.attention_norm\.weight: not in every consolidated"),
            ({"n_layers": 1}, r"layers\.1\..*: no place for this tensor"),
            ({"norm_eps": float("nan")}, "norm_eps: should be a finite number"),
            ({"norm_eps": 0.0}, "norm_eps: should be greater than 0"),
            ({"rope_theta": -1.0}, "rope_theta: should be greater than 0"),
            ({"use_scaled_rope": True, "rope_scaling_factor": 0.0}, "rope_scaling_factor: should be greater than 0"),
            (
                {"vocab_size": 128},
                r"tok_embeddings\.weight: of shape \[64, 32\], and params\.json asks for \[128, 32\]",
            ),
            ({"vocab_size": -2}, "vocab_size: should be greater than 0"),
            ({"dim": 64}, r"of shape"),
            ({"vision_chunk_size": 560}, "vision_chunk_size: a plain LLaMA has no such option"),
        ],
    )
    def test_whose_params_cannot_be(self, params, message, saved):
        refused(saved([state_of(llama())], **params), message)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"[" * 100_000, b"\xff"])
    def test_whose_params_are_no_json_object(self, content, saved):
        folder = saved([state_of(llama())])
        (folder / "params.json").write_bytes(content)
        refused(folder, "params.json")

    def test_without_its_params(self, saved):
        folder = saved([state_of(llama())])
        (folder / "params.json").unlink()
        refused(folder, "params.json: not there")

    @pytest.mark.parametrize("missing", [0, 1])
    def test_without_one_of_its_files(self, missing, saved):
        folder = saved(split(state_of(llama()), 3 if missing else 1, True))
        (folder / f"consolidated.{missing:02d}.pth").unlink()
        refused(folder, f"consolidated.{missing:02d}.pth is missing")

    def test_with_a_tensor_of_another_shape(self, saved):
        state = state_of(llama())
        state["layers.1.attention.wk.weight"] = torch.ones(32, 16)
        refused(saved([state]), r"layers\.1\.attention\.wk\.weight: of shape \[32, 16\].* \[16, 32\] in all")

    def test_with_a_scalar_for_a_matrix(self, saved):
        state = state_of(llama()) | {"layers.0.feed_forward.w1.weight": torch.tensor(1.0)}
        refused(saved([state]), r"layers\.0\.feed_forward\.w1\.weight: not in every")

    def test_with_a_tensor_in_only_one_of_its_files(self, saved):
        shards = split(state_of(llama()), 2, True)
        del shards[1]["layers.0.attention.wo.weight"]
        refused(saved(shards), r"layers\.0\.attention\.wo\.weight: not in every")

    def test_with_a_tensor_that_has_no_place(self, saved):
        state = state_of(llama()) | {"layers.0.attention.wq.bias": torch.ones(32)}
        refused(saved([state]), r"layers\.0\.attention\.wq\.bias: no place")

    def test_of_files_of_two_kinds_of_floats(self, saved):
        shards = split(state_of(llama()), 2, True)
        shards[1]["output.weight"] = shards[1]["output.weight"].half()
        refused(saved(shards), "output.weight: of shape")


class Explosive:
    """What a pickle can do to those who load it."""

    ignited = False

    def __reduce__(self):
        return Explosive.ignite, ()

    @staticmethod
    def ignite():
        Explosive.ignited = True


def rewritten(path: Path, edit, compression=zipfile.ZIP_STORED) -> None:
    """Its data.pkl changed, by bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, edit(content) if name.endswith("data.pkl") else content)


class TestATrickIsRefused:
    @pytest.fixture
    def folder(self, saved):
        return saved([state_of(llama())])

    def test_of_code_in_the_pickle(self, folder):
        torch.save({"tok_embeddings.weight": Explosive()}, folder / "consolidated.00.pth")
        refused(folder, r"consolidated.00.pth: its pickle asks for .*, which is no tensor|holds more than tensors")
        assert not Explosive.ignited

    def test_of_a_plain_pickle(self, folder):
        (folder / "consolidated.00.pth").write_bytes(pickle.dumps({"a": Explosive()}))
        refused(folder, "consolidated.00.pth: not a whole file of torch.save")
        assert not Explosive.ignited

    def test_of_an_object_of_any_length(self, folder):
        torch.save({"a": bytearray(8)}, folder / "consolidated.00.pth")
        refused(folder, r"asks for (builtins|__builtin__).bytearray|holds more than tensors")

    def test_of_one_dict_copied_over_and_over(self, folder):
        # OrderedDict of a dict that was put into the memo: each copy costs the file a few bytes.
        bomb = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01uccollections\nOrderedDict\nq\x01h\x00\x85R."
        rewritten(folder / "consolidated.00.pth", lambda content: bomb)
        refused(folder, r"holds more than tensors \(BINGET\)")

    def test_of_compressed_entries(self, folder):
        rewritten(folder / "consolidated.00.pth", lambda content: content, zipfile.ZIP_DEFLATED)
        refused(folder, "its entries are not stored as they are")

    def test_of_strides_that_repeat_one_row(self, folder):
        state = state_of(llama())
        state["tok_embeddings.weight"] = torch.ones(1, 32).expand(2**20, 32)
        torch.save(state, folder / "consolidated.00.pth")
        refused(folder, r"tok_embeddings.weight: not a dense tensor")

    def test_of_tensors_that_share_memory(self, folder):
        state = state_of(llama())
        memory = torch.ones(96 * 32 + 64)
        for layer in range(2):
            for offset, name in enumerate(("w1", "w3")):
                begin = 2 * layer + offset
                state[f"layers.{layer}.feed_forward.{name}.weight"] = memory[begin : begin + 96 * 32].view(96, 32)
        torch.save(state, folder / "consolidated.00.pth")
        refused(folder, "its tensors overlap")

    @pytest.mark.parametrize("values", [torch.ones(4, dtype=torch.int64), torch.ones(4, 4).to_sparse(), "text", [1]])
    def test_of_what_is_no_dense_tensor_of_floats(self, folder, values):
        torch.save(state_of(llama()) | {"norm.weight": values}, folder / "consolidated.00.pth")
        refused(folder, "norm.weight: not a dense tensor|which is no tensor|holds more than tensors")

    def test_of_no_dict(self, folder):
        torch.save(torch.ones(3), folder / "consolidated.00.pth")
        refused(folder, "it holds no tensors by name")

    @pytest.mark.parametrize("length", [0, 10, 2000, -1])
    def test_of_a_file_cut_short(self, folder, length):
        path = folder / "consolidated.00.pth"
        path.write_bytes(path.read_bytes()[:length])
        refused(folder, "consolidated.00.pth: not a whole file of torch.save")


class TestPieces:
    @pytest.mark.parametrize("embedding_by_rows", [False, True])
    def test_are_joined_in_any_rows(self, embedding_by_rows, saved):
        state = state_of(llama())
        tensors = read_meta(saved(split(state, 2, embedding_by_rows))).tensors
        for ours, theirs in (
            ("embed", "tok_embeddings"),
            ("layers.1.feedforward.branch.down_proj", "layers.1.feed_forward.w2"),
        ):
            tensor, whole = tensors[f"{ours}.weight"], state[f"{theirs}.weight"].numpy()
            for rows in (
                slice(None),
                slice(5, 9),
                slice(10, 40),
                slice(31, 33),
                slice(20, 99),
                slice(7, 7),
                slice(-3, None),
            ):
                np.testing.assert_array_equal(tensor.read(rows), whole[rows])
            shuffled = np.random.default_rng(0).permutation(len(whole))
            np.testing.assert_array_equal(tensor.reordered(shuffled).read(), whole[shuffled])

    def test_are_not_joined_for_what_is_known_of_a_tensor_beforehand(self, saved):
        model = llama(vocab_size=20_000, tie_word_embeddings=False)
        folder = saved(split(state_of(model), 2, True), vocab_size=20_000)
        checkpoint = read_meta(folder)
        tracemalloc.start()
        n_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        PagesHeld(checkpoint.tensors.values())
        for piece in checkpoint.tensors["embed.weight"].encoded(CODECS["f32"]):
            assert piece[0].shape == (20_000, 32)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
        assert peak < 1.1 * 4 * 20_000 * 32  # the one that was read
