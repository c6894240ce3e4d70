"""Decoding speed and memory of several libraries in one run, round by round, so that noise hits all alike."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shearling.bench.ceilings import Ceilings
from shearling.bench.decode_contenders import CONTENDERS, OURS
from shearling.bench.decode_models import Work, for_peer, prepare, smallest
from shearling.bench.decode_report import summarize
from shearling.bench.process import Worker
from shearling.engine.session import fitting_threads
from shearling.errors import UserError

Say = Callable[[str], None]

WORKER = "shearling.bench.decode_worker"
COLD_STARTS = 3
COLD_TOKENS = 16


def bench_decode(
    model: str,
    against: Sequence[str],
    *,
    quantize: str | None = None,
    threads: int | None = None,
    rounds: int = 5,
    tokens: int = 100,
    prompt: int = 240,
    batch: int = 8,
    say: Say,
) -> dict[str, Any]:
    """Measure our engine and `against` on the same weights, with as many threads.

    Every contender has a process of its own; in each round each measure is taken of all of them, one after the other.
    Ratios are medians of the rounds' ratios.

    Args:
        model: a shape of `configs/models`, with weights drawn here, or a model of any format.
        quantize: how its matrices are stored: f32, bf16, q8_0, q4_0 or q4_1; None: as they are, and q8_0 of a shape.
        threads: of each contender; None: one a core.
        tokens: that are decoded one at a time.
        prompt: tokens that are read in one call.
        batch: sequences that we decode side by side.

    Returns:
        What `decode_report.summarize` says.

    Raises:
        UserError: a peer is unknown or not installed, there is no such model, or a text does not fit its context.
    """
    chosen = [OURS, *dict.fromkeys(against)]
    _check_peers(chosen[1:])
    threads = fitting_threads(threads)
    with TemporaryDirectory(prefix="shearling-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        work = prepare(model, quantize, folder, say)
        longest = work.checkpoint.spec.max_seq_len
        for option, length in (("--tokens", tokens), ("--prompt", prompt)):
            if length > longest:
                raise UserError(f"{option} {length}: the model's context is {longest}: lower it")
        common = {
            "threads": threads,
            "context": max(tokens, prompt),
            "tokens": tokens,
            "prompt": prompt,
            "batch": batch,
        }
        say("measuring the machine's ceilings")
        machine = stack.enter_context(Ceilings(threads))
        say("compiling kernels, where that has not been done")
        _peak_of_ours(work, common)
        bare = smallest(work, folder)
        _peak_of_ours(bare, common)
        without_model = _peak_of_ours(bare, common) - bare.bytes_per_token - kv_bytes(bare, common["context"])
        orders, stored, workers = {}, {}, {}
        for contender in chosen:
            path, stored[contender] = for_peer(work, CONTENDERS[contender].reads, folder, say)
            orders[contender] = {**common, "contender": contender, "path": str(path)}
            say(f"warming up {contender} ({stored[contender]})")
            workers[contender] = stack.enter_context(Worker(WORKER, orders[contender]))
        speeds, bandwidths = _rounds(workers, machine, rounds, say)
        first_tokens = _first_tokens(work, orders, say)
    return summarize(
        {
            "model": work.name,
            "weights": work.weights,
            "rounds": rounds,
            **{key: value for key, value in common.items() if key != "context"},
        },
        speeds,
        first_tokens,
        {
            contender: {"bytes_per_token": work.bytes_per_token, **_known(worker.ready), "weights": stored[contender]}
            for contender, worker in workers.items()
        },
        machine.peaks,
        bandwidths,
        flops_per_token=work.prefill_flops_per_token,
        memory={
            "weights_bytes": sum(tensor.nbytes for tensor in work.checkpoint.tensors.values()),
            "kv_bytes": kv_bytes(work, common["context"]),
            "without_model_bytes": without_model,
        },
    )


def kv_bytes(work: Work, context: int) -> int:
    """Of the keys and values of one text in fp32."""
    spec = work.checkpoint.spec
    return 2 * 4 * spec.n_layers * spec.kv_heads * spec.head_dim * context


def _peak_of_ours(work: Work, common: dict[str, int]) -> int:
    """Bytes of our process with this model. Where it compiles kernels, LLVM's are among them."""
    with Worker(WORKER, {**common, "contender": OURS, "path": str(work.gguf)}) as worker:
        return int(worker.ready["peak_bytes"])


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _check_peers(against: Sequence[str]) -> None:
    peers = sorted(CONTENDERS.keys() - {OURS})
    for name in against:
        if name not in peers:
            raise UserError(f"--against {name}: no such peer; known are {', '.join(peers)}")
        needs = CONTENDERS[name].needs
        if needs and find_spec(needs[0]) is None:
            raise UserError(f"--against {name}: {needs[1]} is not installed: pip install 'shearling[bench]'")


def _rounds(
    workers: dict[str, Worker], machine: Ceilings, rounds: int, say: Say
) -> tuple[dict[str, dict[str, list[float]]], list[dict[str, float | None]]]:
    """Tokens per second, by contender and measure, and the bandwidths of each round."""
    measures = list(dict.fromkeys(measure for worker in workers.values() for measure in worker.ready["measures"]))
    speeds: dict[str, dict[str, list[float]]] = {contender: {} for contender in workers}
    bandwidths = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        bandwidths.append(machine.bandwidths())
        for measure in measures:
            for contender, worker in workers.items():
                if measure in worker.ready["measures"]:
                    speed = worker.ask(measure)["tokens_per_second"]
                    speeds[contender].setdefault(measure, []).append(speed)
    return speeds, bandwidths


def _first_tokens(work: Work, orders: dict[str, dict[str, Any]], say: Say) -> dict[str, list[float]]:
    """Seconds, by contender, from the start of a process to the first byte of its text.

    Ours is `generate` itself, the others a process that reads a token and writes the next. The first one of each is not
    counted: it brings files into the system's cache.
    """
    if work.checkpoint.tokenizer is None:
        say("the model has no tokenizer, so that no process writes text: time to the first token is left out")
        return {}
    found: dict[str, list[float]] = {contender: [] for contender in orders}
    for start in range(COLD_STARTS + 1):
        say(f"cold start {start} of {COLD_STARTS}" if start else "a first cold start, not counted")
        for contender, order in orders.items():
            seconds = _cold_start(contender, order)
            if start:
                found[contender].append(seconds)
    return found


def _cold_start(contender: str, order: dict[str, Any]) -> float:
    given = json.dumps({**order, "cold": True}) + "\n"
    arguments = [WORKER]
    if contender == OURS:
        arguments = ["shearling", "generate", order["path"], "-t", "0", "-n", str(COLD_TOKENS)]
        arguments += ["--threads", str(order["threads"])]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(given.encode())
    process.stdin.close()
    first = os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - began
    if first:
        process.kill()
    process.stdin = None
    _, said = process.communicate()
    if not first:
        last = (said.decode(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"bench: a cold start of {contender} wrote no text: {last}")
    return seconds
