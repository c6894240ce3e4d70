"""The training loop: functions over one TrainState."""

import errno
import math
import sys
import time
from pathlib import Path
from typing import Any

from shearling.config import differences, dump, load
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
)
from shearling.training.device import describe, keep_freed_memory, measure_peak, pick_compile, pick_device
from shearling.training.diagnostics.recorder import Recorder
from shearling.training.evaluate import evaluate
from shearling.training.extend import take_over
from shearling.training.identity import changed_hashes, identity_of
from shearling.training.interrupts import Interrupts
from shearling.training.job import Clock, Job
from shearling.training.micro_batch import choose_micro_batch
from shearling.training.monitor import Monitor, StepFigures
from shearling.training.profiling import profiled
from shearling.training.resolve import check_vocabulary, resolve
from shearling.training.results import results_of
from shearling.training.run_folder import DIVERGED, FINISHED, RunFolder
from shearling.training.schedules import is_cooling, learning_rate_factor
from shearling.training.spec import ExperimentSpec
from shearling.training.state import Evaluation, Progress, TrainState, build_state, restore, to_checkpoint
from shearling.training.step import train_step
from shearling.training.trackers import build_trackers
from shearling.training.warmup import position, warm_up

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(
    config: ExperimentSpec, resume: bool = False, began: float | None = None, extend: Path | None = None
) -> dict[str, Any]:
    """Run an experiment to its horizon and give back what `results.json` holds.

    Args:
        resume: go on from the last checkpoint in `config.output_dir`, if a run was begun there.
        began: when a budget of minutes began, by `time.perf_counter`; None: now.
        extend: a run whose stable phase this one goes on with; see `shearling.training.extend`.

    Raises:
        UserError: the folder holds another run, the data are not the run's, the disk is full, or the loss stays
            non-finite.
        Interrupted: a signal asked the run to stop; a checkpoint has been saved.
    """
    run = RunFolder(config.output_dir)
    with locked(run.path):
        try:
            return _train(config, run, resume, time.perf_counter() if began is None else began, extend)
        except OSError as error:
            steps = saved_steps(run.checkpoints)
            whole = f"the last whole checkpoint is of step {steps[-1]:,}" if steps else "no checkpoint was saved yet"
            mend = "make room" if error.errno in FULL else "mend that"
            raise UserError(f"{run.path}: {error}: {whole}; {mend} and go on with --resume") from error


