"""What was measured of decoding, as figures and as text."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from shearling.bench.decode_contenders import OURS

Speeds = Mapping[str, Mapping[str, Sequence[float]]]
"""Tokens per second in each round, by contender and measure."""


def summarize(
    what: Mapping[str, Any],
    speeds: Speeds,
    first_tokens: Mapping[str, Sequence[float]],
    facts: Mapping[str, Mapping[str, Any]],
    peaks: Mapping[str, Any],
    bandwidths: Sequence[Mapping[str, float | None]],
    *,
    flops_per_token: int,
    memory: Mapping[str, int],
) -> dict[str, Any]:
    """Medians over rounds, ratios to peers and shares of ceilings.

    Args:
        what: was asked for; it comes first in the result.
        first_tokens: seconds to the first token of each cold start, by contender; empty where there are none.
        facts: of each contender: `weights` (how they are stored), `bytes_per_token`, `peak_bytes`, the greedy `text`,
            and `anonymous_bytes` where the system says.
        peaks, bandwidths: as `Ceilings` gives them, the latter in each round.
        flops_per_token: of prefill.
        memory: bytes of our weights, our keys and values, and our process without a model.

    Returns:
        The same as JSON has it. A share of the decoding ceiling is tokens/s · bytes per token / bandwidth of the same
        round, that of the cache where the bytes fit into it. `over_weights` is what a model adds to our process, but
        for keys and values, over the weights as stored.
    """
    ours = facts[OURS]
    added = ours["peak_bytes"] - memory["without_model_bytes"] - memory["kv_bytes"]
    return {
        **what,
        "ceilings": {
            **peaks,
            **{name: _median([each[name] for each in bandwidths]) for name in bandwidths[0]},
            "rounds": [dict(each) for each in bandwidths],
        },
        "entries": [
            _entry(name, speeds[name], first_tokens.get(name), facts[name], peaks, bandwidths, flops_per_token)
            for name in speeds
        ],
        "ratios": {
            name: _ratios(speeds[OURS], speeds[name], ours, facts[name])
            | {"first_token": _first_ratio(first_tokens.get(OURS), first_tokens.get(name))}
            for name in speeds
            if name != OURS
        },
        "memory": {
            **memory,
            "anonymous_bytes": ours.get("anonymous_bytes"),
            "over_weights": added / memory["weights_bytes"],
        },
    }


def _entry(
    name: str,
    speeds: Mapping[str, Sequence[float]],
    first_tokens: Sequence[float] | None,
    facts: Mapping[str, Any],
    peaks: Mapping[str, Any],
    bandwidths: Sequence[Mapping[str, float | None]],
    flops_per_token: int,
) -> dict[str, Any]:
    middle = {measure: median(each) for measure, each in speeds.items()}
    in_cache = facts["bytes_per_token"] <= (peaks["cache_bytes"] or 0)
    limit = "cache_bytes_per_second" if in_cache else "dram_bytes_per_second"
    tokens_at_most = [(each[limit] or math.inf) / facts["bytes_per_token"] for each in bandwidths]
    peak = peaks["fp32_flops" if facts["weights"] == "f32" else "bf16_flops"]
    return {
        "contender": name,
        "weights": facts["weights"],
        **{f"{measure}_tokens_per_second": middle.get(measure) for measure in ("decode", "prefill", "batch")},
        "first_token_seconds": median(first_tokens) if first_tokens else None,
        "peak_bytes": facts["peak_bytes"],
        "bytes_per_token": facts["bytes_per_token"],
        "decode_ceiling": "cache" if in_cache else "DRAM",
        "decode_share": median(a / b for a, b in zip(speeds["decode"], tokens_at_most, strict=True)),
        "prefill_share": middle["prefill"] * flops_per_token / peak,
        "rounds": {measure: list(each) for measure, each in speeds.items()},
        "cold_starts": list(first_tokens or ()),
    }


def _ratios(
    ours: Mapping[str, Sequence[float]],
    theirs: Mapping[str, Sequence[float]],
    our_facts: Mapping[str, Any],
    their_facts: Mapping[str, Any],
) -> dict[str, Any]:
    pairs = zip(our_facts["text"], their_facts["text"], strict=True)
    differs = next((number for number, (a, b) in enumerate(pairs) if a != b), len(our_facts["text"]))
    return {
        **{
            measure: median(a / b for a, b in zip(ours[measure], theirs[measure], strict=True))
            for measure in ours
            if measure in theirs
        },
        "memory": our_facts["peak_bytes"] / their_facts["peak_bytes"],
        "same_tokens": differs,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _first_ratio(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> float | None:
    """Of seconds, theirs over ours: above 1 we are faster, as in the other ratios."""
    return median(b / a for a, b in zip(ours, theirs, strict=True)) if ours and theirs else None


def decode_table(results: Mapping[str, Any]) -> str:
    """A line for every contender, our ratios, and the ceilings with the shares of them."""
    entries, ratios = results["entries"], results["ratios"]
    lines = [
        f"{results['model']}, {results['weights']}, {_counted(results['threads'], 'thread')}: "
        f"{_counted(results['tokens'], 'token')} decoded, {results['prompt']} read at once, "
        f"{_counted(results['batch'], 'sequence')} side by side; {_counted(results['rounds'], 'round')}",
        f"{'':<14}{'weights':<9}{'decode tok/s':>13}{'prefill tok/s':>15}{'batch tok/s':>13}{'first token':>13}"
        f"{'peak memory':>13}{'decode x':>10}{'prefill x':>11}",
    ]
    for entry in entries:
        ratio = ratios.get(entry["contender"], {})
        lines.append(
            f"{entry['contender']:<14}{entry['weights']:<9}{_cell(entry['decode_tokens_per_second'], 13)}"
            f"{_cell(entry['prefill_tokens_per_second'], 15)}{_cell(entry['batch_tokens_per_second'], 13)}"
            f"{_cell(entry['first_token_seconds'], 11, '.2f')}{' s' if entry['first_token_seconds'] else '  '}"
            f"{entry['peak_bytes'] / 2**20:>9,.0f} MiB{_cell(ratio.get('decode'), 10, '.2f')}"
            f"{_cell(ratio.get('prefill'), 11, '.2f')}"
        )
    lines += [_ratio_line(name, ratio, results["tokens"]) for name, ratio in ratios.items()]
    return "\n".join([*lines, _memory_line(results["memory"]), *_ceiling_lines(results)])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cell(value: float | None, width: int, style: str = ",.0f") -> str:
    return f"{'-' if value is None else format(value, style):>{width}}"


def _ratio_line(name: str, ratio: Mapping[str, Any], tokens: int) -> str:
    first = "" if ratio["first_token"] is None else f", first token {ratio['first_token']:.2f} x"
    return (
        f"ours / {name}: decode {ratio['decode']:.2f} x, prefill {ratio['prefill']:.2f} x{first}, "
        f"{ratio['memory']:.2f} x memory; {ratio['same_tokens']} of {tokens} greedy tokens are the same"
    )


def _memory_line(memory: Mapping[str, Any]) -> str:
    anonymous = memory["anonymous_bytes"]
    own = "" if anonymous is None else f"; {anonymous / 2**20:,.0f} MiB of the whole lie in no file"
    return (
        f"ours adds {memory['over_weights']:.2f} x its weights ({memory['weights_bytes'] / 2**20:,.1f} MiB) to a "
        f"process without a model ({memory['without_model_bytes'] / 2**20:,.0f} MiB), and "
        f"{memory['kv_bytes'] / 2**20:,.1f} MiB of keys and values{own}"
    )


def _ceiling_lines(results: Mapping[str, Any]) -> list[str]:
    ceilings = results["ceilings"]
    cache = "size of the cache unknown, so shares are of DRAM"
    if ceilings["cache_bytes"]:
        speed = ceilings["cache_bytes_per_second"] / 1e9
        cache = f"{speed:,.0f} GB/s from a cache of {ceilings['cache_bytes'] / 2**20:,.0f} MiB"
    lines = [
        f"this machine reads {ceilings['dram_bytes_per_second'] / 1e9:,.0f} GB/s from DRAM, {cache}; multiplies "
        f"{ceilings['fp32_flops'] / 1e9:,.0f} GFLOP/s in fp32, {ceilings['bf16_flops'] / 1e9:,.0f} in bf16"
    ]
    for entry in results["entries"]:
        peak = "fp32" if entry["weights"] == "f32" else "bf16"
        lines.append(
            f"{entry['contender']:<14}reads {entry['bytes_per_token'] / 1e6:,.1f} MB a token: "
            f"{entry['decode_share']:.0%} of {entry['decode_ceiling']}; prefill {entry['prefill_share']:.0%} of the "
            f"{peak} matmul peak"
        )
    return lines
