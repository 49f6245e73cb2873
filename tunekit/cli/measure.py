"""Verbs that measure a model: eval, gate, report, compare."""

from typing import Annotated

import typer

from tunekit.cli.common import Json, Offline, app, command, print_result, quiet_libraries
from tunekit.errors import RecipeError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, adapter, model folder, built-in or hub id.")]


@app.command("eval")
def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(metavar="NAME,...", help="Names of tasks, or YAML files.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="TASK=PATH", help="Items for a task from another file or data set.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task at most, chosen by the seed.")] = None,
    output: Annotated[str | None, typer.Option(help="A folder for result.json and every answer.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that are written together.")] = 16,
    seed: Annotated[int | None, typer.Option(min=0, help="In the place of the seeds of the tasks.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="tunekit, or lm-eval for the tasks of lm-evaluation-harness.")
    ] = "tunekit",
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Let a task's own Python file run.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measures a model on tasks: scores with 95 % intervals, and every answer if there is an --output.

    Examples:

        tunekit eval smollm2-135m-instruct --tasks blimp,svamp --limit 200

        tunekit eval out/chat --tasks xstest,tasks/mine.yaml --output out/chat-eval

        tunekit eval out/sql --tasks arc_easy --engine lm-eval --data arc_easy=arc.jsonl
    """
    with command(as_json, no_network=offline):
        quiet_libraries()
        if engine not in ENGINES:
            raise RecipeError(f"--engine: {engine}", f"Accepted: {', '.join(ENGINES)}.")
        from tunekit.stages import evaluate as stage

        result = stage.run(
            model,
            [name.strip() for name in tasks.split(",") if name.strip()],
            data=_pairs(data),
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            output=output,
            engine=engine,
            allow_code=allow_code,
        )
        print_result(result, stage.render(result), as_json)


ENGINES = ("tunekit", "lm-eval")


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts or ())
    for name, path in pairs.items():
        if not name or not path:
            raise RecipeError(f"--data: {name}{path}: is not TASK=PATH", "Write for example --data svamp=SVAMP.json.")
    return pairs
