"""The verb that says what a run will need."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.common import (
    Json,
    Offline,
    Overrides,
    Settings,
    app,
    command,
    load_recipe,
    print_result,
    quiet_libraries,
)
from tunekit.errors import RecipeError

if TYPE_CHECKING:
    from tunekit.recipe.load import Resolved

Gpu = Annotated[str | None, typer.Option(metavar="NAME", help="h100-80g, h200, a100-80g, rtx4090, t4, cpu, ...")]
Gpus = Annotated[int | None, typer.Option(min=1, help="How many of them.")]
Recipe = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A YAML recipe; with --from none.")]
Scaling = Annotated[bool, typer.Option("--scaling", help="Say what laws of pre-training say of more data or weights.")]
Runs = Annotated[str | None, typer.Option("--from", metavar="FILE...", help="Fit a law to metrics.jsonl of your runs.")]
Prices = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML: price_per_hour and watts of each device.")]


@app.command()
def plan(
    recipe: Recipe = None,
    overrides: Overrides = None,
    settings: Settings = None,
    gpu: Gpu = None,
    gpus: Gpus = None,
    prices: Prices = None,
    with_scaling: Scaling = False,
    runs: Runs = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Says what RECIPE will need in memory, time and money, and the smallest change that makes it fit.

    From config.json and the data alone: no weights are loaded. Exit code 5 where it does not fit.

    Examples:

        tunekit plan recipes/chat.yaml

        tunekit plan recipes/chat.yaml adapter=none --gpu rtx4090

        tunekit plan --from out/*/metrics.jsonl
    """
    with command(as_json, no_network=offline):
        if runs is not None:
            from tunekit.stages import plan as stage

            found = stage.fit([Path(each) for each in (runs, recipe, *(overrides or ())) if each])  # a shell's pattern
            print_result(found, _law(found), as_json)
            return
        if recipe is None:
            raise RecipeError("plan: there is no RECIPE", "tunekit plan RECIPE, or tunekit plan --from FILE...")
        resolved = load_recipe(recipe, overrides, settings)
        quiet_libraries()
        logging.getLogger("tunekit").setLevel(logging.WARNING)
        from tunekit.stages import plan as stage

        def reload(more: Sequence[str]) -> "Resolved":
            return load_recipe(recipe, overrides, [*(settings or ()), *more])

        report = stage.run(resolved, reload, gpu=gpu, gpus=gpus, prices=prices, with_scaling=with_scaling)
        print_result(report, _text(report), as_json)
        if report["exit_code"]:
            raise typer.Exit(report["exit_code"])


def _text(report: dict[str, Any]) -> str:
    """The plan for people."""
    used, found = report["memory"], report["parameters"]
    device, compute = report["device"], report["compute"]
    lines = [f"parameters   {found['all']:,}, trained {found['trained']:,}, frozen {found['frozen']:,}"]
    names = ["baseline", "weights", "gradients", "optimizer", "activations", "logits"]
    names += ["gathered", "copies", "cache", "evaluation"]
    if report["batch"]["chosen"]:
        lines.append(f"batch        {report['batch']['rows']} rows, chosen (train.per_device_train_batch_size: auto)")
    lines += [f"{name:<12} {_size(used[name])}" for name in names if used[name]]
    lines.append(
        f"peak         {_size(used['peak'])} in {used['peak_phase']} of {_size(device['memory'])} on {device['name']}"
    )
    lines.append(
        f"disk         {_size(report['disk']['checkpoint'])} a checkpoint, {_size(report['disk']['output_dir'])} in all"
    )
    lines.append(
        f"compute      {compute['steps']:,} steps, {compute['flops_step']:.3g} FLOP each, "
        f"{compute['flops_run']:.3g} in all"
    )
    price = "no price known" if compute["price"] is None else f"{compute['price']:.2f} {compute['currency']}"
    lines.append(
        f"time         {compute['hours']:.2f} h, {price}, {compute['kwh']:.2f} kWh ({compute['speed_source']})"
    )
    if not report["traced"]:
        lines.append("             activations by a formula: the model's code cannot be traced without data")
    if "scaling" in report:
        lines += _scaling(report["scaling"])
    if report["memory"]["fits"]:
        lines.append("fits         yes")
    elif report["change"] is None:
        lines.append(
            "fits         no, and no change that was tried makes it fit: take a smaller model or larger device"
        )
    else:
        settings = " ".join(f"{key}={value}" for key, value in report["change"]["set"].items())
        lines.append(f"fits         no; it does with {settings} ({_size(report['change']['peak'])})")
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _scaling(found: dict[str, Any]) -> list[str]:
    if "refused" in found:
        return [f"scaling      nothing to say: {found['refused']}"]
    lines = [
        f"scaling      {found['weights']:,} weights, {found['tokens']:,} tokens, {found['epochs']:g} passes; these are "
        "laws of training from scratch:",
        "             for fine-tuning they say which way is steeper",
    ]
    for source, losses in found.items():
        if isinstance(losses, dict):
            said = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "best")
            lines.append(f"             {said}: {losses['best']} ({source})")
    lines.append("             passes over the same tokens by Muennighoff et al. 2023, arXiv:2305.16264")
    return lines


def _law(found: dict[str, Any]) -> str:
    between = {name: "{:.4g} to {:.4g}".format(*values) for name, values in found["intervals"].items()}
    twice = found["at_twice_the_largest"]
    return (
        f"{len(found['runs'])} runs: eval_loss = {found['floor']:.4g} + {found['scale']:.4g} / "
        f"tokens ** {found['power']:.4g}\n"
        f"middle 90 % of bootstrap samples: floor {between['floor']}, power {between['power']}\n"
        f"with {twice['tokens']:,.0f} tokens: {twice['eval_loss']:.4f}"
    )
