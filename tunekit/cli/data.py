"""Verbs that look at a recipe's data and try it out before anything is trained."""

import logging
from typing import Annotated

import typer

from tunekit.cli.common import (
    AllowCode,
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


@app.command()
def preview(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="Rows to show; 0: all.")] = 3,
    row: Annotated[int | None, typer.Option(help="Show this row of the data, counted from 1.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write one self-contained page as well.")] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Shows what the model will see of the rows, trained tokens coloured, and what was cut, dropped or is wrong.

    With --json ids, mask and text are exact, so that they can be compared between commits.

    Examples:

        tunekit preview recipes/chat.yaml

        tunekit preview recipes/chat.yaml --row 12

        tunekit preview recipes/chat.yaml -n 0 --json > rows.json
    """
    with command(as_json, no_network=offline):
        resolved = load_recipe(recipe, overrides, settings)
        quiet_libraries()
        logging.getLogger("tunekit").setLevel(logging.WARNING)  # the report says it all
        from rich.console import Console

        from tunekit.stages import preview as stage

        report = stage.run(resolved, count=count, row=row)
        if html is not None:
            stage.write_html(report, html)
        if as_json:
            print_result(report, "", as_json)
        else:
            console = Console(highlight=False, soft_wrap=True)
            for line in stage.render(report, colour=console.color_system is not None and not console.no_color):
                console.print(line)
        if report["exit_code"]:
            raise typer.Exit(report["exit_code"])


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Proves a recipe good before a machine is paid for: two real steps on a tiny model of the same architecture.

    Recipe, files, model config, tokenizer, chat template, rows and masks, memory, then two optimizer steps with the
    real data on the processor. The exit code is that of the first part that failed.

    Example: tunekit check recipes/chat.yaml --offline
    """
    with command(as_json, no_network=offline):
        quiet_libraries()
        logging.getLogger("tunekit").setLevel(logging.WARNING)  # the report says it all
        from tunekit.stages import check as stage

        report = stage.run(lambda: load_recipe(recipe, overrides, settings), allow_code=allow_code)
        print_result(report, stage.render(report), as_json)
        if report["exit_code"]:
            raise typer.Exit(report["exit_code"])
