"""Files of `torch.save`: the tensors in them, mapped, and nothing else.

Such a file is a zip archive in which `data.pkl` is a pickle, and each tensor's memory an entry. torch reads it with
`weights_only`, so that no code in it runs. What that still allows could fill any memory (a bytearray of any length,
copies of a dict over and over): the pickle is therefore held against the few opcodes that tensors need.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

from shearling.errors import UserError
from shearling.formats.checkpoint import StoredTensor
from shearling.quantization import CODECS

LARGEST_PICKLE = 16 << 20
"""Bytes; it takes some 300 a tensor."""

CODEC_OF = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16", "torch.float64": "f64"}
"""By dtype."""

NAMED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
TAKEN_AGAIN = {"GLOBAL", "BINUNICODE", "SHORT_BINUNICODE"}
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
OPCODES = {
    *("PROTO", "STOP", "MARK", "BINPERSID", "REDUCE", "BUILD"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "NONE"),
    *TAKEN_AGAIN,
    *PUT,
    *GET,
}


def read_torch_archive(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict, by name, memory-mapped. Imports torch.

    Raises:
        UserError: it is damaged, or holds anything but dense tensors of floats.
    """
    import torch

    try:
        _check(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except Exception as error:  # both zipfile and torch raise whatever a damaged file leads them to
        raise UserError(f"{file}: not a whole file of torch.save: fetch it again, or save it again") from error
    if not (isinstance(content, dict) and all(isinstance(name, str) for name in content)):
        raise UserError(f"{file}: it holds no tensors by name: save the model's state dict")
    tensors = {name: _stored(value, f"{file}: {name}") for name, value in content.items()}
    memory = {value.data_ptr(): value.nbytes for value in content.values()}
    if sum(memory.values()) > file.stat().st_size:
        raise UserError(f"{file}: its tensors overlap: save the model again, each tensor by itself")
    return tensors


def _check(file: Path) -> None:
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not plain or any(entry.file_size != entry.compress_size or entry.file_size > size for entry in entries):
            raise UserError(f"{file}: its entries are not stored as they are, as torch.save does: save it again")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise UserError(f"{file}: not one data.pkl of at most {LARGEST_PICKLE >> 20} MiB in it: save it again")
        _check_pickle(archive.read(pickles[0]), file)


def _check_pickle(content: bytes, file: Path) -> None:
    before, puts = "", dict[Any, str]()
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        # Only names and strings may be taken twice: every other object then costs the file some bytes of its own.
        again = name in GET and puts.get(argument) not in TAKEN_AGAIN
        if name not in OPCODES or again:
            raise UserError(f"{file}: its pickle holds more than tensors ({name}): save the model's state dict alone")
        if name == "GLOBAL" and not (argument in NAMED or _is_storage(str(argument))):
            what = str(argument).replace(" ", ".")
            raise UserError(f"{file}: its pickle asks for {what}, which is no tensor, and was not loaded: distrust it")
        if name in PUT:
            puts[argument] = before
        before = name


def _is_storage(name: str) -> bool:
    module, _, kind = name.partition(" ")
    return module == "torch" and kind.isalnum() and kind.endswith("Storage")


def _stored(value: Any, origin: str) -> StoredTensor:
    import torch

    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
    dense = plain and value.device.type == "cpu" and value.is_contiguous() and not value.is_neg()
    if not (dense and str(value.dtype) in CODEC_OF):
        raise UserError(f"{origin}: not a dense tensor of {', '.join(CODEC_OF)}: save it as one")
    codec = CODECS[CODEC_OF[str(value.dtype)]]
    ((dtype, _),) = codec.parts(1)
    tensor: torch.Tensor = value.detach()
    array = (tensor.view(torch.int16) if dtype.itemsize == 2 else tensor).numpy()  # numpy knows no bfloat16
    return StoredTensor(tuple(tensor.shape), codec, (array.view(dtype),))
