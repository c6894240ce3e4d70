"""GGUF's container against the `gguf` package's reader, and against files in which a number is wrong."""

import struct

import gguf as package
import numpy as np
import pytest
from gguf_bytes import array, entry, gguf, string, tensor, written

from shearling.errors import UserError
from shearling.formats.gguf.container import Strings, read_container

HUGE = (1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@pytest.fixture
def by_the_package(tmp_path):
    """A file with a value of each type and tensors of several kinds, by the `gguf` package's writer."""
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(name)
        getattr(writer, f"add_{name}")(f"test.{name}", limits.max)
        writer.add_array(f"test.several.{name}", [1, 2, 3])
    writer.add_float32("test.float32", 1e-5)
    writer.add_float64("test.float64", 1e-300)
    writer.add_bool("test.yes", True)
    writer.add_bool("test.no", False)
    writer.add_string("test.text", "Zoë 🐑")
    writer.add_array("test.texts", ["a", "ä", "", "🐑", "x" * 300])
    writer.add_array("test.flags", [True, False])
    writer.add_custom_alignment(64)
    draw = np.random.default_rng(0)
    for name, shape in {"one": (7,), "two": (3, 64), "three": (2, 3, 32)}.items():
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))
    writer.add_tensor("half", draw.standard_normal((3, 5)).astype(np.float16))
    blocks = package.quants.quantize(
        draw.standard_normal((4, 64)).astype(np.float32), package.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blocks", blocks, raw_dtype=package.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_what_the_package_reads(by_the_package):
    ours, theirs = read_container(by_the_package).metadata, package.GGUFReader(by_the_package).fields
    expected = {key: field.contents() for key, field in theirs.items() if not key.startswith("GGUF.")}
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        if isinstance(value, Strings):
            assert value.decoded() == expected[key]
        elif isinstance(value, np.ndarray):
            assert value.tolist() == expected[key]
        else:
            assert type(value) is type(expected[key])
            assert value == (expected[key] if key != "test.float32" else 1e-5)


def test_tensors_lie_where_the_package_finds_them(by_the_package):
    ours, theirs = read_container(by_the_package), package.GGUFReader(by_the_package).tensors
    assert list(ours.tensors) == [tensor.name for tensor in theirs]
    for tensor_ in theirs:
        found = ours.tensors[tensor_.name]
        assert found.shape == tuple(tensor_.shape.tolist()[::-1])
        assert found.kind == tensor_.tensor_type
        content = ours.data[found.offset : found.offset + int(tensor_.n_bytes)]
        assert content.tobytes() == tensor_.data.tobytes()


def test_a_float32_is_the_decimal_that_was_meant(tmp_path):
    path = written(tmp_path, gguf([entry("a", "f32", 1e-5), entry("b", "f32", 0.1)]))
    assert read_container(path).metadata == {"a": 1e-5, "b": 0.1}


def test_version_2_is_read_alike(tmp_path):
    content = [entry("a", "u32", 7)], [tensor("t")], bytes(128)
    second = read_container(written(tmp_path, gguf(*content, version=2)))
    third = read_container(written(tmp_path, gguf(*content, version=3)))
    assert second.metadata == third.metadata
    assert second.tensors == third.tensors
    assert (second.data == third.data).all()


def test_a_string_is_found_by_its_text_and_not_within_another(tmp_path):
    texts = ["x" + string("end").decode("latin-1"), "", "send", "end", "ends"]
    metadata = read_container(written(tmp_path, gguf([array("texts", "str", texts)]))).metadata
    assert [metadata["texts"].place(text) for text in (*texts, "nowhere")] == [0, 1, 2, 3, 4, None]


WRONG = {
    "nothing": b"",
    "no header": b"GGUF",
    "another magic": gguf(magic=b"GGML"),
    "version 1": gguf(version=1),
    "big-endian": gguf(version=struct.unpack(">I", struct.pack("<I", 3))[0]),
    "cut within an entry": gguf([entry("a", "u64", 1)])[:40],
    "a key twice": gguf([entry("a", "u8", 1), entry("a", "u8", 2)]),
    "a key of no length": gguf([entry("", "u8", 1)]),
    "a key that is not UTF-8": gguf([entry(b"\xff\xfe", "u8", 1)]),
    "a key of 70,000 bytes": gguf([entry("a" * 70000, "u8", 1)]),
    "text that is not UTF-8": gguf([entry("a", "str", b"\xff")]),
    "a truth of 2": gguf([entry("a", "bool", 2)]),
    "truths of 2": gguf([array("a", "bool", [0, 1, 2])]),
    "an unknown type": gguf([string("a") + struct.pack("<II", 13, 0)]),
    "an unknown item": gguf([string("a") + struct.pack("<IIQ", 9, 99, 1) + bytes(8)]),
    "arrays in an array": gguf([string("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 1) + b"\x00"]),
    "strings that end too soon": gguf([array("a", "str", ["x", "y" * 40], count=7)]),
    "alignment 0": gguf([entry("general.alignment", "u32", 0)]),
    "alignment 4": gguf([entry("general.alignment", "u32", 4)]),
    "alignment 48": gguf([entry("general.alignment", "u32", 48)]),
    "alignment of a gigabyte": gguf([entry("general.alignment", "u32", 1 << 30)]),
    "alignment in words": gguf([entry("general.alignment", "str", "32")]),
    "a tensor twice": gguf([], [tensor("t"), tensor("t", offset=128)], bytes(256)),
    "a tensor without a name": gguf([], [tensor("")], bytes(128)),
    "no dimensions": gguf([], [tensor("t", dims=())], bytes(128)),
    "five dimensions": gguf([], [tensor("t", dims=(1,) * 5)], bytes(128)),
    "a dimension of 0": gguf([], [tensor("t", dims=(32, 0))], bytes(128)),
    "dimensions that overflow to 0": gguf([], [tensor("t", dims=(1 << 32, 1 << 32))], bytes(128)),
    "an offset that is not aligned": gguf([], [tensor("t", offset=4)], bytes(160)),
    "100,000 entries": gguf([entry(f"k{i}", "u8", 0) for i in range(100_000)]),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_refused_in_two_lines(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as refusal:
        read_container(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert len(str(refusal.value).removeprefix(str(path))) < 240


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    "content",
    [
        lambda number: gguf([], [tensor("t")], bytes(128), counts=(number, None)),
        lambda number: gguf([entry("a", "u8", 1)], counts=(None, number)),
        lambda number: gguf([array("a", "u8", [1], count=number)]),
        lambda number: gguf([array("a", "f64", [1], count=number)]),
        lambda number: gguf([array("a", "str", ["x"], count=number)]),
        lambda number: gguf([string("a") + struct.pack("<I", 8) + string("x", number)]),
        lambda number: gguf([array("a", "str", ["x"])[:-9] + string("x", number)]),
        lambda number: gguf([string("a", number) + struct.pack("<IB", 0, 1)]),
        lambda number: gguf([], [tensor("t", dims=(number,))], bytes(128)),
        lambda number: gguf([], [tensor("t", dims=(1, number))], bytes(128)),
    ],
    ids=["tensors", "entries", "bytes", "doubles", "strings", "text", "string", "key", "columns", "rows"],
)
def test_a_count_beyond_the_file_is_refused(tmp_path, content, number):
    with pytest.raises(UserError, match="no whole GGUF file"):
        read_container(written(tmp_path, content(number)))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_container(tmp_path / "nothing.gguf")
