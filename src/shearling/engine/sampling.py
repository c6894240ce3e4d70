"""Drawing a token from logits, in llama2.c's order of operations and with its generator: same seed, same text.

Up to `SEQUENTIAL` tokens sums run token by token in float32, as C takes them, so that a seed gives the token that
`run` gives. Beyond, that alone would take as long as a decoded token of a small model: sums go by blocks, and where a
coin falls within their rounding the draw may end on the neighbour. Of 600 draws with logits of N(0, 4) and
top-p none or one did; where all tokens are nearly as likely as each other, a few in a hundred.

What llama2.c does not have (repetition penalty, top-k, min-p) acts before, and leaves no trace where it is off.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from shearling.engine.arguments import number, whole_number
from shearling.errors import UserError
from shearling.quantization import FloatArray

SEQUENTIAL = 4096
BLOCK = 256
CLOCK_SEEDS = 1 << 32


RANGES: dict[str, tuple[Callable[[str, object], float], Callable[[Any], bool], str]] = {
    "temperature": (number, lambda value: value >= 0, "at least 0"),
    "top_p": (number, lambda value: 0 <= value <= 1, "between 0 and 1"),
    "top_k": (whole_number, lambda value: value >= 0, "at least 0"),
    "min_p": (number, lambda value: 0 <= value <= 1, "between 0 and 1"),
    "repetition_penalty": (number, lambda value: 0 < value < math.inf, "above 0, and finite"),
    "repetition_window": (whole_number, lambda value: value >= 0, "at least 0"),
    "seed": (whole_number, lambda value: 0 <= value < 1 << 64, "between 0 and 2^64 - 1"),
}
"""Of each field of `Sampling`: what makes a number of it, whether that fits, and what does, in words."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. What acts, acts in this order: penalty, temperature, top-k, min-p, top-p.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token, and no coin.
        top_p: only the likeliest tokens are drawn, up to this mass, and with the one that crosses it (arXiv
            1904.09751); 0 and 1 cut nothing.
        top_k: so many likeliest tokens, and what equals the last of them; 0 cuts nothing.
        min_p: tokens at least this share as likely as the likeliest (arXiv 2407.01082); 0 cuts nothing.
        repetition_penalty: divides the logits above 0, and multiplies those below, of tokens that the text has (CTRL,
            arXiv 1909.05858); 1 changes nothing.
        repetition_window: how many of the last tokens, those of the prompt among them, are penalized.
        seed: of the coins, 1 to 2^64 - 1; 0 and None take the clock.

    Raises:
        UserError: a value is no number, or out of its range.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, fits, range_) in RANGES.items():
            given = getattr(self, name)
            if given is None and name == "seed":
                continue
            value = kind(name, given)
            if not fits(value):
                raise UserError(f"{name} {value}: should be {range_}")
            object.__setattr__(self, name, value)  # Python's own: numpy's integers overflow in the generator


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """What a caller in Python gives by name.

    Raises:
        UserError: a name is no field of `Sampling`, or a value is no number or out of its range.
    """
    known = [field.name for field in fields(Sampling)]
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{', '.join(unknown)}: no such option: known are max_new_tokens, stop, {', '.join(known)}")
    return Sampling(**options)


def clock_seed() -> int:
    """A seed from the clock, short enough to be typed again."""
    return time.time_ns() % CLOCK_SEEDS or 1


