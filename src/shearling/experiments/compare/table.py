"""A comparison as text for a terminal."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

_DESIGNS = {True: "paired", False: "independent samples"}
_UNITS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}


def render(comparison: dict[str, Any]) -> str:
    """The verdicts, then the figures that they come from."""
    blocks = [_verdicts(comparison), _arms(comparison)]
    if any(arm["tuning"] for arm in comparison["arms"]):
        blocks.append(_tunings(comparison["arms"]))
    if comparison["budgets"]:
        blocks.append(_budgets(comparison))
    blocks += ["\n".join(f"warning: {warning}" for warning in comparison["warnings"])]
    return "\n\n".join(block for block in blocks if block)


def _verdicts(comparison: dict[str, Any]) -> str:
    lines = [(arm["name"], arm["versus"]["verdict"]) for arm in comparison["arms"] if arm["versus"]]
    width = max(len(name) for name, _ in lines)
    head = f"{comparison['name']}: against {comparison['baseline']}"
    return "\n".join([head, *(f"  {name:<{width}}  {verdict}" for name, verdict in lines)])


def _arms(comparison: dict[str, Any]) -> str:
    rows = [("arm", "parameters", "learning rate", "loss", "sd", "difference", "95 % interval", "p, Holm", "visible")]
    for arm in comparison["arms"]:
        versus = arm["versus"] or {}
        interval = "" if versus.get("low") is None else f"{versus['low']:+.4f} to {versus['high']:+.4f}"
        rows.append(
            (
                arm["name"],
                f"{arm['parameters']:,}",
                f"{arm['learning_rate']:.3g}",
                f"{arm['mean']:.4f}",
                _number(arm["sd"], ".4f"),
                f"{versus['difference']:+.4f}" if versus else "baseline",
                interval,
                _number(versus.get("p_holm"), ".2g"),
                _number(versus.get("smallest_visible"), ".2g"),
            )
        )
    pairs = {arm["versus"]["paired"] for arm in comparison["arms"] if arm["versus"]}
    design = " and ".join(_DESIGNS[each] for each in sorted(pairs, reverse=True))
    count = len(comparison["seeds"])
    side = f"{comparison['jobs']} side by side, {comparison['threads']} thread{'s' * (comparison['threads'] > 1)} each"
    return "\n".join(
        [
            *_aligned(rows),
            f"final validation loss in nats per token over {count} seed{'s' * (count > 1)}, {design}; runs {side}",
            f"a run that diverged counts as ln V, {comparison['ceiling']:.4f}, and no loss for more; unigram loss "
            f"{comparison['unigram_loss']:.4f}",
            *_bits_per_byte(comparison["arms"]),
        ]
    )


def _bits_per_byte(arms: Sequence[dict[str, Any]]) -> list[str]:
    """What compares where losses do not."""
    found = {arm["name"]: [run["bits_per_byte"] for run in arm["runs"]] for arm in arms}
    comparable = all(arm["versus"]["comparable"] for arm in arms if arm["versus"])
    if comparable or any(each is None for own in found.values() for each in own):
        return []
    return ["bits per byte: " + ", ".join(f"{fmean(own):.4f} {name}" for name, own in found.items())]


def _tunings(arms: Iterable[dict[str, Any]]) -> str:
    lines = ["learning rates tried, each with its loss"]
    for arm in arms:
        points = "  ".join(f"{point['learning_rate']:.3g}: {_point(point)}" for point in arm["tuning"]["points"])
        lines.append(f"  {arm['name']}  {points}  (sensitivity {_number(arm['tuning']['sensitivity'], '.3f')})")
    return "\n".join(lines)


def _point(point: dict[str, Any]) -> str:
    return f"{point['loss']:.4f}" + ("" if point["outcome"] == "ok" else f" ({point['outcome']})")


def _budgets(comparison: dict[str, Any]) -> str:
    names = [arm["name"] for arm in comparison["arms"]]
    rows = [("at equal", *names)]
    for budget in comparison["budgets"]:
        mark = "*" if budget["mid_run"] else ""
        losses = (_number(budget["losses"][name], ".4f") + mark for name in names)
        rows.append((f"{_UNITS[budget['kind']]} ({budget['at']:.3g})", *losses))
    notes = ["* some read before the end of their schedule, where rankings may still turn"]
    return "\n".join([*_aligned(rows), *(notes if any(b["mid_run"] for b in comparison["budgets"]) else [])])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = ["<", *">" * len(widths[1:])]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
