"""The verb that runs several stages."""

from typing import Annotated

import typer

from tunekit.cli.common import AllowCode, Json, Offline, Settings, app, command, print_result

Pipeline = Annotated[str, typer.Argument(metavar="PIPELINE", help="A YAML file with several recipes, its stages.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE | ~KEY]...", help="Overrides: stages.ppo.train.max_steps=3, output_dir=out/x."),
]
First = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Run that stage and those after it even if nothing changed."),
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="STAGE", help="Run that stage alone, even if nothing changed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run and why; run nothing.")]


@app.command()
def run(
    pipeline: Pipeline,
    overrides: Overrides = None,
    settings: Settings = None,
    first: First = None,
    only: Only = None,
    dry_run: DryRun = False,
    allow_code: AllowCode = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Runs the stages of PIPELINE in their order, each only if something that it reads has changed since it was done.

    Ends with the exit code of the first stage that fails. Run again, it goes on where it was.

    Examples:

        tunekit run recipes/rlhf.yaml

        tunekit run recipes/rlhf.yaml stages.ppo.train.max_steps=3 output_dir=out/short

        tunekit run recipes/rlhf.yaml --dry-run
    """
    with command(as_json, no_network=offline):
        from tunekit.recipe.pipeline import load_pipeline
        from tunekit.stages import pipeline as stages
        from tunekit.stages.pipeline_report import plan_table, summary

        asked = stages.Asked(first, only, allow_code, offline)
        loaded = load_pipeline(pipeline, [*(overrides or ()), *(settings or ())])
        if dry_run:
            steps = stages.plan(loaded, asked)
            print_result({"stages": [step.as_dict() for step in steps]}, plan_table(steps), as_json)
            return
        result = stages.run(loaded, asked)
        print_result(result, summary(result), as_json)
    raise typer.Exit(result["exit_code"])