def _train(config: ExperimentSpec, run: RunFolder, resume: bool, began: float, extend: Path | None) -> dict[str, Any]:
    if run.path.resolve() == config.data.path.resolve():
        raise UserError(f"output_dir {run.path} is the folder of the data: choose another output_dir")
    begun = run.begun and bool(saved_steps(run.checkpoints))  # what stopped before its first checkpoint begins again
    if begun and not resume:
        raise UserError(f"{run.path}: holds a run already: go on with it by --resume, or choose another output_dir")
    keep_freed_memory()
    device = pick_device(config.training.device)
    manifest = load_manifest(config.data.path)
    check_vocabulary(config, manifest.tokenizer.vocab_size)
    identity = identity_of(config, manifest)
    resolved = resolve(config)
    compile_blocks, why = pick_compile(config.training.compile, device, resolved.long)
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
    taken_over = None
    if begun:
        _check_identity(run, config, identity)
        _refuse_diverged(run)
    else:
        if extend is not None:
            taken_over = take_over(extend, run, config, identity, resolved.total_steps)
        origin = run_folder.provenance(describe(device), identity, extend)
        run.create(dump(config), origin, load_tokenizer_of(config.data.path))
    with Interrupts() as interrupts:
        checkpoint = load_latest(run.checkpoints, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
        if checkpoint is not None:
            restore(state, checkpoint)
            point(run.checkpoints, "latest", state.progress.step)  # a kill may have come before the links
            _point_best(run.checkpoints, state.progress)
        elif taken_over is not None:
            restore(state, taken_over)
        run.cut_metrics(position(config, state.progress) if checkpoint or taken_over else -math.inf)
        if config.training.micro_batch == "auto" and state.progress.micro_batch is None:
            state.progress.micro_batch = choose_micro_batch(state, config)
        trackers = build_trackers(config.training.trackers, run.path, config.name, config.model_dump(mode="json"))
        with Monitor(run, trackers, config.training.log_every) as monitor:
            peak = measure_peak(device, state.model.dtype)
            job = Job(
                config, resolved, run, stream, held_out, peak, monitor, interrupts, Recorder(config, run, held_out),
                identity, seconds_before=time.perf_counter() - began,
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
    other = changed_hashes(run, identity)
    if "code" in other:
        raise UserError(
            f"{run.provenance}: the code of the model's own norm or placement has changed since the run began: "
            "bring it back, or choose another output_dir"
        )
    for what in ("tokenizer", "data"):
        if what in other:
            raise UserError(
                f"{config.data.path}: its {what} hash is not that of the run in {run.path}: "
                f"bring back the {what} the run began with, or choose another output_dir"
            )


def _refuse_diverged(run: RunFolder) -> None:
    """A run that diverged would diverge again: it is a result, not a run to go on with."""
    if run.results.exists() and (results := run_folder.read_json(run.results)).get("outcome") == DIVERGED:
        raise UserError(
            f"{run.path}: the run diverged: it stopped after {results['tokens']:,} tokens, its loss not finite\n"
            "its figures are in results.json; to try other options choose another output_dir"
        )


def _run_to_horizon(job: Job, state: TrainState) -> dict[str, Any]:
    progress = state.progress
    clock = Clock(job, progress)
    changed = progress.first is None  # whether there is something that no checkpoint has
    if progress.step:
        job.monitor.say(f"resumed at step {progress.step:,}, epoch {job.stream.epoch(progress.step):.2f}")
    try:
        _warm_up(job, state, clock)
        with profiled(job.config.training.profile, job.run.profile, job.monitor.say) as note_step:
            while True:
                finished = clock.done(progress.step) >= 1  # read once a turn: what follows takes time of its own
                _evaluate_and_save(job, state, clock, finished, changed)
                if finished:
                    break
                _take_step(job, state, clock)
                note_step()
                changed = True
    except Interrupted:
        state.optimizer.zero_grad()
        progress.seconds = clock.seconds
        _save(job, state)
        warming = position(job.config, progress) < 0
        where = f"random warm-up step {progress.warmed.steps:,}" if warming else f"step {progress.step:,}"
        job.monitor.say(f"interrupted: saved at {where}; go on with --resume")
        raise
    results = results_of(job, progress, FINISHED)
    run_folder.write_json(job.run.results, results)
    return results


def _warm_up(job: Job, state: TrainState, clock: Clock) -> None:
    """What is left of the phase on random data. Its end is saved with the evaluation of step 0, which follows."""
    spec, progress, training = job.config.random_warmup, state.progress, job.config.training
    if spec is None or position(job.config, progress) >= 0:
        return
    job.monitor.say(f"random warm-up, {spec.kind}: step {progress.warmed.steps:,} of {spec.steps:,}")
    for step in warm_up(state, job.config, job.stream.dataset, job.interrupts.check):
        progress.seconds = progress.warmed.seconds = clock.seconds
        line, where = step.number - 1 - spec.steps, f"random warm-up step {step.number:,}"
        if progress.skipped_in_a_row:
            look = "random_warmup.learning_rate, random_warmup.warmup_steps and training.clip"
            _record_skip(job, progress, line, where, step.loss, step.gradient_norm)
            _stop_if_diverged(job, state, where, step.learning_rate, look)
        elif _due(step.number, training.log_every):
            figures = {"loss": step.loss, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
            job.monitor.record(line, {f"random_warmup_{key}": value for key, value in figures.items()})
        if clock.done(0) >= 1:
            raise UserError(
                f"{job.run.path}: random_warmup.steps {spec.steps:,} leaves nothing of the run's "
                f"{training.minutes:g} minutes: lower it, or raise training.minutes"
            )
        job.monitor.say_at_times(f"{where} of {spec.steps:,}: loss {step.loss:.3f}")
        if step.number < spec.steps and _due(step.number, training.save_every):
            _save(job, state)
    if progress.warmed.first_loss is not None:
        job.monitor.say(f"random warm-up: loss {progress.warmed.first_loss:.4f} to {progress.warmed.last_loss:.4f}")


def _take_step(job: Job, state: TrainState, clock: Clock) -> None:
    progress, training = state.progress, job.config.training
    began, done = time.perf_counter(), clock.done(progress.step)
    taken = job.config.warmup_taken
    factor = learning_rate_factor(training.schedule, progress.step, done, job.resolved.total_steps, taken)
    rate = training.optimizer.learning_rate * factor
    loss, norm = train_step(state, job.stream.batch(progress.step), job.config, factor, done, job.interrupts.check)
    progress.seconds = clock.seconds
    _record_step(job, state, loss, norm, rate, time.perf_counter() - began, clock.done(progress.step))


def _record_step(
    job: Job, state: TrainState, loss: float, norm: float, rate: float, seconds: float, done: float
) -> None:
    progress, training = state.progress, job.config.training
    if progress.skipped_in_a_row:
        look = "training.optimizer.learning_rate, training.schedule.warmup_steps, training.clip, and the data around it"
        where = f"step {progress.step:,}"
        _record_skip(job, progress, progress.step, where, loss, norm)
        _stop_if_diverged(job, state, where, rate, look)
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


def _record_skip(job: Job, progress: Progress, line: int, where: str, loss: float, norm: float) -> None:
    job.monitor.record(line, {"skipped": progress.skipped})
    job.monitor.say(f"{where} skipped: loss {loss}, gradient norm {norm}")


def _stop_if_diverged(job: Job, state: TrainState, where: str, rate: float, look: str) -> None:
    """End the run, with its results, where too many steps in a row were skipped."""
    progress, most = state.progress, job.config.training.max_skipped
    if progress.skipped_in_a_row < most:
        return
    if progress.last is None:
        _evaluate(job, state)
    run_folder.write_json(job.run.results, results_of(job, progress, DIVERGED))
    raise UserError(
        f"{job.run.path}: stopped at {where}: loss or gradient not finite for {most} steps in a row "
        f"(learning rate {rate:.2e})\nlook at {look}"
    )


def _evaluate_and_save(job: Job, state: TrainState, clock: Clock, finished: bool, changed: bool) -> None:
    """Whatever is due at this step and not yet done; a new best is always saved, so that `best` leads somewhere."""
    began, progress, training = time.perf_counter(), state.progress, job.config.training
    improved = False
    job.diagnostics.record(state, finished)
    due = finished or progress.step == 0 or _due(progress.step, training.evaluate_every)
    missing = progress.last is None or progress.last.step != progress.step
    if due and missing:
        improved = _evaluate(job, state)
        progress.closing_seconds = max(progress.closing_seconds, time.perf_counter() - began)
    progress.seconds = clock.seconds
    cools = progress.cooling_since is None and _begins_to_cool(job, progress, clock.done(progress.step))
    if cools:
        progress.cooling_since = progress.step
    if improved or (changed and (finished or cools or _due(progress.step, training.save_every))):
        _save(job, state)
        if improved:
            progress.closing_seconds = max(progress.closing_seconds, time.perf_counter() - began)


def _begins_to_cool(job: Job, progress: Progress, done: float) -> bool:
    schedule = job.config.training.schedule
    return schedule.stable_share is not None and is_cooling(
        schedule, progress.step, done, job.resolved.total_steps, job.config.warmup_taken
    )


def _evaluate(job: Job, state: TrainState) -> bool:
    """Evaluate the model as it is; whether it is the best so far."""
    with state.optimizer.averaged():
        evaluation = evaluate(
            state.model,
            job.held_out,
            state.progress.step,
            seq_len=job.config.data.seq_len,
            sequences=state.micro_batch(job.config.training),
            mask_documents=job.config.data.mask_documents,
            objective=job.config.training.objective,
            check=job.interrupts.check,
        )
    _show(job, evaluation, state.progress)
    return state.progress.note(evaluation)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _show(job: Job, evaluation: Evaluation, progress: Progress) -> None:
    figures = {
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "validation_loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
    }
    finite = {key: value for key, value in figures.items() if math.isfinite(value)}
    job.monitor.record(evaluation.step, finite)
    said = f"validation loss {evaluation.loss:.4f}, perplexity {evaluation.perplexity:,.2f}"
    if "bits_per_byte" in finite:
        said += f", {evaluation.bits_per_byte:.4f} bits per byte"
    job.monitor.say(f"step {evaluation.step:,}: {said}")


def _save(job: Job, state: TrainState) -> None:
    progress, root = state.progress, job.run.checkpoints
    with state.optimizer.averaged():
        save_checkpoint(root, progress.step, to_checkpoint(state, {"identity": job.identity}))
    _point_best(root, progress)
    kept = (progress.best.step if progress.best else None, progress.cooling_since)
    prune(root, progress.step, job.config.training.keep_last, kept)


def _point_best(root: Path, progress: Progress) -> None:
    """Make the link `best` lead to the best evaluation's checkpoint, where that was saved."""
    if progress.best and progress.best.step in saved_steps(root):
        point(root, "best", progress.best.step)
