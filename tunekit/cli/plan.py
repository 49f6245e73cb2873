"""The verb that says what a run will need."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from tunekit.cli.common import (
    Json,
    Offline,
    Overrides,
    RecipePath,
    Settings,
    app,
    command,
    load_recipe,
    print_result,
    quiet_libraries,
)

Gpu = Annotated[str | None, typer.Option(metavar="NAME", help="h100-80g, h200, a100-80g, rtx4090, t4, cpu, ...")]
Gpus = Annotated[int | None, typer.Option(min=1, help="How many of them.")]
Prices = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML: price_per_hour and watts of each device.")]


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    gpu: Gpu = None,
    gpus: Gpus = None,
    prices: Prices = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Says what RECIPE will need in memory, time and money, and the smallest change that makes it fit.

    From config.json and the data alone: no weights are loaded. Exit code 5 where it does not fit.

    Examples:

        tunekit plan recipes/chat.yaml

        tunekit plan recipes/chat.yaml adapter=none --gpu rtx4090
    """
    with command(as_json, no_network=offline):
        resolved = load_recipe(recipe, overrides, settings)
        quiet_libraries()
        logging.getLogger("tunekit").setLevel(logging.WARNING)
        from tunekit.stages import plan as stage

        report = stage.run(resolved, gpu=gpu, gpus=gpus, prices=prices)
        print_result(report, stage.render(report), as_json)
        if report["exit_code"]:
            raise typer.Exit(report["exit_code"])
