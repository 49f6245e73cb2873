"""The command line: one short command per verb. Heavy imports happen inside the commands, so that --help is instant."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer

from tunekit import __version__
from tunekit.errors import RecipeError, TunekitError

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
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, an adapter or model folder, a built-in name or a hub id.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above that it is sampled.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the nucleus of this probability.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Makes sampling repeatable.")]


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

        with redirect_stdout(sys.stderr):  # trackers print
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


@app.command()
def chat(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """A conversation with MODEL. Lines from a pipe are the turns of one conversation; only answers are printed then.

    Commands: /system TEXT, /reset, /help, /exit. Ctrl-C stops an answer.

    Examples:

        tunekit chat out/chat

        tunekit chat out/chat --prompt "Why is the sky blue?" --temperature 0.7

        tunekit chat smollm2-135m-instruct < questions.txt
    """
    with _command(as_json):
        _check_sampling(temperature, top_p)
        _quiet_libraries()
        from tunekit.stages import chat as stage

        stage.run(
            model,
            prompt=prompt,
            system=system,
            seed=seed,
            as_json=as_json,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="One prompt; its completion is printed.")] = None,
    input: Annotated[
        str | None,
        typer.Option(help="A file of rows with messages, prompt, text, instruction or conversations."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="JSON Lines go there and not to standard output.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are completed together.")] = 8,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without chat template.")] = False,
    as_json: Json = False,
) -> None:
    """Completes a prompt, or each row of a file: the row comes back with "completion" and "ended", in the same order.

    An answer that the row already has (the last assistant message, or "completion") is kept as "reference".

    Examples:

        tunekit generate out/sql --input held_out.jsonl --output answers.jsonl

        tunekit generate out/chat --prompt "Name three rivers." --json

        tunekit generate out/chat --raw --prompt "Once upon a time"
    """
    with _command(as_json):
        _check_sampling(temperature, top_p)
        _quiet_libraries()
        from tunekit.stages import generate as stage

        result = stage.run(
            model,
            prompt=prompt,
            input_path=input,
            output=output,
            raw=raw,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )
        if output is not None:
            _print(result, "{rows} rows, {ended} ended by the model, {seconds} s: {output}".format(**result), as_json)
        elif prompt is not None:
            _print(result, result["completion"], as_json)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter folder.")],
    output: Annotated[str | None, typer.Option(help="The merged folder; by default merged/ in the run folder.")] = None,
    max_difference: Annotated[
        float | None, typer.Option(min=0.0, help="The largest logit difference to accept, in place of rounding error.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merges an adapter into its base, in the base's own precision, into a folder that plain transformers loads.

    The logits of the adapter on its base and of the merged model are compared on fixed prompts; above the bound nothing
    is written and the exit code is 8.

    Examples:

        tunekit merge out/chat

        tunekit merge out/chat --output models/chat-merged
    """
    with _command(as_json):
        _quiet_libraries()
        from tunekit.stages import merge as stage

        result = stage.run(adapter, output=output, max_difference=max_difference)
        text = (
            "merged: {model} ({dtype}); largest logit difference {merge_difference:.3g} (bound {bound:.3g}), "
            "reloaded by a fresh process {reload_difference:.3g}"
        )
        _print(result, text.format(**result), as_json)


@app.command()
def env(
    check: Annotated[bool, typer.Option("--check", help="Exit with 7 if something is missing or too old.")] = False,
    as_json: Json = False,
) -> None:
    """What this machine and this installation are: device, dtype, library versions, cache, offline switches.

    Example: tunekit env --check
    """
    with _command(as_json):
        _quiet_libraries()
        from tunekit.stages import env as stage

        report = stage.report()
        problems = stage.check(report)
        _print({**report, "problems": problems}, "\n".join([stage.render(report), *problems]), as_json)
        if check and problems:
            raise typer.Exit(7)


def _check_sampling(temperature: float, top_p: float) -> None:
    if temperature == 0 and top_p < 1:
        raise RecipeError(f"--top-p {top_p} has no effect at temperature 0", "Set --temperature, or leave --top-p out.")


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, so that a line appears above a progress bar and not in it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def _command(as_json: bool = False) -> Iterator[None]:
    """Prints a user's mistake as a message, never as a traceback, and exits with the code of its kind."""
    logging.basicConfig(handlers=[_StandardError()], format="%(message)s", level=logging.WARNING)
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
