"""What four-bit codecs lose on weights as networks have them at the start: normally distributed.

    python benchmarks/codec_errors.py [--rows 1024] [--columns 4096]

Prints a table: the root mean square error in units of the weights' standard deviation, by codec and group, with the
bits that a weight takes. The last column is symmetric: a group's largest magnitude over 7, rounded, without a zero
point and with the scale in float32.
"""

import argparse

import numpy as np

from shearling.quantization import parse_codec

GROUPS = (32, 64, 128)


def error(codec: str, group: int | None, x_RC: np.ndarray) -> tuple[float, float]:
    """The root mean square error of what comes back, and the bits that a number takes."""
    encoder = parse_codec(codec, group)
    returned_RC = encoder.decode(encoder.encode(x_RC))
    bits = 8 * encoder.row_bytes(x_RC.shape[1]) / x_RC.shape[1]
    return float(np.sqrt(np.mean((returned_RC - x_RC).astype(np.float64) ** 2))), bits


def symmetric_error(group: int, x_RC: np.ndarray) -> float:
    """The same of whole numbers -7..7 times a group's largest magnitude over 7."""
    groups_Ng = x_RC.reshape(-1, group)
    scales_N1 = np.abs(groups_Ng).max(axis=1, keepdims=True) / 7
    difference_Ng = np.rint(groups_Ng / scales_N1) * scales_N1 - groups_Ng
    return float(np.sqrt(np.mean(difference_Ng.astype(np.float64) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=4096)
    arguments = parser.parse_args()
    x_RC = np.random.default_rng(0).standard_normal((arguments.rows, arguments.columns)).astype(np.float32)
    print("| group | int4 | nf4 | nf4-double | symmetric |\n|---|---|---|---|---|")
    for group in GROUPS:
        figures = (error(codec, group, x_RC) for codec in ("int4", "nf4", "nf4-double"))
        shown = " | ".join(f"{loss:.4f} ({bits:.2f} bits)" for loss, bits in figures)
        print(f"| {group} | {shown} | {symmetric_error(group, x_RC):.4f} |")
    blocks = ", ".join(f"{codec} {error(codec, None, x_RC)[0]:.4f}" for codec in ("q4_0", "q4_1", "q8_0"))
    print(f"\nllama.cpp's, in blocks of 32: {blocks}")


if __name__ == "__main__":
    main()
