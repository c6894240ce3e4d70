"""The commands: each parses, calls one function, and prints. What they call is imported when they run."""

import json
import sys
from dataclasses import asdict
from enum import Enum
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

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="run, Hugging Face or Meta folder, .gguf, or llama2.c's .bin")
]
Temperature = Annotated[float, typer.Option("-t", "--temperature", min=0, help="0: the likeliest token")]
TopP = Annotated[
    float, typer.Option("-p", "--top-p", min=0, max=1, help="mass of the likeliest tokens kept; 0 and 1: all")
]
Seed = Annotated[
    int, typer.Option("-s", "--seed", min=0, max=2**64 - 1, help="same seed, same text; 0: from the clock")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("-z", "--tokenizer", metavar="FILE", help="tokenizer [what lies with the model]")
]
System = Annotated[
    str | None, typer.Option("-y", "--system", metavar="TEXT", help="what a chat's model is told beforehand")
]
TopK = Annotated[int, typer.Option(min=0, help="so many of the likeliest tokens kept; 0: all")]
MinP = Annotated[float, typer.Option(min=0, max=1, help="tokens at least this share as likely as the likeliest kept")]
RepetitionPenalty = Annotated[float, typer.Option(help="above 1: tokens that the text has become less likely")]
RepetitionWindow = Annotated[int, typer.Option(min=0, help="how many of the last tokens are penalized")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="ends the text where it comes; repeatable")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads that work together [one a core]")]
ContextLength = Annotated[int | None, typer.Option("--context", min=1, help="longest text, in tokens [the model's]")]


class Mode(str, Enum):
    """What `generate` does with a text."""

    generate = "generate"
    chat = "chat"


class Kept(str, Enum):
    """How keys and values are kept."""

    f32 = "f32"
    bf16 = "bf16"
    int8 = "int8"


KeysAndValues = Annotated[Kept, typer.Option(help="how keys and values are kept: fewer bits, less memory")]


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


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    pass


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="run folder, Hugging Face or Meta folder, .gguf, llama2.c's .bin")
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="a file .gguf or .bin, or a folder")],
    to: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="huggingface, run, gguf or llama2c [by DEST's suffix, else huggingface]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="matrices as f32, f16 or bf16 [as they are, or f32 where they cannot stay so]")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC", help="q8_0 (.gguf, .bin, run), q4_0, q4_1 (.gguf, run); int8, int4, nf4, nf4-double"
        ),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="weights that share a scale, of int8, int4 and nf4 [64]")
    ] = None,
    version: Annotated[int | None, typer.Option(help="of a .bin: 0 or 1 (f32), 2 (8-bit) [0, or 2 for q8_0]")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("-z", "--tokenizer", help="tokenizer to take in place of the source's")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="data folder or text file: perplexity on a sample of it, before and after")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model that is there already")] = False,
    as_json: Json = False,
) -> None:
    """Convert a model from one format to another.

    What is written is read back and compared, every weight and the logits of fixed tokens, before it takes its name.
    """
    from shearling.experiments.convert import convert as carry_out
    from shearling.experiments.convert import report

    figures = carry_out(
        source, dest, to=to, dtype=dtype, quantize=quantize, group_size=group_size, version=version,
        tokenizer=tokenizer, data=data, overwrite=overwrite,
    )  # fmt: skip
    print(json.dumps(figures, indent=2) if as_json else report(figures))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("-i", "--prompt", metavar="TEXT", help="text to continue; a chat's first turn")
    ] = None,
    steps: Annotated[
        int, typer.Option("-n", "--tokens", min=0, help="tokens in all, the prompt's among them; 0: as many as fit")
    ] = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    tokenizer: TokenizerFile = None,
    mode: Annotated[Mode, typer.Option("-m", "--mode", help="continue a text, or talk")] = Mode.generate,
    system: System = None,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    repetition_window: RepetitionWindow = 64,
    stop: Stop = None,
    threads: Threads = None,
    context: ContextLength = None,
    kv: KeysAndValues = Kept.f32,
    as_json: Json = False,
) -> None:
    """Continue a text with a model of any format.

    -t -p -s -n -i -z -m -y are llama2.c's: the same seed gives its text. The text comes as it is drawn; tokens per
    second go to standard error.
    """
    from shearling.engine.sampling import Sampling
    from shearling.experiments.sample import open_model, write_text
    from shearling.experiments.talk import talk

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, repetition_window, seed)
    opened = open_model(model, tokenizer=tokenizer, threads=threads, context=context, kv=kv.value)
    if mode is Mode.chat:
        if as_json:
            raise UserError("--json: a conversation has no figures: leave it out, or -m chat")
        talk(opened, sampling, first=prompt, system=system, stop=stop or (), positions=steps, write=_write, say=_say)
        return
    if system is not None:
        raise UserError("-y: a text to continue has no system prompt: add -m chat, or leave it out")
    write = _silent if as_json else _write
    written = write_text(opened, prompt or "", steps=steps, sampling=sampling, stop=stop or (), write=write, say=_say)
    if as_json:
        print(json.dumps(written.as_data(), indent=2))
        return
    print()
    if written.tokens_per_second is not None:
        _say(f"achieved tok/s: {written.tokens_per_second:.2f}")


@app.command()
def chat(
    model: Model,
    prompt: Annotated[str | None, typer.Option("-i", "--prompt", metavar="TEXT", help="the first turn")] = None,
    system: System = None,
    limit: Annotated[
        int, typer.Option("-n", "--tokens", min=0, help="tokens of a reply at most; 0: as many as fit")
    ] = 0,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    tokenizer: TokenizerFile = None,
    llama2_template: Annotated[
        bool, typer.Option("--llama2-template", help="talk as Llama 2 does, whatever template the model carries")
    ] = False,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    repetition_window: RepetitionWindow = 64,
    stop: Stop = None,
    threads: Threads = None,
    context: ContextLength = None,
    kv: KeysAndValues = Kept.f32,
) -> None:
    """Talk with a model, in its own template or Llama 2's.

    A line is a turn, typed or piped in. Ctrl-C ends a reply; /reset forgets what was said; /quit or Ctrl-D ends.
    """
    from shearling.engine.sampling import Sampling
    from shearling.experiments.sample import open_model
    from shearling.experiments.talk import talk

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, repetition_window, seed)
    opened = open_model(model, tokenizer=tokenizer, threads=threads, context=context, kv=kv.value)
    talk(
        opened, sampling, first=prompt, system=system, stop=stop or (), limit=limit or None,
        llama2_template=llama2_template, write=_write, say=_say,
    )  # fmt: skip


@app.command()
def download(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="one of --list, or OWNER/NAME of the Hub, or OWNER/NAME:FILE.gguf"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder for the files [the Hub's cache]")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit [main]")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="take only what is cached")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the files and their sizes")] = False,
    list_names: Annotated[bool, typer.Option("--list", help="show the models that have short names")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a published model from the Hugging Face Hub.

    Checked and cached; interrupted, the same command goes on.
    """
    from shearling.formats.download import NAMES, describe_names
    from shearling.formats.download import download as fetch
    from shearling.formats.hub import Hub

    if list_names:
        names = {name: asdict(known) for name, known in NAMES.items()}
        print(json.dumps(names, indent=2) if as_json else describe_names())
        return
    if name is None:
        raise UserError("NAME: missing: `shearling download --list` shows some; others are named OWNER/NAME")
    fetched = fetch(name, Hub(offline=offline, say=_say), out=out, revision=revision, dry_run=dry_run)
    print(json.dumps(fetched.as_data(), indent=2) if as_json else fetched.render())


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
