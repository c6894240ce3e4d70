"""Commands that let a model write: a text, or the replies of a conversation."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from shearling.cli.application import Json, Threads, app, say
from shearling.errors import UserError

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
Llama2Template = Annotated[
    bool, typer.Option("--llama2-template", help="talk as Llama 2 does, whatever template the model carries")
]
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


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    pass


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
    llama2_template: Llama2Template = False,
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

    if mode is Mode.chat and as_json:
        raise UserError("--json: a conversation has no figures: leave it out, or -m chat")
    if mode is Mode.generate and system is not None:
        raise UserError("-y: a text to continue has no system prompt: add -m chat, or leave it out")
    if mode is Mode.generate and llama2_template:
        raise UserError("--llama2-template: a text to continue is no conversation: add -m chat, or leave it out")
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, repetition_window, seed)
    opened = open_model(model, tokenizer=tokenizer, threads=threads, context=context, kv=kv.value)
    if mode is Mode.chat:
        talk(
            opened, sampling, first=prompt, system=system, stop=stop or (), positions=steps,
            llama2_template=llama2_template, write=_write, say=say,
        )  # fmt: skip
        return
    write = _silent if as_json else _write
    written = write_text(opened, prompt or "", steps=steps, sampling=sampling, stop=stop or (), write=write, say=say)
    if as_json:
        print(json.dumps(written.as_data(), indent=2))
        return
    print()
    if written.tokens_per_second is not None:
        say(f"achieved tok/s: {written.tokens_per_second:.2f}")


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
    llama2_template: Llama2Template = False,
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

    A line is a turn, typed or piped in. Ctrl-C ends a reply; /reset forgets what was said; /help lists such words;
    /quit or Ctrl-D ends.
    """
    from shearling.engine.sampling import Sampling
    from shearling.experiments.sample import open_model
    from shearling.experiments.talk import talk

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, repetition_window, seed)
    opened = open_model(model, tokenizer=tokenizer, threads=threads, context=context, kv=kv.value)
    talk(
        opened, sampling, first=prompt, system=system, stop=stop or (), limit=limit or None,
        llama2_template=llama2_template, write=_write, say=say,
    )  # fmt: skip
