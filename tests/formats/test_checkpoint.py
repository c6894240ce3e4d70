"""Tensors as files hold them: numbers, rows, and other codecs of them."""

from pathlib import Path

import numpy as np
import pytest

from shearling.formats import Checkpoint, StoredTensor
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_a_single_number_is_read_and_encoded_like_any_tensor(codec):
    stored = StoredTensor.of(np.array(1.5, np.float32))
    assert stored.read().shape == ()
    assert float(stored.read()) == 1.5
    (parts,) = stored.encoded(CODECS[codec])
    again = StoredTensor((), CODECS[codec], parts)
    assert (again.read().shape, float(again.read())) == ((), 1.5)
    ((same,),) = again.encoded(CODECS[codec])
    assert same.tobytes() == parts[0].tobytes()


def test_a_vector_and_a_matrix_give_their_rows():
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(StoredTensor.of(matrix).read(slice(1, 3)), matrix[1:3])
    np.testing.assert_array_equal(StoredTensor.of(matrix[0]).read(slice(2)), matrix[0, :2])


HUB = "cache/models--HuggingFaceTB--SmolLM2-1.7B/snapshots/4e53f736cbb20a9a0f56b4c4bf378d6a306ad915"


@pytest.mark.parametrize(
    ("origin", "notes", "name"),
    [
        ("models/stories15M.bin", {}, "stories15M"),
        ("SmolLM2-1.7B.Q8_0.gguf", {}, "SmolLM2-1.7B.Q8_0"),
        ("models/SmolLM2-1.7B", {}, "SmolLM2-1.7B"),
        ("models/SmolLM2-1.7B/", {}, "SmolLM2-1.7B"),
        (HUB, {}, "SmolLM2-1.7B"),
        (f"{HUB}/tiny.gguf", {}, "tiny"),
        ("runs/snapshots/last", {}, "last"),
        ("models/SmolLM2-1.7B", {"name": "Smol"}, "Smol"),
    ],
)
def test_a_model_is_called_what_its_file_says_or_what_it_lies_in(origin, notes, name):
    assert Checkpoint(ModelSpec(), {}, "halves", origin, notes=notes).name == name


def test_a_model_in_the_current_folder_is_called_what_that_is_called(tmp_path, monkeypatch):
    (tmp_path / "tiny-0.5B").mkdir()
    monkeypatch.chdir(tmp_path / "tiny-0.5B")
    assert Checkpoint(ModelSpec(), {}, "halves", str(Path())).name == "tiny-0.5B"
