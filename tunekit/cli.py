"""The command line: one short command per verb. Heavy imports happen inside the commands, so that --help is instant."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from tunekit import __version__
from tunekit.errors import TunekitError

EXIT_CODES = """
Exit codes: 0 done and verified, 2 recipe or command line, 3 data, 4 storage, 5 memory, 6 a rank failed or hung,
7 environment (missing library, network, device), 8 a gate failed, 10 diverged, 75 preempted and saved, 130 interrupted,
1 a bug of tunekit.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Fine-tunes and aligns language models from a YAML recipe.\n\nExample: tunekit sft recipes/chat.yaml",
    epilog=EXIT_CODES,
)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. train.learning_rate=1e-4")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def main() -> None:
    app()


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"tunekit {__version__}")
        raise typer.Exit


@app.command()
def sft(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Supervised fine-tuning: trains after RECIPE and leaves a verified model in its output_dir.

    Examples:

        tunekit sft recipes/chat.yaml

        tunekit sft recipes/chat.yaml train.learning_rate=1e-4 output_dir=out/lr1e-4

        tunekit sft recipes/chat.yaml resume=auto
    """
    with _command(as_json):
        from tunekit.recipe.load import load

        resolved = load(recipe, overrides or ())
        _quiet_libraries()
        from tunekit.stages import sft as stage
        from tunekit.stages.present import training_report

        result = stage.run(resolved)
        _print(result, training_report(result), as_json)


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Prints the whole resolved RECIPE, every value with where it comes from. Nothing is trained or downloaded.

    Example: tunekit show recipes/chat.yaml train.num_train_epochs=1
    """
    with _command(as_json):
        from tunekit.recipe.load import load
        from tunekit.recipe.show import as_dict, as_yaml

        resolved = load(recipe, overrides or ())
        _print(as_dict(resolved), as_yaml(resolved), as_json)


@contextmanager
def _command(as_json: bool = False) -> Iterator[None]:
    """Prints a user's mistake as a message, never as a traceback, and exits with the code of its kind."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("tunekit").setLevel(logging.INFO)
    try:
        yield
    except TunekitError as error:
        if as_json:
            print(json.dumps({"status": "failed", "exit_code": error.exit_code, "error": str(error)}))
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


def _quiet_libraries() -> None:
    """Keeps the libraries' own banners and bars out of our output, and their telemetry off the network."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes|torch)\b")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
