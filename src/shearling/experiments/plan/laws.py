"""Scaling laws: what loss to expect of so many parameters and so much text.

Loss is in bits per byte, which no tokenizer changes; N counts the parameters that each token is multiplied with, head
included. The law is L(N, D) = floor + A / N^alpha + B / D^beta (arXiv 2203.15556, equation 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shearling.config import load
from shearling.errors import UserError
from shearling.models.cost import parameters
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.spec import ExperimentSpec

ALL_PARTS = 5
"""Runs from which on every part of the law is fitted; fewer move its height alone."""

HUBER = 1e-3
"""Where the fit of logarithms turns from squares to absolute values (arXiv 2203.15556, appendix D.2)."""

REPEATED = 15.4
"""Epochs of repetition that are worth as much new text as all further ones together (arXiv 2305.16264, section 5)."""


@dataclass(frozen=True)
class Law:
    """L(N, D), and where it comes from."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    source: str

    def loss(self, n: float, tokens: float) -> float:
        """Bits per byte of a model of `n` multiplied parameters after `tokens` different tokens."""
        return self.floor + self.a / n**self.alpha + self.b / tokens**self.beta


@dataclass(frozen=True)
class Point:
    """What one run came to."""

    n: int
    tokens: int
    bits_per_byte: float
    path: Path


def effective_tokens(tokens: float, available: float) -> float:
    """How much new text `tokens` are worth where only `available` are different (arXiv 2305.16264, equation 5)."""
    if tokens <= available:
        return tokens
    repetitions = tokens / available - 1
    return available * (1 + REPEATED * (1 - math.exp(-repetitions / REPEATED)))


def read_runs(folders: Sequence[Path]) -> list[Point]:
    """The finished runs in `folders`.

    Raises:
        UserError: a folder holds no finished run, or one without bits per byte.
    """
    points = []
    for folder in folders:
        run = RunFolder(folder)
        if not run.results.exists():
            raise UserError(f"--fit {folder}: holds no finished run: give folders with a results.json")
        results = read_json(run.results)
        config = load(ExperimentSpec, run.config).value
        bits = results.get("bits_per_byte")
        if bits is None or results.get("outcome") != "finished":
            raise UserError(f"--fit {folder}: the run diverged or has no bits per byte: leave it out")
        tokens = effective_tokens(results["tokens"], results["tokens"] / max(results["epochs"], 1.0))
        points.append(Point(parameters(config.model).multiplied, round(tokens), bits, folder))
    return points


def fit(points: Sequence[Point], law: Law) -> Law:
    """`law`, brought to one's own runs: its height by a few, all its parts by five or more.

    Raises:
        UserError: the runs are too much alike to tell parameters from tokens.
    """
    if len(points) < ALL_PARTS:
        scale = float(np.exp(np.mean([np.log(p.bits_per_byte / law.loss(p.n, p.tokens)) for p in points])))
        source = f"{law.source}, its height by {len(points)} of your runs (× {scale:.3f})"
        return replace(law, floor=law.floor * scale, a=law.a * scale, b=law.b * scale, source=source)
    for what, values in (("sizes", [p.n for p in points]), ("lengths", [p.tokens for p in points])):
        if max(values) < 2 * min(values):
            raise UserError(f"--fit: the runs' {what} differ by less than a factor of two: add others")
    from scipy.optimize import least_squares

    n, tokens, bits = (np.array([getattr(p, key) for p in points], float) for key in ("n", "tokens", "bits_per_byte"))

    def off(x: np.ndarray) -> np.ndarray:
        floor, a, b, alpha, beta = np.exp(x[0]), np.exp(x[1]), np.exp(x[2]), x[3], x[4]
        return np.log(floor + a / n**alpha + b / tokens**beta) - np.log(bits)

    low, high = [-4, -5, -5, 0.1, 0.1], [np.log(bits.min()), 20, 20, 0.6, 0.6]
    starts = [
        [np.log(floor), np.log(bits.mean()) + alpha * np.log(n.mean()) - 1,
         np.log(bits.mean()) + beta * np.log(tokens.mean()) - 1, alpha, beta]
        for floor in (0.3, 0.6) for alpha in (0.2, 0.4) for beta in (0.2, 0.4)
    ]  # fmt: skip
    fits = [
        least_squares(off, np.clip(start, low, high), bounds=(low, high), loss="huber", f_scale=HUBER)
        for start in starts
    ]
    best = min(fits, key=lambda each: each.cost).x
    return Law(
        float(np.exp(best[0])), float(np.exp(best[1])), float(best[3]), float(np.exp(best[2])), float(best[4]),
        f"fitted to {len(points)} of your runs",
    )  # fmt: skip
