"""Commands from text to trained and compared models."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from shearling.cli.application import OVERRIDABLE, Config, Json, app
from shearling.data import DEFAULT_VALIDATION_SHARE


@app.command(context_settings=OVERRIDABLE)
def show(context: typer.Context, config: Config, as_json: Json = False) -> None:
    """Show what a config means.

    Values and where they come from, parameters, FLOPs, the equations that each block executes, memory, and the
    learning rate as a plot.
    """
    from shearling.experiments.show import render
    from shearling.experiments.summary import as_data, summarize

    summary = summarize(config, context.args)
    print(json.dumps(as_data(summary), indent=2) if as_json else render(summary))


@app.command()
def schema(out: Annotated[Path | None, typer.Option(help="write to this file instead of printing")] = None) -> None:
    """Print the JSON Schema of config files.

    With it, editors complete and check them.
    """
    from shearling.config import editor_schema, save_editor_schema
    from shearling.training.spec import ExperimentSpec

    if out:
        save_editor_schema(ExperimentSpec, out)
    else:
        print(json.dumps(editor_schema(ExperimentSpec), indent=2))


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="named corpora, files or folders")],
    out: Annotated[Path, typer.Option(help="folder for the token shards")],
    tokenizer: Annotated[Path | None, typer.Option(help="use this tokenizer instead of training one")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="size of the trained tokenizer [4096]")] = None,
    text_field: Annotated[
        str, typer.Option(help="field of .jsonl objects, or column of tables, with the text")
    ] = "text",
    separator: Annotated[str, typer.Option(help="line between the documents of a .txt file")] = "<|endoftext|>",
    validation_share: Annotated[
        float, typer.Option(help="expected share of documents held out")
    ] = DEFAULT_VALIDATION_SHARE,
    workers: Annotated[int | None, typer.Option(help="threads that encode [all cores]")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="stop at what cannot be read, instead of counting it")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="begin anew whatever the folder holds")] = False,
    as_json: Json = False,
) -> None:
    """Turn text into token shards.

    A tokenizer is trained on the text unless one is given. Interrupted, the same command goes on.
    """
    from shearling.data.manifest import describe
    from shearling.data.prepare import prepare as write_shards

    manifest = write_shards(
        sources,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_field=text_field,
        separator=separator,
        validation_share=validation_share,
        workers=workers,
        strict=strict,
        overwrite=overwrite,
    )
    print(manifest.to_json() if as_json else describe(out, manifest))


@app.command(context_settings=OVERRIDABLE)
def train(
    context: typer.Context,
    config: Config,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")] = False,
    extend: Annotated[
        Path | None, typer.Option(metavar="RUN", help="go on where that run's cool-down began, to a longer horizon")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the model of an experiment.

    Evaluates, saves, and draws the loss curve; Ctrl-C saves first.
    """
    began = time.perf_counter()  # what is imported here is part of a budget of minutes

    from shearling.experiments.curves import results_table
    from shearling.experiments.run import run_experiment

    results, picture = run_experiment(config, context.args, resume, began, extend)
    print(json.dumps(results, indent=2) if as_json else f"{results_table(results)}\nloss curve: {picture}")


@app.command(context_settings=OVERRIDABLE)
def compare(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG", help="an arm each, or NAME=CONFIG; overrides for all may follow")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="runs of each arm, from its seed on")] = 3,
    out: Annotated[Path | None, typer.Option(help="folder of the comparison [outputs/compare/ARMS]")] = None,
    baseline: Annotated[str | None, typer.Option(metavar="ARM", help="the arm that others face [first]")] = None,
    over: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="the arms may differ in this option, or group; repeatable")
    ] = None,
    tune: Annotated[str | None, typer.Option(metavar="lr", help="find each arm's best learning rate first")] = None,
    grid: Annotated[str | None, typer.Option(help="learning rates to tune over [1/4 to 4 times its own]")] = None,
    controls: Annotated[bool, typer.Option("--controls", help="add the control arms of a random-data warm-up")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs side by side [what the machine takes]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of each run [1]")] = None,
    as_json: Json = False,
) -> None:
    """Compare arms over seeds, judge, and write the report.

    Everything but what is compared must be equal. Interrupted, the same command goes on.
    """
    from shearling.experiments.compare import compare as carry_out
    from shearling.experiments.compare import make_plan
    from shearling.experiments.compare.table import render
    from shearling.experiments.report import write_report
    from shearling.training.warmup_controls import control_arms

    plan = make_plan(
        configs, seeds=seeds, baseline=baseline, over=over or (), tune=tune, grid=grid,
        controls=control_arms if controls else None,
    )  # fmt: skip
    judged, folder = carry_out(plan, out, jobs=jobs, threads=threads)
    print(json.dumps(judged, indent=2) if as_json else f"{render(judged)}\n", flush=True)
    print(f"report: {write_report(folder)}", file=sys.stderr if as_json else sys.stdout)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a comparison, or of a run")],
) -> None:
    """Write a comparison or a run as one HTML page.

    The page needs no network; its pictures also lie beside it as PNG.
    """
    from shearling.experiments.report import write_report

    print(f"report: {write_report(folder)}")
