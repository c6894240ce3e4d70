"""The engine of compiled kernels."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.engine.kernels.compiling import kernel
from shearling.engine.kernels.crew import Crew
from shearling.engine.kernels.forward import IN_A_SET, PLAN
from shearling.engine.kernels.layers import CACHE, KEPT, attend, keep
from shearling.engine.kernels.records import BLOCK, VECTORS
from shearling.engine.kernels.vectors import LANES
from shearling.engine.memory import reserved
from shearling.engine.packing import Packed
from shearling.engine.session import Engine, Session, fitting_context, fitting_threads
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint, StoredTensor
from shearling.formats.pages import PagesHeld
from shearling.models.rope import inverse_frequencies
from shearling.quantization import FloatArray

TOKENS_AT_ONCE = 128
"""Tokens of a text that pass through the model together: their vectors stay in the cache beside a tile of weights."""

ALIGNMENT = 64
PAGES_HELD = 1 << 18
"""Bytes of a file that stay in memory beside what was packed of them."""

TIMES_AT_ONCE = 256


class FastEngine(Engine):
    """A model in LLaMA's graph, ready to run on kernels that LLVM has compiled for this processor.

    Args:
        checkpoint: the model; its floats are read where they lie, its quantized weights are packed.
        threads: that work together; default: the processor's cores.
        context: the longest sequence, in tokens; default: the model's.
        kv: how keys and values are kept: f32, bf16 or int8.

    Raises:
        UserError: the model is not in LLaMA's graph, or an argument does not fit.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, threads: int | None = None, context: int | None = None, kv: str = "f32"
    ) -> None:
        spec = checkpoint.spec
        if beyond := spec.beyond_llama():
            raise UserError(f"{checkpoint.origin}: the engine runs LLaMA's graph, which lacks {', '.join(beyond)}")
        if kv not in KEPT:
            raise UserError(f"kv: {kv!r} is no way to keep keys and values: {', '.join(KEPT)}")
        self.spec = spec
        self.context = fitting_context(spec, context)
        self.kv = kv
        self.threads = fitting_threads(threads)
        pages = PagesHeld(checkpoint.tensors.values(), PAGES_HELD)
        pages.let_go()  # what the reader has looked through
        self.packed = _pack(checkpoint, pages)
        self._room = _Room()
        self._lock = threading.Lock()
        self._plan = np.zeros(1, PLAN)
        self._sets = np.zeros(IN_A_SET * self.threads, VECTORS)
        self._angles_until = 0
        self._lay_out(checkpoint)
        pages.let_go()
        self._crew = Crew(self.threads, self._plan)

    def session(self, sequences: int = 1) -> "FastSession":
        return FastSession(self, sequences)

    def run(
        self, cache: npt.NDArray[Any], tokens: Sequence[int], where: tuple[Any, Any], ends: Sequence[int]
    ) -> FloatArray:
        """One pass.

        Args:
            cache: the session's record.
            tokens: of any sequences.
            where: the sequence, and the time in it, of each.
            ends: the tokens whose logits are asked for, by their place in `tokens`.

        Returns:
            float32 (len(ends), V).
        """
        with self._lock:
            self._reserve(len(tokens), int(cache["capacity"][0]))
            job = np.array([*tokens, *where[0], *where[1], *ends], np.int64)
            n, plan = len(tokens), self._plan
            self._turn_until(int(max(where[1])) + 1)
            plan["count"], plan["end_count"] = n, len(ends)
            for place, name in enumerate(("tokens", "sequences", "times", "ends")):
                plan[name] = job.ctypes.data + 8 * n * place
            logits = np.empty((len(ends), int(plan["logit_stride"][0])), np.float32)
            plan["logits"] = logits.ctypes.data
            plan["cache"] = cache.ctypes.data
            self._crew.run()
            return logits[:, : self.spec.vocab_size]

    def _lay_out(self, checkpoint: Checkpoint) -> None:
        spec, plan = self.spec, self._plan
        stride = _padded(spec.d_model)
        norms = np.zeros((2 * spec.n_layers + 1, stride), np.float32)
        for row, name in enumerate(_norm_names(spec.n_layers)):
            norms[row, : spec.d_model] = checkpoint.tensors[name].read()
        self._cosines = np.empty((self.context, spec.head_dim // 2), np.float32)
        self._sines = np.empty_like(self._cosines)
        sizes = {
            "d_model": spec.d_model, "n_layers": spec.n_layers, "n_heads": spec.n_heads, "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim, "window": spec.sliding_window or 0, "adjacent": checkpoint.rotary == "adjacent",
            "quantized": self.packed.quantized,
            "matrices": self.packed.finish(), "sets": self._sets.ctypes.data,
            "norms": self.packed.address(norms), "cosines": self._cosines.ctypes.data,
            "sines": self._sines.ctypes.data, "threads": self.threads, "eps": spec.norm.eps,  # type: ignore[union-attr]
            "logit_stride": _padded(spec.vocab_size),
            "barrier": self._room.numbers("barrier", 128 // 4),
        }  # fmt: skip
        for name, value in sizes.items():
            plan[name] = value

    def _reserve(self, tokens: int, capacity: int) -> None:
        """Room for the vectors of so many tokens, and the scores of so many keys."""
        spec, plan, room = self.spec, self._plan, self._room
        if tokens > room.count:
            count = room.count = tokens
            d_model, hidden = _padded(spec.d_model), _padded(spec.intermediate_size)
            mixed = _padded(spec.n_heads * spec.head_dim + LANES)  # whole vectors are read of the last head, too
            plan["stride"], plan["qkv_stride"] = d_model, mixed
            for name, width in (
                ("stream", d_model),
                ("queries", mixed),
                ("keys", mixed),
                ("values", mixed),
                ("ups", hidden),
            ):
                plan[name] = room.numbers(name, count * width)
            shared = [0, room.numbers("mixed", count * mixed), room.numbers("hidden", count * hidden)]
            for thread in range(self.threads):
                of_set = count if thread == 0 else 1
                widths = zip((spec.d_model, spec.n_heads * spec.head_dim, spec.intermediate_size), shared, strict=True)
                for number, (width, floats) in enumerate(widths):
                    name = f"set {thread} {number}"
                    self._sets[IN_A_SET * thread + number] = room.vectors(name, of_set, width, floats)
        if capacity > room.capacity:
            room.capacity = capacity
            plan["score_stride"] = capacity + _padded(spec.head_dim)
            plan["scores"] = room.numbers("scores", int(plan["score_stride"][0]) * self.threads)

    def _turn_until(self, end: int) -> None:
        """The angles of all times before `end`, made as far as they are needed."""
        if end <= self._angles_until:
            return
        frequencies, factor = inverse_frequencies(self.spec)
        times = np.arange(self._angles_until, min(max(end, self._angles_until + TIMES_AT_ONCE), self.context))
        angles = times.astype(np.float32)[:, None] * frequencies
        self._cosines[times] = np.cos(angles) * factor
        self._sines[times] = np.sin(angles) * factor
        self._angles_until = int(times[-1]) + 1


class FastSession(Session):
    """Sequences of a `FastEngine`."""

    def __init__(self, engine: FastEngine, sequences: int) -> None:
        super().__init__(engine.spec, engine.context, sequences)
        spec = engine.spec
        dtype, kind = KEPT[engine.kv]
        capacity, padded = -(-engine.context // LANES) * LANES, -(-spec.head_dim // LANES) * LANES
        heads = spec.n_layers * sequences * spec.kv_heads
        shape = (heads, capacity, padded)
        try:
            keys, values = reserved(shape, dtype), reserved(shape, dtype)
            scales = reserved((2, heads, capacity), np.dtype(np.float32)) if dtype.kind == "i" else None
        except (OSError, OverflowError) as error:
            gigabytes = 2 * math.prod(shape) * dtype.itemsize / 1e9
            raise UserError(f"{sequences} sequences of {engine.context} tokens: their keys and values may take "
                            f"{gigabytes:,.1f} GB, which the system refuses: take fewer, a shorter context, or kv int8"
            ) from error  # fmt: skip
        self._arrays = (keys, values, scales)
        self._engine = engine
        scale_addresses = (0, 0) if scales is None else tuple(part.ctypes.data for part in scales)
        self._cache = np.zeros(1, CACHE)
        self._cache[0] = (
            kernel(keep, kind, kind), kernel(attend, kind, kind), sequences, spec.kv_heads, spec.head_dim, padded,
            capacity, keys.ctypes.data, values.ctypes.data, *scale_addresses,
        )  # fmt: skip

    def _feed(self, tokens: Sequence[int], sequence: int, *, every: bool) -> FloatArray:
        found = []
        for first in range(0, len(tokens), TOKENS_AT_ONCE):
            piece = tokens[first : first + TOKENS_AT_ONCE]
            begin = self.lengths[sequence] + first
            where = ([sequence] * len(piece), range(begin, begin + len(piece)))
            ends = range(len(piece)) if every else [len(piece) - 1]
            logits = self._engine.run(self._cache, piece, where, ends)
            if every or first + TOKENS_AT_ONCE >= len(tokens):
                found.append(logits)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _step(self, tokens: Sequence[int], sequences: list[int]) -> FloatArray:
        times = [self.lengths[sequence] for sequence in sequences]
        return self._engine.run(self._cache, tokens, (sequences, times), range(len(tokens)))


class _Room:
    """Arrays of fp32 that grow, aligned to a line of the processor's cache."""

    def __init__(self) -> None:
        self._arrays: dict[str, FloatArray] = {}
        self.count = 0
        self.capacity = 0

    def numbers(self, name: str, count: int) -> int:
        """The address of so many zeros."""
        array = np.zeros(count + 2 * ALIGNMENT // 4, np.float32)
        self._arrays[name] = array
        return -(-int(array.ctypes.data) // ALIGNMENT) * ALIGNMENT

    def vectors(self, name: str, count: int, width: int, floats: int) -> tuple[int, ...]:
        """A record of VECTORS; `floats` is the address of floats that others share, or 0."""
        stride, blocks = _padded(width), width // BLOCK
        return (
            stride,
            floats or self.numbers(name, count * stride),
            blocks,
            self.numbers(f"{name} quants", count * blocks * 2 * BLOCK // 4),
            self.numbers(f"{name} scales", count * blocks),
            self.numbers(f"{name} sums", count * blocks),
            self.numbers(f"{name} totals", count * blocks),
        )


def _pack(checkpoint: Checkpoint, pages: PagesHeld) -> Packed:
    packed, tensors = Packed(pages.count), checkpoint.tensors
    for layer in range(checkpoint.spec.n_layers):
        for part in ("attention.branch.q", "attention.branch.k", "attention.branch.v", "attention.branch.o",
                     "feedforward.branch.gate", "feedforward.branch.up", "feedforward.branch.down"):  # fmt: skip
            name = f"layers.{layer}.{part}_proj"
            packed.add(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
    packed.add(tensors["embed.weight"])
    head: StoredTensor | None = tensors.get("head.weight")
    if head is None:
        packed.repeat(-1)
    else:
        packed.add(head)
    return packed


def _norm_names(layers: int) -> list[str]:
    inside = [f"layers.{layer}.{part}.norm.weight" for layer in range(layers) for part in ("attention", "feedforward")]
    return [*inside, "final_norm.weight"]


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT
