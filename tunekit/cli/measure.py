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
    train_data: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Training rows in which the items are looked for.")
    ] = None,
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
            train_data=train_data or (),
        )
        print_result(result, stage.render(result), as_json)


@app.command()
def gate(
    result: Annotated[str, typer.Argument(metavar="RESULT", help="A run folder, or its result.json.")],
    gates: Annotated[
        list[str] | None, typer.Option("--gate", metavar="CONDITION", help="Such as 'gsm8k.accuracy >= 0.05'.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Another run, which conditions call baseline.")] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="JUnit XML for CI systems goes there.")] = None,
    as_json: Json = False,
) -> None:
    """Checks what a run reached against gates, those of its recipe or those given; exit code 8 where one fails.

    Examples:

        tunekit gate out/chat

        tunekit gate out/chat --gate "eval_loss < 1.9" --gate "blimp.accuracy >= before - 0.01" --junit gates.xml

        tunekit gate out/new-eval --gate "svamp.numeric >= baseline - 0.02" --baseline out/old-eval
    """
    with command(as_json):
        from tunekit.evals.gates import failure
        from tunekit.stages import gate as stage

        verdicts = stage.run(result, gates or (), baseline=baseline, junit_file=junit)
        passed = all(each.passed for each in verdicts)
        report = {"status": "done" if passed else "failed", "gates": [each.as_dict() for each in verdicts]}
        print_result(report, stage.render(verdicts), as_json)
        if not passed:
            raise typer.Exit(failure(verdicts).exit_code)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The output_dir of a run, or of an evaluation.")],
    output: Annotated[str | None, typer.Option(help="The file; by default report.html in the folder.")] = None,
    as_json: Json = False,
) -> None:
    """Writes one page of HTML about a run: data, curves, scores with intervals, gates, answers. It loads nothing.

    Example: tunekit report out/chat
    """
    with command(as_json):
        from tunekit.stages import report as stage

        file = stage.run(run, output)
        print_result({"report": str(file), "bytes": file.stat().st_size}, f"report: {file}", as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Folders of runs or evaluations.")],
    html: Annotated[str | None, typer.Option(metavar="FILE", help="The same as a page of HTML.")] = None,
    as_json: Json = False,
) -> None:
    """Puts runs side by side: figures, scores on the same items with a paired test, and what differs in their recipes.

    Examples:

        tunekit compare out/chat out/chat-2

        tunekit compare out/base-eval out/tuned-eval --html compare.html
    """
    with command(as_json):
        from tunekit.stages import compare as stage

        result = stage.run(runs)
        if html is not None:
            stage.write_page(result, html)
        print_result(result, stage.render(result), as_json)


ENGINES = ("tunekit", "lm-eval")


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts or ())
    for name, path in pairs.items():
        if not name or not path:
            raise RecipeError(f"--data: {name}{path}: is not TASK=PATH", "Write for example --data svamp=SVAMP.json.")
    return pairs
