"""Tensors as files hold them: numbers, rows, and other codecs of them."""

import numpy as np
import pytest

from shearling.formats import StoredTensor
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
