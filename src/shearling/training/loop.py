"""The training loop: functions over one TrainState."""

import errno
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shearling.config import differences, dump, fingerprint, load
from shearling.data.manifest import load_manifest
from shearling.data.shards import load_tokenizer_of, open_dataset
from shearling.data.stream import BatchStream, EvaluationSet
from shearling.errors import Interrupted, UserError
from shearling.files import locked
from shearling.seeding import derive_seed
from shearling.training import run_folder
from shearling.training.checkpoints import (
    load_latest,
    point,
    prune,
    save_checkpoint,
    saved_steps,
    step_folder,
    weights_hash,
)
from shearling.training.device import describe, keep_freed_memory, measure_peak, pick_compile, pick_device
from shearling.training.evaluate import evaluate
from shearling.training.interrupts import Interrupts
from shearling.training.monitor import Monitor, StepFigures
from shearling.training.resolve import Resolved, resolve
from shearling.training.run_folder import RunFolder
from shearling.training.schedules import learning_rate_factor
from shearling.training.spec import ExperimentSpec
from shearling.training.state import Evaluation, Progress, TrainState, build_state, restore, to_checkpoint
from shearling.training.step import train_step
from shearling.training.trackers import build_trackers

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Job:
    """What stays the same throughout a run."""

    config: ExperimentSpec
    resolved: Resolved
    run: RunFolder
    stream: BatchStream
    held_out: EvaluationSet
    peak: float
    monitor: Monitor
    interrupts: Interrupts
    identity: dict[str, str]


