"""Verbs that use a trained model, and what this installation is."""

from typing import Annotated

import typer

from tunekit.cli.common import Json, Offline, app, command, print_result, quiet_libraries
from tunekit.errors import RecipeError

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, an adapter or model folder, a built-in name or a hub id.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above that it is sampled.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the nucleus of this probability.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Makes sampling repeatable.")]


@app.command()
def chat(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """A conversation with MODEL. Lines from a pipe are the turns of one conversation; only answers are printed then.

    Commands: /system TEXT, /reset, /help, /exit. Ctrl-C stops an answer.

    Examples:

        tunekit chat out/chat

        tunekit chat out/chat --prompt "Why is the sky blue?" --temperature 0.7

        tunekit chat smollm2-135m-instruct < questions.txt
    """
    with command(as_json, no_network=offline):
        _check_sampling(temperature, top_p)
        quiet_libraries()
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
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Completes a prompt, or each row of a file: the row comes back with "completion" and "ended", in the same order.

    An answer that the row already has (the last assistant message, or "completion") is kept as "reference".

    Examples:

        tunekit generate out/sql --input held_out.jsonl --output answers.jsonl

        tunekit generate out/chat --prompt "Name three rivers." --json

        tunekit generate out/chat --raw --prompt "Once upon a time"
    """
    with command(as_json, no_network=offline):
        _check_sampling(temperature, top_p)
        quiet_libraries()
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
            print_result(
                result, "{rows} rows, {ended} ended by the model, {seconds} s: {output}".format(**result), as_json
            )
        elif prompt is not None:
            print_result(result, result["completion"], as_json)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter folder.")],
    output: Annotated[str | None, typer.Option(help="The merged folder; by default merged/ in the run folder.")] = None,
    max_difference: Annotated[
        float | None, typer.Option(min=0.0, help="The largest logit difference to accept, in place of rounding error.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Merges an adapter into its base, in the base's own precision, into a folder that plain transformers loads.

    The logits of the adapter on its base and of the merged model are compared on fixed prompts; above the bound nothing
    is written and the exit code is 8.

    Examples:

        tunekit merge out/chat

        tunekit merge out/chat --output models/chat-merged
    """
    with command(as_json, no_network=offline):
        quiet_libraries()
        from tunekit.stages import merge as stage

        result = stage.run(adapter, output=output, max_difference=max_difference)
        text = (
            "merged: {model} ({dtype}); largest logit difference {merge_difference:.3g} (bound {bound:.3g}), "
            "reloaded by a fresh process {reload_difference:.3g}"
        )
        if "quantised_difference" in result:
            text += "; to the adapter on its quantised base {quantised_difference:.3g}"
        print_result(result, text.format(**result), as_json)


@app.command()
def env(
    check: Annotated[bool, typer.Option("--check", help="Exit with 7 if something is missing or too old.")] = False,
    as_json: Json = False,
) -> None:
    """What this machine and this installation are: device, dtype, library versions, cache, offline switches.

    Example: tunekit env --check
    """
    with command(as_json):
        quiet_libraries()
        from tunekit.stages import env as stage

        report = stage.report()
        problems = stage.check(report)
        print_result({**report, "problems": problems}, "\n".join([stage.render(report), *problems]), as_json)
        if check and problems:
            raise typer.Exit(7)


def _check_sampling(temperature: float, top_p: float) -> None:
    if temperature == 0 and top_p < 1:
        raise RecipeError(f"--top-p {top_p} has no effect at temperature 0", "Set --temperature, or leave --top-p out.")
