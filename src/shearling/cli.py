"""The commands: each parses, calls one function, and prints. What they call is imported when they run."""

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from shearling.data import DEFAULT_VALIDATION_SHARE
from shearling.errors import Interrupted, UserError

app = typer.Typer(
    name="shearling",
    help="Grow, compare, shear and ship small LLaMA-style language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing panels more than doubles the time to answer
)

OVERRIDABLE = {"allow_extra_args": True, "ignore_unknown_options": True}

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; overrides may follow: a.b=1 or --b 1")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. A user's mistake ends it with status 2 and a line for each thing to mend; a signal that a
    run has answered by saving, with 128 and its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? where a plot has blocks
    try:
        app(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        sys.exit(128 + interruption.signal_number)


@app.callback()
def shearling() -> None:
    """Commands that take a CONFIG take overrides after it: training.steps=100, steps=100 or --steps 100."""


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
    as_json: Json = False,
) -> None:
    """Train the model of an experiment.

    Evaluates, saves, and draws the loss curve; Ctrl-C saves first.
    """
    from shearling.experiments.curves import results_table
    from shearling.experiments.run import run_experiment

    results, picture = run_experiment(config, context.args, resume)
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


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="run folder, or Hugging Face folder")],
    prompt: Annotated[str, typer.Option("-i", "--prompt", help="text to continue")] = "",
    n_tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, help="tokens at most")] = 256,
    temperature: Annotated[float, typer.Option("-t", "--temperature", min=0, help="0: the likeliest token")] = 1.0,
    top_p: Annotated[
        float, typer.Option("-p", "--top-p", min=0, max=1, help="mass of the likeliest tokens kept")
    ] = 0.9,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", min=0, max=2**63 - 1, help="same seed, same text [the clock]")
    ] = None,
) -> None:
    """Continue a text with a trained model.

    The text comes as it is drawn; tokens per second go to standard error.
    """
    from shearling.experiments.sample import write_text

    speed = write_text(
        model, prompt, n_tokens, temperature=temperature, top_p=top_p, seed=seed,
        write=lambda text: print(text, end="", flush=True),
    )  # fmt: skip
    print()
    print(f"{speed:.1f} tokens/s", file=sys.stderr)


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
        batch=batch, seq_len=seq_len, rounds=rounds, steps=steps, say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    print(json.dumps(results, indent=2) if as_json else training_table(results))
