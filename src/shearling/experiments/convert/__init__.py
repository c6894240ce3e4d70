"""From one format to another: planned, written beside its place, read back, compared, and only then put there."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.experiments.convert.draft import draft_of
from shearling.experiments.convert.perplexity import perplexity, sample_tokens
from shearling.experiments.convert.plan import Plan, make_plan
from shearling.experiments.convert.tokenizer import check_beside, put_beside
from shearling.experiments.convert.verify import (
    LARGEST_DIFFERENCE,
    EngineFactory,
    check_finite,
    check_kept,
    check_weights,
    compare_logits,
)
from shearling.formats import FORMATS, Checkpoint, open_checkpoint
from shearling.formats.pages import PagesHeld
from shearling.progress import Advance, console_progress

Say = Callable[[str], None]

SECONDS_OF_SILENCE = 2.0


def convert(
    source: Path,
    dest: Path,
    *,
    to: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    group_size: int | None = None,
    version: int | None = None,
    tokenizer: Path | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    engine: EngineFactory = ReferenceEngine,
) -> dict[str, Any]:
    """Write the model in `source` to `dest`, once what was written has been read back and found to be the model.

    Every number of the weights is compared with the source's under the codec that it was written in, and the logits
    behind fixed tokens with the source's own. Memory does not grow with the model. Progress goes to stderr.

    Args:
        to: a name in FORMATS; None: what the suffix of `dest` says, and for a folder Hugging Face's.
        dtype: f32, f16 or bf16 for the matrices; None: each keeps its own where the format can hold it.
        quantize: a codec for the matrices, by name; `group_size` is its group, where it has a choice.
        version: of llama2.c's files.
        tokenizer: to take in place of the source's.
        data: a prepared data folder, or a text file: perplexity on a sample of it, before and after.
        overwrite: replace a model that is at `dest`.
        engine: compares the logits of models in LLaMA's graph; others are compared in PyTorch.

    Returns:
        Figures: what was written, bytes, bits per weight, differences.

    Raises:
        UserError: it cannot be done, the model has numbers that are not finite, or what was read back is not the model.
            Nothing stands under `dest` then that did not before.
    """
    began = monotonic()

    def say(what: str) -> None:
        if monotonic() - began > SECONDS_OF_SILENCE:
            print(f"{what} …", file=sys.stderr)

    model = open_checkpoint(source, tokenizer)
    others = [path for path in (tokenizer, data) if path]
    plan = make_plan(source, dest, model, to=to, dtype=dtype, quantize=quantize, group_size=group_size,
                     version=version, overwrite=overwrite, others=others)  # fmt: skip
    if plan.format.tokenizer_apart:
        check_beside(dest, model, overwrite)
    sample = _sample(data, model)
    with _told("looking for NaN", sum(tensor.nbytes for tensor in model.tensors.values())) as told:
        check_finite(model, told)
    with draft_of(dest) as draft:
        notes = _write(plan, model, draft)
        result = replace(_read_back(plan, draft), origin=str(dest))
        figures = _compare(model, result, engine, say) | _perplexities(model, result, sample, say)
        figures["file_bytes"] = _size(draft)
        if plan.format.tokenizer_apart:
            notes += put_beside(dest, model)
    if not plan.format.tokenizer_apart and result.tokenizer is None and not any("tokenizer" in note for note in notes):
        notes.append("no tokenizer came with the model: give one with --tokenizer, or later with -z")
    return {
        "source": str(source),
        "dest": str(dest),
        "format": plan.kind,
        **plan.options,
        **figures,
        "notes": notes,
        "seconds": monotonic() - began,
    }


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _sample(data: Path | None, model: Checkpoint) -> list[int]:
    if data is None:
        return []
    if model.spec.beyond_llama():
        raise UserError(f"--data {data}: of a model beyond LLaMA's graph no perplexity is measured here: leave it out")
    return sample_tokens(data, model.tokenizer)


def _write(plan: Plan, model: Checkpoint, draft: Path) -> list[str]:
    assert plan.format.write is not None, "a plan has a format that is written"
    stored = model.tensors.values()
    total = sum(
        (plan.codec or tensor.codec).row_bytes(tensor.shape[1]) * tensor.shape[0] if len(tensor.shape) == 2 else 0
        for tensor in stored
    )
    read_for_each = sum(tensor.nbytes for tensor in stored) / max(total, 1)
    held = PagesHeld(stored)
    with _told("writing", total) as told:

        def progress(n_bytes: int) -> None:
            held.count(int(n_bytes * read_for_each))
            told(n_bytes)

        return plan.format.write(draft, model, codec=plan.codec, progress=progress, **plan.options)


def _read_back(plan: Plan, draft: Path) -> Checkpoint:
    if plan.format.tokenizer_apart:  # one that is named keeps the reader from whatever lies beside the draft
        return replace(plan.format.read(draft, draft), load_tokenizer=None)
    return plan.format.read(draft, None)


def _compare(model: Checkpoint, result: Checkpoint, engine: EngineFactory, say: Say) -> dict[str, Any]:
    check_kept(model, result)
    stored = result.tensors.values()
    n_bytes = sum(tensor.nbytes for tensor in stored)
    with _told("reading back", n_bytes) as told:
        exact = check_weights(model, result, told)
    say("comparing logits")
    difference = compare_logits(model, result, engine)
    if exact and difference.largest > LARGEST_DIFFERENCE * difference.scale:
        raise UserError(
            f"{result.origin}: read back, its logits differ by {difference.largest:.3g} where the largest is "
            f"{difference.scale:.3g}, though no weight was rounded: a defect: please report it"
        )
    n_weights = sum(math.prod(tensor.shape) for tensor in stored)
    return {
        "codecs": sorted({tensor.codec.name for tensor in stored if len(tensor.shape) == 2}),
        "tensors": len(stored),
        "weights": n_weights,
        "bytes": n_bytes,
        "source_bytes": sum(tensor.nbytes for tensor in model.tensors.values()),
        "bits_per_weight": 8 * n_bytes / n_weights,
        "rounded": not exact,
        "logits": difference._asdict(),
    }


def _perplexities(model: Checkpoint, result: Checkpoint, sample: list[int], say: Say) -> dict[str, Any]:
    if not sample:
        return {}
    from shearling.engine.fast import FastEngine  # which holds a whole model, and is quick

    say("measuring perplexity")
    before, after = (perplexity(FastEngine(checkpoint), sample) for checkpoint in (model, result))
    change = 100 * (after / before - 1)
    return {"perplexity": {"tokens": len(sample), "source": before, "result": after, "change_percent": change}}


@contextmanager
def _told(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr, for what takes longer than a moment."""
    began, done = monotonic(), 0
    tell: Advance | None = None
    with ExitStack() as stack:

        def progress(n_bytes: int) -> None:
            nonlocal tell, done
            if tell is not None:
                tell(n_bytes)
            elif monotonic() - began > SECONDS_OF_SILENCE:
                tell = stack.enter_context(console_progress(what, total, done + n_bytes))
            done += n_bytes

        yield progress


def report(figures: dict[str, Any]) -> str:
    """What `convert` gives, in a few lines."""
    logits, codecs = figures["logits"], ", ".join(figures["codecs"])
    rounded = f"rounded to {codecs}" if figures["rounded"] else "to the last bit"
    lines = [
        f"{figures['dest']}: {FORMATS[figures['format']].title}, {codecs}",
        f"  weights     {figures['weights']:,} in {figures['tensors']} tensors, read back as the source's, {rounded}",
        f"  size        {figures['file_bytes'] / 1e6:,.1f} MB on disk; weights {figures['bytes'] / 1e6:,.1f} MB, "
        f"{figures['bits_per_weight']:.2f} bits each (source {figures['source_bytes'] / 1e6:,.1f} MB)",
        f"  logits      largest difference {logits['largest']:.3g} where the largest logit is {logits['scale']:.3g}, "
        f"{logits['tokens']} tokens compared",
    ]
    if found := figures.get("perplexity"):
        change = f"{found['source']:.4f} to {found['result']:.4f} ({found['change_percent']:+.3f} %)"
        lines.append(f"  perplexity  {change}, {found['tokens']:,} tokens")
    return "\n".join([*lines, *(f"note: {note}" for note in figures["notes"])])
