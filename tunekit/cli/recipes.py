"""Verbs about recipes; none of them loads torch."""

import sys
from typing import Annotated

import typer

from tunekit.cli.common import Json, Overrides, RecipePath, Settings, app, command, load_recipe, print_result
from tunekit.errors import RecipeError, StorageError

OutputFile = Annotated[
    str | None, typer.Option("--output", metavar="FILE", help="Write there, not to standard output.")
]


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, settings: Settings = None, as_json: Json = False) -> None:
    """Prints the whole resolved RECIPE, every value with where it comes from. Nothing is trained or downloaded.

    Example: tunekit show recipes/chat.yaml train.num_train_epochs=1
    """
    with command(as_json):
        from tunekit.recipe.show import as_dict, as_yaml

        resolved = load_recipe(recipe, overrides, settings)
        print_result(as_dict(resolved), as_yaml(resolved), as_json)


@app.command()
def init(
    stage: Annotated[str, typer.Option(help="What the recipe is for: sft, reward, dpo or kto.")] = "sft",
    model: Annotated[str | None, typer.Option(help="Hub id, folder or built-in name of the model.")] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="A file, a folder or a data set of the hub.")] = None,
    output: OutputFile = None,
) -> None:
    """Writes a commented recipe to start from: what most people set, and what they look for next, commented out.

    Examples:

        tunekit init --output recipe.yaml

        tunekit init --model Qwen/Qwen3-0.6B --data chats.jsonl --output recipe.yaml
    """
    with command():
        from tunekit.recipe.starter import DATA, MODEL, starter

        text = starter(stage, MODEL if model is None else model, DATA if data is None else data)
        _write(text, output)
        if output is not None:
            print(f"{output}: edit it, then: tunekit show {output}, tunekit {stage} {output}")


@app.command()
def schema(output: OutputFile = None) -> None:
    """Prints the JSON Schema of recipes, by which editors complete and check keys; a file that exists is replaced.

    In a recipe, an editor finds it by the first line: # yaml-language-server: $schema=recipe.schema.json

    Example: tunekit schema --output recipe.schema.json
    """
    with command():
        from tunekit.recipe.json_schema import json_schema_text

        _write(json_schema_text(), output, replace=True)


@app.command()
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file of axolotl, LLaMA-Factory or TRL.")],
    tool: Annotated[
        str | None, typer.Option("--from", metavar="TOOL", help="axolotl, llamafactory or trl; else told by its keys.")
    ] = None,
    output: OutputFile = None,
) -> None:
    """Turns a config of axolotl, LLaMA-Factory or TRL into a recipe, and lists what has no counterpart.

    Examples:

        tunekit convert qlora.yml --output recipe.yaml

        tunekit convert sft.yaml --from trl
    """
    with command():
        from tunekit.recipe.convert import convert as convert_file

        converted = convert_file(file, tool, output or "the recipe")
        _write(converted.recipe, output)
        print(converted.report, file=sys.stderr)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(metavar="A", help="A recipe, or the output_dir of a run.")],
    right: Annotated[str, typer.Argument(metavar="B", help="The one to compare it with.")],
    as_json: Json = False,
) -> None:
    """Prints the values in which two resolved recipes or runs differ, each with where it comes from.

    Of runs also what their manifests say: versions, content of the data, base model. The exit code is 0 either way.

    Examples:

        tunekit diff recipes/chat.yaml recipes/sql.yaml

        tunekit diff out/first out/second
    """
    with command(as_json):
        from tunekit.recipe.diff import as_text, compare

        comparison = compare(left, right)
        print_result(comparison, as_text(comparison), as_json)


def _write(text: str, output: str | None, *, replace: bool = False) -> None:
    """To standard output, or to a file that is not there yet. Raises `RecipeError` or `StorageError`."""
    if output is None:
        print(text, end="")
        return
    try:
        with open(output, "w" if replace else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"--output {output}: exists already", "Name another file, or remove that one.") from None
    except OSError as error:
        raise StorageError(f"--output {output}: cannot be written: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"--output {output!r}: is not a file name: {error}") from None
