"""The sections of the page: the figures in words and tables."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shearling.experiments.report.data import Arm, Comparison, Run, is_paired, outcomes
from shearling.experiments.report.executed import Executed
from shearling.experiments.report.markup import Html, element, number, pairs, plain, probability, table, together
from shearling.experiments.statistics import LEVEL
from shearling.training.run_folder import DIVERGED

SIGNS = {"better": "✓", "worse": "✗", "not distinguishable": "≈", "no verdict": "?", "baseline": "•"}
"""What stands before a verdict's word, for those who see no colours."""

CURVES = element(
    "p",
    "Thick: the mean over the seeds, as far as every seed came. Band: from the lowest to the highest seed. Thin: each "
    "seed. ✕: where a run diverged; a run that went wrong may leave the picture upwards. Where a name counts its "
    "seeds, the others have nothing to draw.",
    class_="note",
)
DIAGNOSTICS = element(
    "p",
    "Means over the seeds, at the steps that every seed reached; lines with a band over the seeds. The arms of a heat "
    "map share its scale of colours. Grey: not finite. Where a name counts its seeds, the others measured nothing.",
    class_="note",
)


def lead(comparison: Comparison) -> str:
    """What was compared, in a sentence."""
    figures, others = comparison.figures, len(comparison.arms) - 1
    return (
        f"{others} arm{'s' if others > 1 else ''} against the baseline {figures['baseline']} · "
        f"{_seeds(comparison)} · loss in nats per token, lower is better"
    )


def _seeds(comparison: Comparison) -> str:
    """How the seeds of the arms belong together."""
    figures = comparison.figures
    others = [arm for arm in comparison.arms if arm.figures["versus"]]
    own = [arm.name for arm in others if not is_paired(comparison, arm)]
    if others and len(own) == len(others):
        return f"{len(figures['seeds'])} seeds for each arm, of its own: not paired"
    paired = f"seeds {', '.join(map(str, figures['seeds']))}, paired"
    if own:
        return f"{paired} by seed, but for {', '.join(own)} with seeds of its own"
    return f"{paired}: the same initial tensors and batches" if figures.get("same_start") else f"{paired} by seed"


def word(versus: dict[str, Any] | None) -> str:
    """A verdict in a word: better, worse, not distinguishable; no verdict where chance cannot be told; baseline."""
    if versus is None:
        return "baseline"
    if versus["p_holm"] is None:
        return "no verdict"
    if versus["p_holm"] >= LEVEL:
        return "not distinguishable"
    return "better" if versus["difference"] < 0 else "worse"


def verdicts(comparison: Comparison) -> Html:
    """A card for each arm that stands against the baseline."""
    cards = [_card(index, arm) for index, arm in enumerate(comparison.arms) if arm.figures["versus"]]
    return element("div", *cards, class_="verdicts")


def _card(index: int, arm: Arm) -> Html:
    versus = arm.figures["versus"]
    verdict = word(versus)
    sentence = element("span", f"{SIGNS[verdict]} {verdict}", class_="word")
    rest = versus["verdict"].removeprefix(verdict)
    if rest == versus["verdict"]:
        rest = f": {rest}"
    return element(
        "article",
        element("h3", _name(index, arm.name)),
        element("p", sentence, rest, class_="sentence"),
        class_=f"verdict {verdict.replace(' ', '-')}",
    )


def _name(index: int, name: str) -> Html:
    swatch = element("span", class_=f"swatch arm-{index}", aria_hidden="true")
    return element("span", swatch, element("span", name), class_="arm")


def warnings(comparison: Comparison) -> Html | None:
    """What a reader must know before believing the figures."""
    found = comparison.figures["warnings"]
    if not found:
        return None
    listed = element("ul", *(element("li", each) for each in found))
    return element("div", element("strong", "Warnings"), listed, class_="warnings")


