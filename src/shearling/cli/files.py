"""Commands for models as files: from format to format, and from the Hub."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shearling.cli.application import Json, app, say
from shearling.errors import UserError


def _path(given: str) -> Path:
    """What was given as a path. An empty one, as an unset variable leaves it, would be the folder that one is in."""
    if not given:
        raise typer.BadParameter("an empty path: name a file or folder; the one you are in is .")
    return Path(given)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", parser=_path, help="run folder, Hugging Face or Meta folder, .gguf, llama2.c's .bin"
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", parser=_path, help="a file .gguf or .bin, or a folder")],
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
        Path | None,
        typer.Option("-z", "--tokenizer", parser=_path, help="tokenizer to take in place of the source's"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(parser=_path, help="data folder or text file: perplexity on a sample of it, before and after"),
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
def download(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="one of --list, or OWNER/NAME of the Hub, or OWNER/NAME:FILE.gguf"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=_path, help="folder for the files [the Hub's cache]")
    ] = None,
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
    fetched = fetch(name, Hub(offline=offline, say=say), out=out, revision=revision, dry_run=dry_run)
    print(json.dumps(fetched.as_data(), indent=2) if as_json else fetched.render())
