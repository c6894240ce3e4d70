"""Commands that measure speed and memory."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shearling.cli.application import Json, Threads, app, say

bench = typer.Typer(help="Measure speed and memory against peers.")
app.add_typer(bench, name="bench")


@bench.command("train")
def bench_train(
    model: Annotated[str, typer.Option(help="a file of configs/models/, or a size there: 15M")] = "15M",
    against: Annotated[str, typer.Option(help="peers, separated by commas")] = "transformers",
    batch: Annotated[int, typer.Option(min=1, help="sequences per step")] = 16,
    seq_len: Annotated[int, typer.Option(min=1, help="tokens per sequence")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="paired rounds")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="steps per round")] = 2,
    as_json: Json = False,
) -> None:
    """Training speed and memory, ours and peers', each at its best of eager and compiled."""
    from shearling.bench.report import training_table
    from shearling.bench.shapes import load_shape
    from shearling.bench.train import bench_train as measure

    results = measure(
        load_shape(model), [name for name in against.split(",") if name],
        batch=batch, seq_len=seq_len, rounds=rounds, steps=steps, say=say,
    )  # fmt: skip
    print(json.dumps(results, indent=2) if as_json else training_table(results))


@bench.command("decode")
def bench_decode(
    model: Annotated[
        str, typer.Option(help="a size or file of configs/models/, with random weights; or a model of any format")
    ] = "15M",
    quantize: Annotated[
        str | None,
        typer.Option(metavar="CODEC", help="f32, bf16, q8_0, q4_0 or q4_1 [a model's own; q8_0 of random weights]"),
    ] = None,
    against: Annotated[str, typer.Option(help="peers, separated by commas")] = "llama.cpp,transformers",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="paired rounds")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="tokens decoded one at a time")] = 100,
    prompt: Annotated[int, typer.Option(min=1, help="tokens read in one call")] = 240,
    batch: Annotated[int, typer.Option(min=1, help="sequences that we decode side by side")] = 8,
    as_json: Json = False,
) -> None:
    """Decoding speed and memory, ours and peers', and the share of what this machine can do.

    Same weights, same threads, a process each; time to the first token is that of a cold process.
    """
    from shearling.bench.decode import bench_decode as measure
    from shearling.bench.decode_report import decode_table

    results = measure(
        model, [name for name in against.split(",") if name], quantize=quantize, threads=threads,
        rounds=rounds, tokens=tokens, prompt=prompt, batch=batch, say=say,
    )  # fmt: skip
    print(json.dumps(results, indent=2) if as_json else decode_table(results))


@bench.command("recipe")
def bench_recipe(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG", help="experiments to race")],
    data: Annotated[Path, typer.Option(help="prepared data that all train on")],
    out: Annotated[Path, typer.Option(help="folder for the runs, race.json and race.png")],
    baseline: Annotated[str, typer.Option(help="transformers, or a config of yours")] = "transformers",
    model: Annotated[str, typer.Option(help="the shape of transformers' model")] = "7M",
    minutes: Annotated[float, typer.Option(min=0.05, help="the baseline's time")] = 10.0,
    share: Annotated[float, typer.Option(min=0.01, max=10, help="of that time, the recipes'")] = 1 / 3,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each")] = 3,
    as_json: Json = False,
) -> None:
    """Race recipes against the clock: bits per byte that each reaches in a share of the baseline's time.

    The baseline is transformers' LLaMA with llm-baselines' AdamW recipe at its best speed, or a config of yours.
    """
    from shearling.bench.recipe import bench_recipe as race
    from shearling.bench.recipe import race_table

    results = race(
        configs, data=data, out=out, baseline=baseline, model=model, minutes=minutes, share=share, seeds=seeds, say=say
    )
    print(json.dumps(results, indent=2) if as_json else f"{race_table(results)}\npicture: {out / 'race.png'}")
