"""Safetensors files, against the library of that name."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from shearling.errors import UserError
from shearling.formats.safetensors import DTYPES, open_safetensors, write_safetensors

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def drawn(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)


class TestReads:
    def test_what_the_library_wrote(self, tmp_path):
        tensors = {name: drawn(dtype) for name, dtype in TORCH.items()}
        tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7), "vector": torch.arange(3.0)}
        save_file(tensors, tmp_path / "a.safetensors", metadata={"made by": "us"})
        opened = open_safetensors(tmp_path / "a.safetensors")
        assert opened.metadata == {"made by": "us"}
        assert opened.entries.keys() == tensors.keys()
        for name, tensor in tensors.items():
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(opened.array(name), bits.numpy())

    def test_floats_as_tensors_and_nothing_else(self, tmp_path):
        tensors = {name: drawn(dtype) for name, dtype in TORCH.items()}
        save_file(tensors, tmp_path / "a.safetensors")
        opened = open_safetensors(tmp_path / "a.safetensors")
        for name in ("F64", "F32", "F16", "BF16"):
            stored = opened.tensor(name)
            assert stored.shape == (3, 5)
            np.testing.assert_array_equal(stored.read(), tensors[name].float().numpy())
            np.testing.assert_array_equal(stored.read(slice(1, 2)), tensors[name][1:2].float().numpy())
        with pytest.raises(UserError, match="I8: I8 is no dtype of weights"):
            opened.tensor("I8")

    def test_nothing_of_a_dtype_that_numpy_has_not_but_all_that_lies_beside_it(self, tmp_path):
        tensors = {"small": torch.ones(4, 4).to(torch.float8_e4m3fn), "large": drawn(torch.float32)}
        save_file(tensors, tmp_path / "a.safetensors")
        opened = open_safetensors(tmp_path / "a.safetensors")
        np.testing.assert_array_equal(opened.array("large"), tensors["large"].numpy())
        with pytest.raises(UserError, match="small: F8_E4M3 is not read here"):
            opened.array("small")

    def test_without_copying(self, tmp_path):
        save_file({"a": torch.ones(1000, 1000)}, tmp_path / "a.safetensors")
        tracemalloc.start()
        stored = open_safetensors(tmp_path / "a.safetensors").tensor("a")
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()
        assert not stored.parts[0].flags.writeable

    def test_files_without_tensors(self, tmp_path):
        save_file({}, tmp_path / "a.safetensors")
        assert open_safetensors(tmp_path / "a.safetensors").entries == {}

    def test_a_null_for_metadata_as_the_library_does(self, tmp_path):
        path = file_of(tmp_path, {"__metadata__": None, **one()}, bytes(16))
        with safe_open(path, "np") as theirs:
            assert theirs.metadata() is None
        opened = open_safetensors(path)
        assert (opened.metadata, opened.array("a").shape) == ({}, (2, 2))


def file_of(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "a.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def one(**options) -> dict:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **options}}


DAMAGED = [
    (b"", None, b""),
    (b"{}", 2**63, b""),
    (b"{}", 2**64 - 1, b""),
    (b"{}", 3, b""),
    (b"{}", 0, b""),
    (b"[]", None, b""),
    (b"3", None, b""),
    (b"{]", None, b""),
    (b"\xff\xff", None, b""),
    (b"[" * 100_000, None, b""),
    (b'{"a":' * 50_000, None, b""),
    (b'{"a": ' + b"9" * 5000 + b"}", None, b""),
    ({"__metadata__": 3}, None, b""),
    ({"__metadata__": {"a": 3}}, None, b""),
    (b'{"\\ud800": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}', None, bytes(16)),
    (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
     b'"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', None, bytes(2)),
    (one(), None, bytes(15)),
    (one(), None, bytes(17)),
    (one(data_offsets=[4, 20]), None, bytes(20)),
    (one(data_offsets=[16, 0]), None, bytes(16)),
    (one(data_offsets=[0, 12]), None, bytes(12)),
    (one(data_offsets=[0]), None, bytes(16)),
    (one(data_offsets=[0, 16.0]), None, bytes(16)),
    (one(data_offsets=[-16, 0]), None, b""),
    (one(data_offsets=None), None, bytes(16)),
    (one(shape=[-2, -2]), None, bytes(16)),
    (one(shape=[True, 4]), None, bytes(16)),
    (one(shape=4), None, bytes(16)),
    (one(shape=[2**32, 2**32]), None, bytes(16)),
    (one(shape=[2**62, 2]), None, bytes(16)),
    (one(shape=[2**63, 2]), None, bytes(16)),
    (one(dtype="F33"), None, bytes(16)),
    (one(dtype=["F32"]), None, bytes(16)),
    ({"a": 3}, None, b""),
    ({**one(), "b": one()["a"]}, None, bytes(16)),
    ({**one(), "b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]}}, None, bytes(16)),
    ({**one(), "b": {"dtype": "U8", "shape": [4], "data_offsets": [17, 21]}}, None, bytes(21)),
]  # fmt: skip


BEYOND_NUMPY = [
    one(shape=[0, 2**62], data_offsets=[0, 0]),
    one(shape=[0, 2**40, 2**40], data_offsets=[0, 0]),
    one(shape=[1] * 100 + [4]),
    one(more=1),
]


@pytest.mark.parametrize(("header", "length", "data"), DAMAGED, ids=[str(case)[:60] for case in DAMAGED])
def test_damaged_files_are_refused_as_the_library_refuses_them(tmp_path, header, length, data):
    path = file_of(tmp_path, header, data, length)
    with pytest.raises((SafetensorError, OverflowError)), safe_open(path, "np"):
        pass
    with pytest.raises(UserError, match="no whole safetensors file") as error:
        open_safetensors(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("header", BEYOND_NUMPY, ids=lambda header: str(header)[:60])
def test_shapes_that_numpy_cannot_have_and_unknown_keys_are_refused(tmp_path, header):
    path = file_of(tmp_path, header, bytes(header["a"]["data_offsets"][1]))
    with pytest.raises(UserError, match="a is described by no dtype, shape and offsets"):
        open_safetensors(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_files_shorter_than_any_are_refused(tmp_path, size):
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(UserError, match="no whole safetensors file"):
        open_safetensors(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors: no whole safetensors file \(No such file"):
        open_safetensors(tmp_path / "none.safetensors")


def test_mutated_headers_are_read_as_the_library_reads_them_or_refused(tmp_path):
    """And never with more memory than the file takes, whatever sizes it claims."""
    tensors = {"a": drawn(torch.float32), "b": drawn(torch.bfloat16), "empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    draw, path = random.Random(0), tmp_path / "a.safetensors"
    read = 0
    tracemalloc.start()
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            place = draw.randrange(length)
            content[place] = draw.choice((draw.randrange(256), *b'0123456789[]{}":,-'))
        path.write_bytes(content)
        try:
            opened = open_safetensors(path)
            found = {name: opened.array(name) for name in opened.entries}
        except UserError:
            continue
        read += 1
        with safe_open(path, "np") as theirs:
            for name, array in found.items():
                assert array.shape == tuple(theirs.get_slice(name).get_shape())
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert read > 100


class TestWrites:
    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 5), max_size=3)), min_size=0, max_size=6
        )
    )
    def test_what_the_library_reads(self, tmp_path_factory, described):
        path = tmp_path_factory.mktemp("written") / "a.safetensors"
        draw = np.random.default_rng(0)
        arrays = {
            f"tensor {i} é": draw.integers(0, 2, size=shape).astype(DTYPES[dtype])
            for i, (dtype, shape) in enumerate(described)
        }
        written = []
        write_safetensors(
            path,
            [(name, dtype, array.shape) for (name, array), (dtype, _) in zip(arrays.items(), described, strict=True)],
            lambda name: iter([arrays[name]]),
            metadata={"format": "pt"},
            progress=written.append,
        )
        theirs = load_file(path)
        assert theirs.keys() == arrays.keys()
        for (name, array), (dtype, _) in zip(arrays.items(), described, strict=True):
            assert theirs[name].dtype == TORCH[dtype]
            bits = theirs[name].view(torch.uint16) if dtype == "BF16" else theirs[name]
            np.testing.assert_array_equal(bits.numpy(), array)
        assert sum(written) == path.stat().st_size
        with safe_open(path, "np") as opened:
            assert opened.metadata() == {"format": "pt"}

    def test_each_tensor_at_a_multiple_of_its_numbers_size(self, tmp_path):
        arrays = {"odd": np.ones(3, np.uint8), "double": np.ones(2, np.float64), "half": np.ones(1, np.float16)}
        described = [("odd", "U8", (3,)), ("half", "F16", (1,)), ("double", "F64", (2,))]
        write_safetensors(tmp_path / "a.safetensors", described, lambda name: iter([arrays[name]]))
        opened = open_safetensors(tmp_path / "a.safetensors")
        assert all(opened.array(name).flags.aligned for name in arrays)

    def test_a_tensor_in_pieces_without_holding_it(self, tmp_path):
        piece = np.arange(250_000, dtype=np.float32)
        tracemalloc.start()
        write_safetensors(
            tmp_path / "a.safetensors", [("a", "F32", (40, 250_000))], lambda _: (piece for _ in range(40))
        )
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
        tracemalloc.stop()
        theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")["a"]
        np.testing.assert_array_equal(theirs, np.tile(piece, (40, 1)))