def difference_table(comparison: Comparison) -> Html:
    """Means and differences with their intervals."""
    head = [
        "arm", "mean loss", "standard deviation", "difference", "95 % interval", "p after Holm",
        "smallest visible effect", "outcomes",
    ]  # fmt: skip
    note = element(
        "p",
        "Differences in nats per token; below zero the arm is better. Each interval is of its arm alone, while p is "
        "adjusted for all arms. Smallest visible effect: the true difference that this many seeds would have found in "
        "80 % of such comparisons, at 5 % over all arms; not told where a run failed. No run is left out: one that "
        "diverged counts as a model that knows nothing, ln V, and no loss counts for more. Ticks in the picture: "
        "single seeds.",
        class_="note",
    )
    rows = [tuple(_difference(index, arm)) for index, arm in enumerate(comparison.arms)]
    return together([table("differences", head, rows, words=(0, 7)), note])


def _difference(index: int, arm: Arm) -> Iterator[object]:
    figures, versus = arm.figures, arm.figures["versus"]
    yield _name(index, arm.name)
    yield number(figures["mean"])
    yield number(figures["sd"])
    if versus is None:
        yield from ("baseline", "–", "–", "–")
    else:
        yield number(versus["difference"], "+.4f")
        interval = versus["low"] is not None
        yield f"{number(versus['low'], '+.4f')} to {number(versus['high'], '+.4f')}" if interval else "–"
        yield probability(versus["p_holm"])
        yield number(versus["smallest_visible"])
    yield ", ".join(f"{count} {outcome}" for outcome, count in outcomes(arm).items())


def tuning_table(comparison: Comparison) -> Html:
    """What each arm's grid of learning rates came to."""
    rows = [
        (
            _name(index, arm.name),
            f"{arm.figures['learning_rate']:.3g}" + (" (at the grid's edge)" if tuning["best_at_edge"] else ""),
            len(tuning["points"]),
            number(tuning["sensitivity"]),
        )
        for index, arm in enumerate(comparison.arms)
        if (tuning := arm.figures["tuning"])
    ]
    note = element(
        "p",
        "Tuned on a seed that is not among the comparison's. Sensitivity: the mean over the grid of min(loss, ln V), "
        "minus the best loss. Ringed: the chosen. ✕, at the upper edge whatever the loss: diverged or collapsed.",
        class_="note",
    )
    return together([table("learning rates", ["arm", "best", "rates tried", "sensitivity (nats)"], rows), note])


BUDGETS = {"tokens": ("tokens", ",.0f"), "flops": ("FLOPs", ".3g"), "seconds": ("seconds of training", ",.1f")}


def budget_table(comparison: Comparison) -> Html:
    """Each arm's loss at the largest tokens, FLOPs and seconds that all of them reached."""
    budgets = comparison.figures["budgets"]
    head = ["arm"]
    for budget in budgets:
        name, form = BUDGETS[budget["kind"]]
        head.append(f"at {format(budget['at'], form)} {name}" + (" *" if budget["mid_run"] else ""))
    rows = [
        (_name(index, arm.name), *(number(budget["losses"].get(arm.name)) for budget in budgets))
        for index, arm in enumerate(comparison.arms)
    ]
    note = "Mean validation loss over the seeds at the largest budget that every arm reached."
    if any(budget["mid_run"] for budget in budgets):
        note += " * Some arm was read before the end of its schedule, where the learning rate is still high."
    return together([table("losses at equal cost", head, rows), element("p", note, class_="note")])


def equations(entries: Mapping[str, Sequence[Executed]], baseline: str) -> Iterator[Html]:
    """What the arms execute, equal ones once; marked, the lines that the baseline does not have."""
    yield element("p", "Read off the modules that ran. Marked: lines that the baseline does not have.", class_="note")
    of_baseline = "\n".join(entry.text for entry in entries.get(baseline, ()))
    arms: dict[Executed, list[str]] = {}
    for name, own in entries.items():
        for entry in own:
            arms.setdefault(entry, []).append(name)
    for entry, names in arms.items():
        yield element("h3", ", ".join(names))
        yield from _entry(entry, set((of_baseline or entry.text).splitlines()))


