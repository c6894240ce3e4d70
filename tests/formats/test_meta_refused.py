"""Meta's folders that are damaged, contradict themselves, or set traps."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from meta_folders import llama, split, state_of

from shearling.errors import UserError
from shearling.formats.meta import read_meta


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
    def test_whose_params_cannot_be(self, params, message, meta_folder):
        refused(meta_folder([state_of(llama())], **params), message)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"[" * 100_000, b"\xff"])
    def test_whose_params_are_no_json_object(self, content, meta_folder):
        folder = meta_folder([state_of(llama())])
        (folder / "params.json").write_bytes(content)
        refused(folder, "params.json")

    def test_without_its_params(self, meta_folder):
        folder = meta_folder([state_of(llama())])
        (folder / "params.json").unlink()
        refused(folder, "params.json: not there")

    @pytest.mark.parametrize("missing", [0, 1])
    def test_without_one_of_its_files(self, missing, meta_folder):
        folder = meta_folder(split(state_of(llama()), 3 if missing else 1, True))
        (folder / f"consolidated.{missing:02d}.pth").unlink()
        refused(folder, f"consolidated.{missing:02d}.pth is missing")

    def test_with_a_tensor_of_another_shape(self, meta_folder):
        state = state_of(llama())
        state["layers.1.attention.wk.weight"] = torch.ones(32, 16)
        refused(meta_folder([state]), r"layers\.1\.attention\.wk\.weight: of shape \[32, 16\].* \[16, 32\] in all")

    def test_with_a_scalar_for_a_matrix(self, meta_folder):
        state = state_of(llama()) | {"layers.0.feed_forward.w1.weight": torch.tensor(1.0)}
        refused(meta_folder([state]), r"layers\.0\.feed_forward\.w1\.weight: not in every")

    def test_with_a_tensor_in_only_one_of_its_files(self, meta_folder):
        shards = split(state_of(llama()), 2, True)
        del shards[1]["layers.0.attention.wo.weight"]
        refused(meta_folder(shards), r"layers\.0\.attention\.wo\.weight: not in every")

    def test_with_a_tensor_that_has_no_place(self, meta_folder):
        state = state_of(llama()) | {"layers.0.attention.wq.bias": torch.ones(32)}
        refused(meta_folder([state]), r"layers\.0\.attention\.wq\.bias: no place")

    def test_of_files_of_two_kinds_of_floats(self, meta_folder):
        shards = split(state_of(llama()), 2, True)
        shards[1]["output.weight"] = shards[1]["output.weight"].half()
        refused(meta_folder(shards), "output.weight: of shape")


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
    def folder(self, meta_folder):
        return meta_folder([state_of(llama())])

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
