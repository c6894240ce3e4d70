"""Damaged and hostile files: of each comes a Checkpoint or one clear error, in no more memory than it has bytes.

A file of a format is one entry in TARGETS. SHEARLING_FUZZ_EXAMPLES says how many are tried of a format, its entries
together. What is done to a file is a pure function of its entry and number, which a failure names; SHEARLING_FUZZ_FIRST
says which number to begin with.
"""

import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import in_memory

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.data.tokenizers.conversion import Pieces, tokenizer_of
from shearling.data.tokenizers.llama2c import llama2c_tokenizer
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint
from shearling.formats.gguf import read_gguf, write_gguf
from shearling.formats.huggingface import read_huggingface, write_huggingface
from shearling.formats.llama2c import read_llama2c, write_llama2c
from shearling.formats.meta import read_meta
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

EXAMPLES = int(os.environ.get("SHEARLING_FUZZ_EXAMPLES", "2000"))
FIRST = int(os.environ.get("SHEARLING_FUZZ_FIRST", "0"))

ALLOWANCE = 4 << 20
"""Bytes beyond the file's size: names of tensors for as many layers as a model may have, and messages."""

INTEGERS = (0, 1, 2, 3, -1, -2, 127, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**61, 2**63 - 1, -(2**63))

Draw = random.Random
Mutation = Callable[[Draw, bytes], bytes]


