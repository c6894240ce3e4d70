"""A summary as text for a terminal."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shearling.experiments.equations import model_equations
from shearling.experiments.summary import Run, Summary, learning_rates
from shearling.models.cost import kv_cache_bytes

PLOT_COLUMNS = 64
PLOT_ROWS = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"
WIDEST_VALUE = 40

Line = tuple[str, str, str]


def render(summary: Summary) -> str:
    """The resolved config with origins, then parameters, cost, equations, memory and schedule, one section each."""
    blocks = [
        str(summary.path),
        table([(row.key, _plain(row.value), row.origin) for row in summary.rows]),
        "parameters\n" + _figures(_parameters(summary)),
        "cost\n" + _figures(_cost(summary)),
        "equations\n" + "\n".join(f"  {line}" for line in model_equations(summary.model).splitlines()),
    ]
    if summary.run:
        blocks += ["memory, estimated\n" + _figures(_memory(summary.run)), "learning rate\n" + plot(summary.run)]
    else:
        blocks += ["memory of generation, estimated\n" + _figures(_generation(summary))]
    return "\n\n".join(blocks)


def plot(run: Run) -> str:
    """The learning rate over the horizon, its peak and its end on the left, what lies below on the x axis."""
    training = run.spec.training
    peak = training.optimizer.learning_rate
    curve = [rate for _, rate in learning_rates(run, PLOT_COLUMNS)]
    eighths = [round(rate / peak * PLOT_ROWS * 8) for rate in curve]
    margin = max(len(f"{peak:g}"), len(f"{curve[-1]:.3g}"))
    end_row = min(max(eighths[-1] - 1, 0) // 8, PLOT_ROWS - 1)
    labels = {0: "0", end_row: f"{curve[-1]:.3g}", PLOT_ROWS - 1: f"{peak:g}"}
    lines = []
    for row in reversed(range(PLOT_ROWS)):
        blocks = "".join(EIGHTHS[min(max(level - 8 * row, 0), 8)] for level in eighths)
        lines.append(f"  {labels.get(row, ''):>{margin}} ┤{blocks}".rstrip())
    total = run.resolved.total_steps
    end = f"{total:,} steps" if total else f"{training.minutes:g} minutes"
    steps = training.schedule.warmup_steps - run.spec.warmup_taken
    warmup = f"warm-up: {steps:,} steps" + ("" if total else ", not to scale")
    return "\n".join([*lines, f"  {'':>{margin}} └{'─' * PLOT_COLUMNS}", f"  {'':>{margin}}  {warmup:<40}{end:>24}"])


def _parameters(summary: Summary) -> Iterator[Line]:
    counts = summary.parameters
    parts = f"attention {counts.attention:,}, feed-forward {counts.feedforward:,}, norms {counts.norms:,}"
    yield "total", f"{counts.total:,}", ""
    yield "non-embedding", f"{counts.non_embedding:,}", parts
    yield (
        "embedding",
        f"{counts.embedding:,}",
        f"and {counts.head:,} in the head" if counts.head else "its transpose is the head",
    )


def _cost(summary: Summary) -> Iterator[Line]:
    yield "FLOPs per token", f"{summary.flops_per_token:,}", f"training, sequences of {summary.seq_len:,}"
    if not (run := summary.run):
        return
    resolved, training = run.resolved, run.spec.training
    if resolved.total_steps is None:
        yield "horizon", f"{training.minutes:g} minutes", "steps, tokens and FLOPs depend on the machine"
    else:
        yield "steps", f"{resolved.total_steps:,}", ""
        yield "tokens", f"{resolved.total_tokens:,}", f"{training.tokens_per_update:,} per step"
        yield "FLOPs", f"{resolved.total_flops:.3g}", ""
    if warmup := run.spec.random_warmup:
        phase = f"{warmup.kind}, {warmup.steps:,} steps, {resolved.random_warmup_flops:.3g} FLOPs before the horizon"
        yield "random warm-up", f"{resolved.random_warmup_tokens:,} tokens", phase
    batches = f"{resolved.micro_batches_per_update:,} micro-batches of {resolved.micro_batch:,}"
    yield "one step", f"{resolved.sequences_per_update:,} sequences", batches
    yield "fingerprint", run.fingerprint[:16], "of all that affects results"


def _memory(run: Run) -> Iterator[Line]:
    memory, training = run.resolved.memory, run.spec.training
    copies = "fp32" if training.precision == "fp32" else f"fp32, and {training.precision} to multiply"
    yield "training", _size(memory.total), ""
    yield "  weights", _size(memory.weights), copies
    yield "  gradients", _size(memory.gradients), ""
    yield "  optimizer", _size(memory.optimizer), training.optimizer.kind
    yield "  activations", _size(memory.activations), f"micro-batch of {run.resolved.micro_batch:,}"
    yield "generation cache", _size(run.resolved.kv_cache_bytes), f"{run.spec.model.max_seq_len:,} tokens"


def _generation(summary: Summary) -> Iterator[Line]:
    tokens = summary.model.max_seq_len
    yield "weights", _size(2 * summary.parameters.total), "bf16"
    yield "cache", _size(kv_cache_bytes(summary.model, tokens, 2)), f"bf16, {tokens:,} tokens"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figures(lines: Iterable[Line]) -> str:
    return table([(f"  {name}", value, note) for name, value, note in lines], ">")


def table(lines: Sequence[Line], side: str = "<") -> str:
    """Three columns, the second flush with `side`; values wider than most push their own note aside."""
    first = max(len(name) for name, _, _ in lines)
    second = min(max(len(value) for _, value, _ in lines), WIDEST_VALUE)
    return "\n".join(f"{name:<{first}}  {value:{side}{second}}  {note}".rstrip() for name, value, note in lines)


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min((max(count, 1).bit_length() - 1) // 10, len(units) - 1)
    return f"{count / 1024**power:,.1f} {units[power]}"
