"""One contender in a process of its own: `python -m shearling.bench.decode_worker`, driven by a `Worker`.

The first line is an order. With `cold` the process reads one token, writes the next and ends: time to the first token
is that of such a process. Else it warms up on one text, answers with its facts, and then answers each line that names a
measure with tokens per second.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shearling.bench.decode_contenders import CONTENDERS, START, Decoder, FastDecoder, Setup
from shearling.bench.process import anonymous_bytes, answer, peak_bytes
from shearling.errors import UserError

SHORTEST = 0.3
"""Seconds that a measurement lasts at least: what takes less is done again."""

REST = 0.05
"""Seconds before a measurement in which the threads of the last contender lie down: some spin after their work."""


def decode(decoder: Decoder, order: dict[str, Any]) -> list[int]:
    """A greedy text, token by token."""
    decoder.restart()
    text = [START % decoder.vocab_size]
    for _ in range(order["tokens"]):
        text.append(decoder.feed(text[-1:]))
    return text[1:]


def prefill(decoder: Decoder, order: dict[str, Any]) -> list[int]:
    """A prompt in one call."""
    tokens = [(START + number) % decoder.vocab_size for number in range(order["prompt"])]
    decoder.restart()
    decoder.feed(tokens)
    return tokens


def batch(decoder: Decoder, order: dict[str, Any]) -> list[int]:
    """Greedy texts side by side, each from a token of its own."""
    assert isinstance(decoder, FastDecoder), "only ours has this measure"
    decoder.restart_several(order["batch"])
    tokens = [(START + number) % decoder.vocab_size for number in range(order["batch"])]
    found = []
    for _ in range(order["tokens"]):
        tokens = decoder.feed_each(tokens)
        found += tokens
    return found


MEASURES: dict[str, Callable[[Decoder, dict[str, Any]], list[int]]] = {
    "decode": decode,
    "prefill": prefill,
    "batch": batch,
}
"""Each gives the tokens that it took, or found."""


def main() -> None:
    """Serve until standard input ends."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    setup = Setup(Path(order["path"]), order["threads"], order["context"])
    try:
        decoder = CONTENDERS[order["contender"]].build(setup)
    except UserError as error:
        return answer(error=str(error))
    if order.get("cold"):
        print(decoder.feed([START % decoder.vocab_size]), flush=True)
        return None
    prefill(decoder, order)
    answer(
        text=decode(decoder, order),
        measures=decoder.measures,
        bytes_per_token=decoder.bytes_per_token,
        peak_bytes=peak_bytes(),
        anonymous_bytes=anonymous_bytes(),
    )
    if "batch" in decoder.measures:  # only now: memory was that of one text
        batch(decoder, order)
    for line in sys.stdin:
        answer(tokens_per_second=_speed(MEASURES[line.strip()], decoder, order))


def _speed(measure: Callable[[Decoder, dict[str, Any]], list[int]], decoder: Decoder, order: dict[str, Any]) -> float:
    time.sleep(REST)
    count = 0
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < SHORTEST:
        count += len(measure(decoder, order))
    return count / seconds


if __name__ == "__main__":
    main()