def flip_bits(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def set_integer(draw: Draw, content: bytes) -> bytes:
    width = draw.choice((1, 2, 4, 4, 4, 8, 8))
    value = draw.choice((draw.choice(INTEGERS), draw.getrandbits(64), draw.randrange(-300, 3000)))
    at = draw.randrange(len(content))
    return content[:at] + (value % 2 ** (8 * width)).to_bytes(width, "little") + content[at + width :]


def set_aligned_integer(draw: Draw, content: bytes) -> bytes:
    at = 4 * draw.randrange(max(1, len(content) // 4))
    value = draw.choice((draw.choice(INTEGERS), draw.randrange(-300, 3000)))
    return content[:at] + struct.pack("<I", value % 2**32) + content[at + 4 :]


def set_float(draw: Draw, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    value = struct.pack("<f", draw.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 3e38)))
    return content[:at] + value + content[at + 4 :]


def swap_fields(draw: Draw, content: bytes) -> bytes:
    width = draw.choice((4, 4, 8))
    if len(content) < 2 * width:
        return content[::-1]
    first, second = sorted(width * draw.randrange(len(content) // width) for _ in range(2))
    a, b = content[first : first + width], content[second : second + width]
    return content[:first] + b + content[first + width : second] + a + content[second + width :] if a != b else content


def cut_out(draw: Draw, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 16) :]


def put_in(draw: Draw, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + draw.randbytes(draw.randint(1, 16)) + content[at:]


def repeat(draw: Draw, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start : start + draw.randint(1, 64)] + content[start:]


HEADER_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, set_integer, set_aligned_integer, set_aligned_integer, set_float, swap_fields, cut_out, put_in, repeat,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", [], {}, [[]], 0, 1, -1, 0.5, 1e-300, 1e300, float("nan"), float("inf"), 2**31, 2**63,
    10**30, -(10**400), "9" * 50, {"type": "yarn"}, [1, 2],
)  # fmt: skip


def change_json(draw: Draw, content: bytes) -> bytes:
    """A value somewhere in it replaced, or a key taken away, renamed or added."""
    try:
        whole = json.loads(content)
    except ValueError:
        return flip_bits(draw, content)
    places = [*_places(whole)]
    if not places:
        return flip_bits(draw, content)
    holder, key = draw.choice(places)
    value = draw.choice((draw.choice(VALUES), draw.choice(INTEGERS), draw.randrange(-300, 3000)))
    change = draw.choice(("replace", "replace", "replace", "remove", "add", "rename"))
    if change == "replace":
        holder[key] = value
    elif change == "remove" or isinstance(holder, list):
        del holder[key]
    elif change == "add":
        holder[draw.choice(("x", "scaling", "n_heads", "dtype"))] = value
    else:
        holder[key + "_"] = holder.pop(key)
    return json.dumps(whole).encode()


def _places(value):
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@dataclass(frozen=True)
class Target:
    """A file that is damaged, and what reads it.

    Attributes:
        make: makes what is whole in a folder, and gives the file to damage.
        read: is given that file.
        header: how many of the file's bytes are damaged, given its content.
        of: how many entries share the examples of the format.
        mutations: of the header.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    header: Callable[[bytes], int] = len
    of: int = 1
    mutations: tuple[Mutation, ...] = HEADER_MUTATIONS


def tiny(tied: bool = True, vocab_size: int = 16) -> Checkpoint:
    """A model of a few hundred weights."""
    spec = ModelSpec.model_validate(
        {
            "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "intermediate_size": 12, "max_seq_len": 4,
            "vocab_size": vocab_size, "norm": {"kind": "rmsnorm", "eps": 1e-5}, "tie_embeddings": tied,
        }
    )  # fmt: skip
    return in_memory(Transformer(spec))


def tokenizer_bin() -> bytes:
    """A `tokenizer.bin` of llama2.c with five pieces of its own."""
    pieces = [" ", "a", "b", "ab", " ab"]
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return struct.pack("<i", 8) + b"".join(
        struct.pack("<fi", -float(index), len(text)) + text.encode() for index, text in enumerate(texts)
    )


def with_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """The same, once its tokenizer was asked for."""
    _ = checkpoint.tokenizer
    return checkpoint


def llama2c(version: int, tied: bool) -> Target:
    def make(folder: Path) -> Path:
        path = folder / "model.bin"
        write_llama2c(path, tiny(tied), version=version, progress=lambda count: None)
        return path

    return Target(make, read_llama2c, lambda content: 28 if version == 0 else 44, of=4)


def tokenizer() -> Target:
    def make(folder: Path) -> Path:
        (folder / "tokenizer.bin").write_bytes(tokenizer_bin())
        return folder / "tokenizer.bin"

    return Target(make, load_tokenizer)


def byte_level() -> Tokenizer:
    """GPT-2's kind of tokenizer, of six pieces."""
    cuts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    texts, types = ["<unk>", "<s>", "</s>", "a", "b", "ab"], [2, 3, 3, 1, 1, 1]
    return tokenizer_of(Pieces("byte-bpe", texts, types, merges=["a b"], bos=1, eos=2, pre_tokenizer=cuts), "tiny")


def gguf(
    read: Callable[[Path], Any],
    of: int,
    load_tokenizer: Callable[[], Tokenizer] = lambda: llama2c_tokenizer(tokenizer_bin()),
) -> Target:
    checkpoint = replace(tiny(vocab_size=264), load_tokenizer=load_tokenizer)
    weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())

    def make(folder: Path) -> Path:
        write_gguf(folder / "model.gguf", checkpoint, progress=lambda count: None)
        return folder / "model.gguf"

    return Target(make, read, lambda content: len(content) - weights, of)


def huggingface(damaged: str, header: Callable[[bytes], int], mutations: tuple[Mutation, ...]) -> Target:
    """A Hugging Face folder, with this one of its files damaged."""

    def make(folder: Path) -> Path:
        write_huggingface(folder, tiny(tied=False))
        return folder / damaged

    return Target(make, lambda path: read_huggingface(path.parent), header, 2, mutations)


def safetensors_header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def change_safetensors(draw: Draw, content: bytes) -> bytes:
    """Its JSON changed, and its length told, where it was not cut off before."""
    if len(content) <= 8:
        return flip_bits(draw, content)
    changed = change_json(draw, content[8:])
    return len(changed).to_bytes(8, "little") + changed


JSON_MUTATIONS = (*HEADER_MUTATIONS, *[change_json] * 20)


def meta(damaged: str, mutations: tuple[Mutation, ...]) -> Target:
    """Meta's folder, with this one of its files damaged."""

    def make(folder: Path) -> Path:
        names = {
            "embed": "tok_embeddings", "final_norm": "norm", "attention.norm": "attention_norm",
            "feedforward.norm": "ffn_norm", "attention.branch.q_proj": "attention.wq",
            "attention.branch.k_proj": "attention.wk", "attention.branch.v_proj": "attention.wv",
            "attention.branch.o_proj": "attention.wo", "feedforward.branch.gate_proj": "feed_forward.w1",
            "feedforward.branch.down_proj": "feed_forward.w2", "feedforward.branch.up_proj": "feed_forward.w3",
        }  # fmt: skip
        state = {}
        for name, tensor in tiny().tensors.items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state[name] = torch.tensor(tensor.read())
        torch.save(state, folder / "consolidated.00.pth")
        params = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 16, "norm_eps": 1e-5,
                  "rope_theta": 1e4, "use_scaled_rope": False, "multiple_of": 4, "ffn_dim_multiplier": 1.0}  # fmt: skip
        (folder / "params.json").write_text(json.dumps(params))
        return folder / damaged

    return Target(make, lambda path: read_meta(path.parent), of=4, mutations=mutations)


TARGETS = {
    "llama2c v0": llama2c(0, True),
    "llama2c v0, separate classifier": llama2c(0, False),
    "llama2c v1": llama2c(1, False),
    "llama2c v2": llama2c(2, True),
    "tokenizer.bin": tokenizer(),
    "gguf": gguf(read_gguf, 2),
    "gguf, tokenizer": gguf(lambda path: with_tokenizer(read_gguf(path)), 8),
    "gguf, byte-level tokenizer": gguf(lambda path: with_tokenizer(read_gguf(path)), 8, byte_level),
    "huggingface, config": huggingface("config.json", len, JSON_MUTATIONS),
    "huggingface, weights": huggingface(
        "model.safetensors", safetensors_header, (*HEADER_MUTATIONS, *[change_safetensors] * 20)
    ),
    "meta, params": meta("params.json", JSON_MUTATIONS),
    "meta, archive": meta("consolidated.00.pth", HEADER_MUTATIONS),
}


def damaged(target: Target, content: bytes, draw: Draw) -> bytes:
    """The file with its header, or its length, changed once or several times."""
    header = target.header(content)
    head, body = content[:header], content[header:]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.randrange(10)
        if kind == 0:
            whole = head + body
            whole = whole[: draw.randrange(len(whole) + 1)]
            head, body = whole[:header], whole[header:]
        elif kind == 1:
            body += draw.randbytes(draw.choice((1, 4, 1000)))
        elif head:
            head = draw.choice(target.mutations)(draw, head)
    return head + body


def outcome(target: Target, path: Path) -> tuple[Any, int]:
    """What comes of reading it, and the most memory that was held meanwhile."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        result = target.read(path)
    except UserError as error:
        result = error
    _, peak = tracemalloc.get_traced_memory()
    return result, peak - before


def check(result: Any, path: Path) -> None:
    """An error is a line or two that name the file; what was read lies within the file, from first row to last."""
    if isinstance(result, UserError):
        assert str(path.parent) in str(result)
        assert len(str(result).splitlines()) <= 2
        assert len(str(result)) < 2000
        return
    for name in getattr(result, "tensors", ()):
        tensor = result.tensors[name]
        with np.errstate(all="ignore"):
            for row in (0, tensor.shape[0] - 1):
                assert tensor.read(slice(row, row + 1)).shape == (1, *tensor.shape[1:])


@pytest.mark.timeout(0 if EXAMPLES > 2000 else 300)
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    target = TARGETS[name]
    examples = max(1, EXAMPLES // target.of)
    path = target.make(tmp_path)
    whole = path.read_bytes()
    assert not isinstance(outcome(target, path)[0], UserError)  # and what it imports is imported
    read = 0
    tracemalloc.start()
    try:
        for number in range(FIRST, FIRST + examples):
            path.write_bytes(damaged(target, whole, random.Random(f"{name} {number}")))
            result, held = outcome(target, path)
            check(result, path)
            assert held <= path.stat().st_size + ALLOWANCE
            read += not isinstance(result, UserError)
    except Exception as error:
        raise AssertionError(f"{name}: number {number}") from error
    finally:
        tracemalloc.stop()
    if examples >= 500:  # the damage is such that some are still whole
        assert 0 < read < examples
