"""Weights to encode, and the bytes of a foreign file, for the tests of codecs."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def gaussian(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)


def matrices(columns: int, least: float = 0.0, most: float = 3e38) -> st.SearchStrategy[np.ndarray]:
    """Rows of float32 whose magnitudes are zero or in [least, most]: any bits, bell-shaped, constant, one outlier."""
    most32, least32 = np.nextafter(np.float32(most), np.float32(0)), np.float32(least)
    numbers = st.floats(float(least32), float(most32), width=32)
    weights = numbers | numbers.map(lambda x: -x) | st.just(0.0)

    @st.composite
    def shaped(draw: st.DrawFn) -> np.ndarray:
        peak = draw(weights)
        x = gaussian(draw(st.integers(1, 3)), columns, draw(st.integers(0, 1000)))
        x = {
            "bell": x / np.abs(x).max(),
            "constant": np.ones_like(x),
            "one side": np.abs(x) / np.abs(x).max(),
            "outlier": np.where(np.arange(columns) == draw(st.integers(0, columns - 1)), 1, x / 100),
            "ends": np.sign(x),
        }[draw(st.sampled_from(["bell", "constant", "one side", "outlier", "ends"]))]
        return (x * np.float64(peak)).astype(np.float32)

    rows = st.integers(1, 2).flatmap(lambda count: arrays(np.float32, (count, columns), elements=weights, fill=weights))
    return rows | shaped()


def foreign_parts(codec, rows: int, columns: int, seed: int) -> tuple[np.ndarray, ...]:
    """What a file of random bytes holds."""
    draw = np.random.default_rng(seed)
    return tuple(
        np.frombuffer(draw.bytes(rows * int(np.prod(shape)) * dtype.itemsize), dtype).reshape(rows, *shape)
        for dtype, shape in codec.parts(columns)
    )


def per_weight(of_groups: np.ndarray, columns: int) -> np.ndarray:
    """Figures of groups (R, C / group) as (R, C), in float64."""
    return np.repeat(of_groups.astype(np.float64), columns // of_groups.shape[-1], axis=-1)


def in_groups(x_RC: np.ndarray, group: int) -> np.ndarray:
    """(R, C / group, group) in float64."""
    return x_RC.astype(np.float64).reshape(len(x_RC), -1, group)