def run_equations(entries: Sequence[Executed]) -> Iterator[Html]:
    """What a single run executes."""
    for entry in entries:
        yield from _entry(entry, set(entry.text.splitlines()))


def _entry(entry: Executed, unmarked: set[str]) -> Iterator[Html]:
    if entry.note:
        yield element("p", entry.note, class_="note")
    if entry.text:
        lines = [line if line in unmarked else element("mark", line) for line in entry.text.splitlines()]
        yield element("pre", *(together([line, "\n"]) for line in lines))


def arm_table(comparison: Comparison) -> Html:
    """What the arms differ in."""
    keys = comparison.figures["differs"]
    rows = [
        (
            _name(index, arm.name),
            *(plain(arm.figures["options"].get(key)) for key in keys),
            f"{arm.figures['parameters']:,}",
            f"{arm.figures['flops_per_token']:,}",
            f"{arm.figures['learning_rate']:.3g}",
        )
        for index, arm in enumerate(comparison.arms)
    ]
    head = ["arm", *keys, "parameters", "FLOPs per token", "learning rate"]
    return table("what the arms differ in", head, rows, words=range(len(keys) + 1))


def recipe(options: dict[str, Any], summary: str) -> Html:
    """Every option, folded away behind a summary."""
    rows = [(key, plain(value)) for key, value in options.items()]
    return element("details", element("summary", f"{summary} ({len(rows)} options)"), pairs("recipe", rows))


def results(figures: dict[str, Any] | None) -> Iterator[Html]:
    """A single run's figures before and after, and what it took."""
    if figures is None:
        yield element("p", "The run has not ended; `shearling train CONFIG --resume` goes on with it.")
        return
    if figures.get("outcome") == DIVERGED:
        yield element("p", element("strong", "✗ Diverged: the loss stayed non-finite."))
    rows = [
        (name, number(figures["first"][key], form), number(figures[key], form))
        for name, key, form in (
            ("validation loss (nats per token)", "loss", ".4f"),
            ("perplexity", "perplexity", ",.2f"),
            ("bits per byte", "bits_per_byte", ".4f"),
        )
    ]
    yield table("results", ["", "before", "after"], rows)
    yield element(
        "p",
        f"{figures['parameters']:,} parameters, {figures['tokens']:,} tokens, {number(figures['flops'], '.3g')} FLOPs, "
        f"{figures['seconds']:,.0f} s, {figures['tokens_per_second']:,.0f} tokens/s",
        class_="note",
    )


def comparison_provenance(figures: dict[str, Any], runs: Sequence[Run]) -> Iterator[tuple[str, object]]:
    """How the comparison was made, then where its runs come from."""
    yield "command", shlex.join(figures["command"])
    yield "runs side by side", figures["jobs"]
    yield "threads per run", figures["threads"]
    yield "seconds of all runs", f"{sum(run['seconds'] or 0 for arm in figures['arms'] for run in arm['runs']):,.0f}"
    yield "unigram loss", f"{number(figures['unigram_loss'])} nats per token"
    yield from provenance(runs)


def provenance(runs: Sequence[Run]) -> Iterator[tuple[str, object]]:
    """Where runs come from; where they differ in it, each value with the number of its runs."""
    known = [run.provenance for run in runs if run.provenance]
    for key in ("git_commit", "device", "python", "platform"):
        yield key.replace("_", " "), _values(plain(each.get(key)) for each in known)
    for package in dict.fromkeys(name for each in known for name in each["packages"]):
        yield package, _values(plain(each["packages"].get(package)) for each in known)
    if any(each["hashes"].get("code") for each in known):
        yield "hash of the user's own code", _values(each["hashes"].get("code") or "none" for each in known)
    for name in ("data", "tokenizer"):
        yield f"{name} hash", _values(plain(each["hashes"].get(name)) for each in known)
    if len(known) == 1:
        yield "command", shlex.join(known[0]["command_line"])


def _values(values: Iterable[str]) -> str:
    counted = Counter(values)
    if len(counted) < 2:
        return next(iter(counted), "not known")
    return ", ".join(f"{value} ({count} runs)" for value, count in counted.items())
