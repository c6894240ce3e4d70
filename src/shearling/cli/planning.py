"""The command that turns a budget into a config."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shearling.cli.application import OVERRIDABLE, Json, app, say


@app.command(context_settings=OVERRIDABLE)
def plan(
    context: typer.Context,
    minutes: Annotated[float | None, typer.Option(min=0.5, help="budget: wall-clock minutes on this machine")] = None,
    flops: Annotated[float | None, typer.Option(min=1, help="budget: training FLOPs")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, help="budget: training tokens")] = None,
    data: Annotated[Path | None, typer.Option(help="prepared text to train on")] = None,
    out: Annotated[Path, typer.Option(help="config to write; the picture goes beside it")] = Path("plan.yaml"),
    fit: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="fit the law to this run; may be repeated")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=16, help="tokens per sequence")] = 256,
    aspect: Annotated[float, typer.Option(min=4, max=1024, help="width over depth: larger is wider")] = 64.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    explain: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="judge this config instead; overrides may follow")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose model, batch, rate and steps for a budget, and write the config.

    Measures this machine where minutes are given, expects losses by a scaling law, and says which rule gave what.
    """
    from dataclasses import asdict

    from shearling.errors import UserError
    from shearling.experiments.plan.choose import Budget
    from shearling.experiments.plan.explain import explain as remarks_on
    from shearling.experiments.plan.make import make_plan
    from shearling.experiments.show import table

    if explain is not None:
        remarks = remarks_on(explain, context.args)
        print(json.dumps([dict(zip(("of", "value", "remark"), r, strict=True)) for r in remarks], indent=2)
              if as_json else table(remarks, ">"))  # fmt: skip
        return
    if context.args:
        raise UserError(f"plan: {context.args[0]}: overrides belong to --explain; edit the config that plan writes")
    if sum(value is not None for value in (minutes, flops, tokens)) != 1:
        raise UserError("plan: give one of --minutes, --flops and --tokens, or --explain CONFIG")
    if data is None:
        raise UserError("plan: --data names the prepared text to train on: make it by `shearling prepare`")
    made = make_plan(
        Budget(minutes, flops, tokens), data, out,
        fitted=fit or (), seq_len=seq_len, aspect=aspect, device=device, say=say,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"chosen": asdict(made.chosen), "choices": [asdict(c) for c in made.choices],
                          "warnings": made.warnings, "config": str(made.config)}, indent=2))  # fmt: skip
        return
    print(table(made.rows, ">"))
    for warning in made.warnings:
        print(f"warning: {warning}")
    print(f"frontier: {made.picture}\ntrain it: shearling train {made.config}")
