"""What the commands share: the application, arguments that several take, how a result or a mistake is printed."""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit import __version__, offline
from tunekit.errors import OUTCOMES, RankFailed, TunekitError, leave_outcome

if TYPE_CHECKING:
    from tunekit.recipe.load import Resolved

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
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE | ~KEY]...", help="Overrides: train.learning_rate=1e-4, ~data.eval to drop it."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An override as an option; after those without --set."),
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the Python files that the recipe names run.")]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection; list what is missing instead.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"tunekit {__version__}")
        raise typer.Exit


class StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, so that a line appears above a progress bar and not in it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def command(as_json: bool = False, *, no_network: bool = False) -> Iterator[None]:
    """Prints a user's mistake as a message, never as a traceback, and exits with the code of its kind."""
    logging.basicConfig(handlers=[StandardError()], format="%(message)s", level=logging.WARNING)
    # Of several processes the first one speaks, and whichever fails.
    logging.getLogger("tunekit").setLevel(logging.INFO if is_main() else logging.ERROR)
    if no_network:
        offline.enter()
    try:
        yield
    except TunekitError as error:
        again = OUTCOMES in os.environ and error.exit_code == RankFailed.exit_code  # then the agent has the last word
        if as_json and is_main() and not again:
            print(json.dumps({"status": "failed", "exit_code": error.exit_code, "error": str(error)}))
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(leave_outcome(error.exit_code)) from None
    except (typer.Exit, SystemExit):
        raise
    except Exception:
        if OUTCOMES not in os.environ:
            raise
        traceback.print_exc()  # a bug, which another attempt would not mend
        raise typer.Exit(leave_outcome(1)) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def load_recipe(
    path: str, overrides: list[str] | None, settings: list[str] | None, stage: str | None = None
) -> "Resolved":
    from tunekit.recipe.load import load

    return load(path, [*(overrides or ()), *(settings or ())], stage)


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


def quiet_libraries() -> None:
    """Keeps the libraries' own banners and bars out of our output, and their telemetry off the network."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "urllib3"):  # whose retries are told if they come to nothing
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes|torch)\b")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
