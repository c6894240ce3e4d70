"""Codecs: how matrices are stored in fewer bits, and what of them comes back. Imports no torch."""

from collections.abc import Callable

from shearling.errors import UserError
from shearling.quantization.codec import Codec, FloatArray, Part, Parts, Unpacked
from shearling.quantization.floats import BF16, F16, F32, F64
from shearling.quantization.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from shearling.quantization.gguf_superblocks import Q4_K, Q5_K, Q6_K
from shearling.quantization.int4 import Int4
from shearling.quantization.int8_groups import Int8Groups
from shearling.quantization.nf4 import NF4, NF4Double

__all__ = ["CODECS", "GROUPED", "QUANTIZED", "Codec", "FloatArray", "Part", "Parts", "Unpacked", "parse_codec"]

_FLOATS: tuple[Codec, ...] = (F32(), F16(), BF16(), F64())
_BLOCKS: tuple[Codec, ...] = (Q8_0(), Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q4_K(), Q5_K(), Q6_K())

CODECS: dict[str, Codec] = {codec.name: codec for codec in (*_FLOATS, *_BLOCKS)}
"""By name, those whose group is fixed."""

GROUPED: dict[str, Callable[..., Codec]] = {codec.name: codec for codec in (Int8Groups, Int4, NF4, NF4Double)}
"""By name, those that are made for a group: `GROUPED["int4"](128)`, or of their usual one: `GROUPED["int4"]()`."""

QUANTIZED: tuple[str, ...] = (*(codec.name for codec in _BLOCKS if codec.writable), *GROUPED)
"""Names of what a model's matrices can be quantized to."""


def parse_codec(name: str, group: int | None = None) -> Codec:
    """A codec by its name, in capitals or not.

    Args:
        name: a key of `CODECS` or `GROUPED`.
        group: weights that share a scale, of the latter; None for the codec's usual one.

    Raises:
        UserError: there is none of that name, or it has no such group.
    """
    if make := GROUPED.get(name.lower()):
        return make() if group is None else make(group)
    if not (codec := CODECS.get(name.lower())):
        raise UserError(f"no codec is called {name!r}: choose one of {', '.join([*CODECS, *GROUPED])}")
    if group not in (None, codec.group):
        raise UserError(f"{codec.name} has no groups of {group}: leave the group out; {', '.join(GROUPED)} take one")
    return codec