class Clock:
    """Wall-clock seconds of a run over all its processes, and the share of its horizon that is done."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._start = time.perf_counter() - progress.seconds
        self._progress = progress
        self._total_steps = job.resolved.total_steps
        self._budget = 60 * (job.config.training.minutes or math.inf)

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return time.perf_counter() - self._start

    def done(self, step: int) -> float:
        """Share of the horizon behind us, in [0, 1]; of a minutes budget the time to evaluate and save is kept back."""
        if self._total_steps is not None:
            return min(1.0, step / self._total_steps)
        return min(1.0, self.seconds / max(self._budget - self._progress.closing_seconds, 1e-9))


def train(config: ExperimentSpec, resume: bool = False) -> dict[str, Any]:
    """Run an experiment to its horizon and give back what `results.json` holds.

    Args:
        resume: go on from the last checkpoint in `config.output_dir`, if a run was begun there.

    Raises:
        UserError: the folder holds another run, the data are not the run's, the disk is full, or the loss stays
            non-finite.
        Interrupted: a signal asked the run to stop; a checkpoint has been saved.
    """
    run = RunFolder(config.output_dir)
    with locked(run.path):
        try:
            return _train(config, run, resume)
        except OSError as error:
            steps = saved_steps(run.checkpoints)
            whole = f"the last whole checkpoint is of step {steps[-1]:,}" if steps else "no checkpoint was saved yet"
            mend = "make room" if error.errno in FULL else "mend that"
            raise UserError(f"{run.path}: {error}: {whole}; {mend} and go on with --resume") from error


def _train(config: ExperimentSpec, run: RunFolder, resume: bool) -> dict[str, Any]:
    if run.path.resolve() == config.data.path.resolve():
        raise UserError(f"output_dir {run.path} is the folder of the data: choose another output_dir")
    begun = run.begun and bool(saved_steps(run.checkpoints))  # what stopped before its first checkpoint begins again
    if begun and not resume:
        raise UserError(f"{run.path}: holds a run already: go on with it by --resume, or choose another output_dir")
    keep_freed_memory()
    device = pick_device(config.training.device)
    compile_blocks, why = pick_compile(config.training.compile, device)
    manifest = load_manifest(config.data.path)
    if manifest.tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size:,} is smaller than the {manifest.tokenizer.vocab_size:,} of "
            f"the tokenizer in {config.data.path}: raise model.vocab_size"
        )
    identity = {
        "config": fingerprint(config),
        "data": manifest.hash,
        "tokenizer": manifest.tokenizer.sha256,
    }
    resolved = resolve(config)
    stream = BatchStream(
        open_dataset(config.data.path, "train", verify=True),
        config.data.seq_len,
        resolved.sequences_per_update,
        derive_seed(config.seed, "data"),
        config.data.mask_documents,
    )
    held_out = EvaluationSet.take(
        open_dataset(config.data.path, "validation", verify=True), config.data.validation_tokens
    )
    state = build_state(config, device, compile_blocks)
    if begun:
        _check_identity(run, config, identity)
    else:
        run.create(dump(config), run_folder.provenance(describe(device), identity), load_tokenizer_of(config.data.path))
    with Interrupts() as interrupts:
        checkpoint = load_latest(run.checkpoints, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
        if checkpoint is not None:
            restore(state, checkpoint)
            point(run.checkpoints, "latest", state.progress.step)  # a kill may have come before the links
            _point_best(run.checkpoints, state.progress)
        run.cut_metrics(state.progress.step if checkpoint else -1)
        trackers = build_trackers(config.training.trackers, run.path, config.name, config.model_dump(mode="json"))
        with Monitor(run, trackers, config.training.log_every) as monitor:
            job = Job(
                config, resolved, run, stream, held_out, measure_peak(device, state.model.dtype), monitor, interrupts,
                identity,
            )  # fmt: skip
            monitor.say(
                f"{config.name}: {resolved.parameters.total:,} parameters on {describe(device)}; "
                f"matmul peak {job.peak / 1e9:,.0f} GFLOP/s; torch.compile {why}"
            )
            return _run_to_horizon(job, state)


def _check_identity(run: RunFolder, config: ExperimentSpec, identity: dict[str, str]) -> None:
    changed = differences(load(ExperimentSpec, run.config).value, config)
    if changed:
        raise UserError(
            f"{run.config}: the run began with other values of {', '.join(changed)}: "
            "put them back, or choose another output_dir"
        )
    recorded = run_folder.read_json(run.provenance)["hashes"]
    for what in ("tokenizer", "data"):
        if recorded[what] != identity[what]:
            raise UserError(
                f"{config.data.path}: its {what} hash is not that of the run in {run.path}: "
                f"bring back the {what} the run began with, or choose another output_dir"
            )


def _run_to_horizon(job: Job, state: TrainState) -> dict[str, Any]:
    progress = state.progress
    clock = Clock(job, progress)
    changed = progress.first is None  # whether there is something that no checkpoint has
    if progress.step:
        job.monitor.say(f"resumed at step {progress.step:,}, epoch {job.stream.epoch(progress.step):.2f}")
    try:
        while True:
            finished = clock.done(progress.step) >= 1  # read once a turn: what follows takes time of its own
            _evaluate_and_save(job, state, clock, finished, changed)
            if finished:
                break
            _take_step(job, state, clock)
            changed = True
    except Interrupted:
        state.optimizer.zero_grad(set_to_none=True)
        progress.seconds = clock.seconds
        _save(job, state)
        job.monitor.say(f"interrupted: saved at step {progress.step:,}; go on with --resume")
        raise
    results = _results(job, state)
    run_folder.write_json(job.run.results, results)
    return results


def _take_step(job: Job, state: TrainState, clock: Clock) -> None:
    progress, training = state.progress, job.config.training
    began, done = time.perf_counter(), clock.done(progress.step)
    factor = learning_rate_factor(training.schedule, progress.step, done, job.resolved.total_steps)
    rate = training.optimizer.learning_rate * factor
    loss, norm = train_step(state, job.stream.batch(progress.step), job.config, rate, check=job.interrupts.check)
    progress.seconds = clock.seconds
    _record_step(job, state, loss, norm, rate, time.perf_counter() - began, clock.done(progress.step))


def _record_step(
    job: Job, state: TrainState, loss: float, norm: float, rate: float, seconds: float, done: float
) -> None:
    progress, training = state.progress, job.config.training
    if progress.skipped_in_a_row:
        job.monitor.record(progress.step, {"skipped": progress.skipped})
        job.monitor.say(f"step {progress.step:,} skipped: loss {loss}, gradient norm {norm}")
        if progress.skipped_in_a_row >= training.max_skipped:
            raise UserError(
                f"{job.run.path}: stopped at step {progress.step:,}: loss or gradient not finite for "
                f"{training.max_skipped} steps in a row (learning rate {rate:.2e})\n"
                "look at training.optimizer.learning_rate, training.schedule.warmup_steps, training.clip, and the data "
                "around that step"
            )
        return
    speed = training.tokens_per_update / seconds
    job.monitor.step(
        StepFigures(
            step=progress.step,
            tokens=progress.tokens,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=speed,
            mfu=speed * job.resolved.flops_per_token / job.peak,
            seconds=progress.seconds,
            done=done,
        )
    )


def _evaluate_and_save(job: Job, state: TrainState, clock: Clock, finished: bool, changed: bool) -> None:
    """Whatever is due at this step and not yet done; a new best is always saved, so that `best` leads somewhere."""
    began, progress, training = time.perf_counter(), state.progress, job.config.training
    improved = False
    due = finished or progress.step == 0 or _due(progress.step, training.evaluate_every)
    missing = progress.last is None or progress.last.step != progress.step
    if due and missing:
        evaluation = evaluate(
            state.model,
            job.held_out,
            progress.step,
            seq_len=job.config.data.seq_len,
            sequences=training.micro_batch,
            mask_documents=job.config.data.mask_documents,
            check=job.interrupts.check,
        )
        improved = progress.note(evaluation)
        _show(job, evaluation, progress.tokens)
        progress.closing_seconds = max(progress.closing_seconds, time.perf_counter() - began)
    progress.seconds = clock.seconds
    if improved or (changed and (finished or _due(progress.step, training.save_every))):
        _save(job, state)
        if improved:
            progress.closing_seconds = max(progress.closing_seconds, time.perf_counter() - began)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _show(job: Job, evaluation: Evaluation, tokens: int) -> None:
    figures = {
        "tokens": tokens,
        "validation_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
    }
    job.monitor.record(evaluation.step, {key: value for key, value in figures.items() if math.isfinite(value)})
    job.monitor.say(
        f"step {evaluation.step:,}: validation loss {evaluation.loss:.4f}, perplexity {evaluation.perplexity:,.2f}, "
        f"{evaluation.bits_per_byte:.4f} bits per byte"
    )


def _save(job: Job, state: TrainState) -> None:
    progress, root = state.progress, job.run.checkpoints
    save_checkpoint(root, progress.step, to_checkpoint(state, {"identity": job.identity}))
    _point_best(root, progress)
    prune(root, progress.step, job.config.training.keep_last, progress.best.step if progress.best else None)


def _point_best(root: Path, progress: Progress) -> None:
    """Make the link `best` lead to the best evaluation's checkpoint, where that was saved."""
    if progress.best and progress.best.step in saved_steps(root):
        point(root, "best", progress.best.step)


def _results(job: Job, state: TrainState) -> dict[str, Any]:
    progress = state.progress
    assert progress.first
    assert progress.last
    assert progress.best
    flops = progress.tokens * job.resolved.flops_per_token
    return {
        **_figures(progress.last),
        "first": _figures(progress.first),
        "best": _figures(progress.best),
        "tokens": progress.tokens,
        "epochs": job.stream.epoch(progress.step),
        "flops": flops,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds,
        "mfu": flops / progress.seconds / job.peak,
        "skipped_steps": progress.skipped,
        "parameters": job.resolved.parameters.total,
        "weights_sha256": weights_hash(step_folder(job.run.checkpoints, progress.step)),
    }


def _figures(evaluation: Evaluation) -> dict[str, float | None]:
    """An evaluation as JSON can hold it: what is not finite becomes null."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(evaluation).items()}