class Sampler:
    """Draws the tokens of one text.

    Args:
        sampling: how.
        vocab_size: only tokens below it are drawn: an embedding may have more rows than its tokenizer has pieces.

    Attributes:
        seed: of the coins; the clock's where none was given.
    """

    def __init__(self, sampling: Sampling, vocab_size: int | None = None) -> None:
        self.sampling = sampling
        self.seed = sampling.seed or clock_seed()
        self._vocab_size = vocab_size
        self._state = self.seed
        with np.errstate(over="ignore", under="ignore"):  # infinite, or 0: both have a meaning
            self._temperature = np.float32(sampling.temperature)
            self._top_p = np.float32(sampling.top_p)

    def draw(self, logits_V: FloatArray, text: Sequence[int] = ()) -> int:
        """A token.

        Args:
            logits_V: float32 (V,), left as they are.
            text: the tokens so far.

        Raises:
            UserError: a logit is NaN or infinite.
        """
        x_V = logits_V[: self._vocab_size]
        if not (np.isfinite(x_V.min()) and np.isfinite(x_V.max())):
            raise UserError(
                "the model's logits are not finite: its training diverged, or its file is damaged: "
                "train it with a lower learning rate, or fetch it again"
            )
        if self.sampling.repetition_penalty != 1 and text:
            x_V = self._penalized(x_V, text)
        likeliest = int(x_V.argmax())
        if self._temperature == 0:
            return likeliest
        coin = self._flip()
        with np.errstate(over="ignore"):
            x_V = x_V / self._temperature
            if not np.isfinite(x_V[likeliest]):  # so cold that nothing but the likeliest is left
                return likeliest
            tokens = self._kept(x_V, x_V[likeliest])
            if tokens is None:
                return _choose(x_V, self._top_p, coin)
            return int(tokens[_choose(x_V[tokens], self._top_p, coin)])

    def skip(self, coins: int) -> None:
        """Throw coins away: those that llama2.c flips for tokens that it does not draw."""
        if self._temperature != 0:
            for _ in range(coins):
                self._flip()

    def _flip(self) -> np.float32:
        """A number in [0, 1) of 24 bits, by xorshift* (Vigna, arXiv 1402.6246)."""
        state = self._state
        state ^= state >> 12
        state ^= state << 25 & 0xFFFF_FFFF_FFFF_FFFF
        state ^= state >> 27
        self._state = state
        return np.float32((state * 0x2545_F491_4F6C_DD1D >> 40 & 0xFF_FFFF) / 0x100_0000)

    def _penalized(self, x_V: FloatArray, text: Sequence[int]) -> FloatArray:
        recent = text[len(text) - min(len(text), self.sampling.repetition_window) :]
        seen = np.unique(np.array([token for token in recent if token < len(x_V)], np.int64))
        penalized_V, penalty = x_V.copy(), np.float32(self.sampling.repetition_penalty)
        with np.errstate(over="ignore"):
            penalized_V[seen] = np.where(x_V[seen] > 0, x_V[seen] / penalty, x_V[seen] * penalty)
        return penalized_V

    def _kept(self, x_V: FloatArray, top: np.float32) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
        """The tokens that top-k and min-p leave, ascending; None where all are left."""
        least = -math.inf
        if 0 < self.sampling.top_k < len(x_V):
            least = float(np.partition(x_V, -self.sampling.top_k)[-self.sampling.top_k])
        if self.sampling.min_p > 0:
            least = max(least, float(top) + math.log(self.sampling.min_p))
        return np.flatnonzero(x_V >= np.float32(least)) if least > -math.inf else None


def _choose(x_N: FloatArray, top_p: np.float32, coin: np.float32) -> int:
    """Where in softmax(x), cut by top-p, the coin falls."""
    p_N = _softmax(x_N)
    if not 0 < top_p < 1 or len(p_N) == 1:
        return _first_above(p_N, coin)
    # Of n tokens those below this share cannot belong to the likeliest: what is left to sort is short.
    least = (np.float32(1) - top_p) / np.float32(len(p_N) - 1)
    ranked = np.sort(p_N[p_N >= least])[::-1]
    if not len(ranked):  # a tiny top_p, and all tokens as likely as each other
        return int(p_N.argmax())
    sums = np.cumsum(ranked)
    last = min(int(np.searchsorted(sums, top_p, "right")), len(sums) - 1)
    place = min(int(np.searchsorted(sums[: last + 1], coin * sums[last], "right")), last)
    equals_before = np.count_nonzero(ranked[:place] == ranked[place])  # which the sort left in the tokens' order
    return int(np.flatnonzero(p_N == ranked[place])[equals_before])


def _softmax(x_N: FloatArray) -> FloatArray:
    below_N = x_N - x_N.max()
    if len(x_N) > SEQUENTIAL:
        weights_N = np.exp(below_N)
        return weights_N / weights_N.sum()
    weights_N = np.exp(below_N.astype(np.float64)).astype(np.float32)  # as exact as C's expf
    return weights_N / np.cumsum(weights_N)[-1]


def _first_above(p_N: FloatArray, coin: np.float32) -> int:
    """The first place up to which the mass is above `coin`; the last, where rounding leaves none."""
    start, mass = 0, np.float32(0)
    if len(p_N) > SEQUENTIAL:
        ends = np.cumsum(np.add.reduceat(p_N, np.arange(0, len(p_N), BLOCK)))
        block = min(int(np.searchsorted(ends, coin, "right")), len(ends) - 1)
        start, mass = block * BLOCK, ends[block - 1] if block else mass
        p_N = p_N[start : start + BLOCK]
    return start + min(int(np.searchsorted(mass + np.cumsum(p_N), coin, "right")), len(p_N) - 1)
