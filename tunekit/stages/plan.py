"""`tunekit plan`: what a recipe needs in memory, disk, time and money, and the smallest change that makes it fit."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import DataError, MemoryExceeded
from tunekit.models import memory, scaling
from tunekit.models.devices import Device, cost, find_device, read_prices
from tunekit.recipe.load import Resolved
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.schema import Recipe
from tunekit.stages import dpo, grpo, kto, ppo, reward, rloo, sft
from tunekit.stages.base import Base, find_base
from tunekit.stages.plan_need import CPU, Need, dtype_of, estimate, longest
from tunekit.stages.read import read_rows
from tunekit.stages.rows import ALONE, Rows, micro_batches_of

EFFECTIVE = 8  # rows of a step where the recipe does not say
STAGES = {each.STAGE.name: each.STAGE for each in (sft, dpo, kto, reward, ppo, grpo, rloo)}


def run(
    resolved: Resolved,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    prices: Path | None = None,
    with_scaling: bool = False,
) -> dict[str, Any]:
    """The plan as it is printed. Its `exit_code` is 5 where the run does not fit."""
    recipe = resolved.recipe
    base = find_base(recipe)
    rows = read_rows(recipe, base, kind=STAGES[recipe.stage].kind)
    name = gpu or ("cpu" if not torch.cuda.is_available() else "h100-80g")
    count = gpus or 1
    device = find_device(name, memory.available(CPU), dtype_of(recipe, name))
    priced = read_prices(prices)
    need = estimate(recipe, base, rows, device.name, count)
    limit = limit_of(device)
    fits = need.peak <= limit
    report: dict[str, Any] = {
        "status": "ok" if fits else "failed",
        "exit_code": 0 if fits else MemoryExceeded.exit_code,
        "device": {"name": device.name, "count": count, "memory": limit},
        "parameters": {"all": need.parameters, "trained": need.trained, "frozen": need.parameters - need.trained},
        "memory": {**need.parts, "phases": need.phases, "peak": need.peak, "peak_phase": need.phase, "fits": fits},
        "traced": need.traced,
        "disk": disk(recipe, need),
    }
    flops_step, flops_run, steps = arithmetic(recipe, rows, need)
    report["compute"] = {"steps": steps, "flops_step": flops_step, "flops_run": flops_run}
    report["compute"] |= cost(flops_run, device, count, priced)
    if with_scaling:
        report["scaling"] = uses(need.parameters, recipe, rows)
    report["change"] = None if fits else smallest_change(recipe, base, rows, device, count)
    return report


def limit_of(device: Device) -> int:
    """What the process may hold: of this processor also what it holds already."""
    return device.memory + (memory.resident() if device.name == "cpu" else 0)


def disk(recipe: Recipe, need: Need) -> dict[str, int]:
    """A checkpoint, those that are kept with one being written and the best, and the artefact."""
    trained = 4 * need.trained
    checkpoint = trained + need.parts["optimizer"]
    artefact = trained if recipe.adapter.type == "lora" and recipe.stage != "reward" else need.parts["weights"]
    return {"checkpoint": checkpoint, "output_dir": checkpoint * (recipe.save.total_limit + 2) + artefact}


def arithmetic(recipe: Recipe, rows: Rows, need: Need) -> tuple[float, float, int]:
    """Operations of a mean step and of the run, and its steps; those of rollouts are not among them."""
    steps, micro = rows.loader.num_steps, micro_batches_of(recipe, ALONE)
    most = sum(
        len(answer.ids)
        for row in longest(recipe, rows, recipe.train.per_device_train_batch_size)
        for answer in row.answers
    )
    if rows.train_examples is None or recipe.stage in ONLINE:
        return need.flops * micro, need.flops * micro * steps, steps
    per_row = float(rows.train_examples.lengths.mean())
    mean = need.flops * per_row * recipe.train.per_device_train_batch_size / most
    if recipe.data.packing:
        mean = need.flops
    return mean * micro, mean * micro * steps, steps


def smallest_change(recipe: Recipe, base: Base, rows: Rows, device: Device, count: int) -> dict[str, Any] | None:
    """The first of the changes, alone and then together, with which the same estimate fits; None where none does."""
    together: dict[str, Any] = {}
    for change in _changes(recipe, count):
        for tried in [change] if not together else [change, together | change]:
            need = estimate(_changed(recipe, tried), base, rows, device.name, count)
            if need.peak <= limit_of(device):
                return {"set": tried, "peak": need.peak}
        together |= change
    return None


def _changes(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """From what costs least in time and quality to what costs most."""
    rows, found = recipe.train.per_device_train_batch_size, list[dict[str, Any]]()
    micro = micro_batches_of(recipe, ALONE)
    while rows > 1 and rows % 2 == 0:
        rows, micro = rows // 2, micro * 2
        found.append({"train.per_device_train_batch_size": rows, "train.gradient_accumulation_steps": micro})
    if not recipe.train.activation_checkpointing:
        found.append({"train.activation_checkpointing": True})
    if recipe.adapter.type == "lora":
        found += [{"adapter.r": recipe.adapter.r // 2}] if recipe.adapter.r > 1 else []
        found += [{"model.quantization": "4bit"}] if recipe.model.quantization == "none" else []
    elif "8bit" not in recipe.train.optim:
        found.append({"train.optim": "adamw_8bit"})
    if count > 1 and recipe.distributed.strategy != "fsdp2":
        found.append({"distributed.strategy": "fsdp2"})
    if recipe.adapter.type == "none":
        found.append({"adapter.type": "lora"})
    return found


def _changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    for key, value in values.items():
        section, _, name = key.partition(".")
        updated: dict[str, Any] = {section: getattr(recipe, section).model_copy(update={name: value})}
        recipe = recipe.model_copy(update=updated)
    if recipe.adapter.type == "lora" and recipe.adapter.alpha is None:
        more: dict[str, Any] = {"adapter": recipe.adapter.model_copy(update={"alpha": 2.0 * recipe.adapter.r})}
        recipe = recipe.model_copy(update=more)
    return recipe


def uses(need_parameters: int, recipe: Recipe, rows: Rows) -> dict[str, Any]:
    """What the laws of pre-training say of twice the arithmetic, for the tokens and passes of the recipe.

    Raises `DataError` where the tokens are not known before they are read.
    """
    if rows.train is None or recipe.stage in ONLINE:
        raise DataError("--scaling: how many tokens the run has is not known before they are read or written")
    summary, epochs = rows.train.summary, recipe.train.num_train_epochs
    found: dict[str, Any] = {"weights": need_parameters, "tokens": summary.tokens, "epochs": epochs}
    for law in (scaling.BESIROGLU, scaling.HOFFMANN):
        losses = scaling.compare_uses(need_parameters, summary.tokens, epochs, law)
        found[law.source] = losses | {"best": min(losses, key=lambda name: losses[name])}
    return found


def fit(files: Sequence[Path]) -> dict[str, Any]:
    """A power law with a floor through the last held-out loss of each run, over the tokens that it was trained on.

    Raises `DataError` for a file without them, and `RecipeError` where the runs do not carry a fit.
    """
    sizes, losses = [], []
    for file in files:
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            sizes.append(float(max(line["tokens"] for line in lines if "tokens" in line)))
            losses.append(float([line["eval_loss"] for line in lines if "eval_loss" in line][-1]))
        except (OSError, ValueError, TypeError, IndexError) as error:
            reason = f"--from: {file}: no metrics.jsonl with tokens and eval_loss: {error}"
            raise DataError(reason, "Give those of runs with held-out rows.") from error
    found = scaling.fit_runs(sizes, losses)
    runs = [{"file": str(f), "tokens": x, "eval_loss": y} for f, x, y in zip(files, sizes, losses, strict=True)]
    twice = 2 * max(sizes)
    return {"runs": runs, **asdict(found), "at_twice_the_largest": {"tokens": twice, "eval_loss": found.at(twice)}}


def choose_batch(recipe: Recipe, base: Base, rows: Rows, device: Device) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches of a step): the largest halving of the step that the estimate says fits.

    The step keeps its rows: global_batch_size, or 8. Raises `MemoryExceeded` where one row does not fit.
    """
    effective = recipe.train.global_batch_size or EFFECTIVE
    batch = effective
    while True:
        sizes = {"train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": effective // batch}
        need = estimate(_changed(recipe, sizes | {"train.global_batch_size": effective}), base, rows, device.name)
        if need.peak <= limit_of(device):
            return batch, effective // batch
        if batch % 2:
            raise MemoryExceeded(
                f"train.per_device_train_batch_size: auto: {batch} rows take {need.peak / 2**30:.2f} GiB, and "
                f"{device.name} has {limit_of(device) / 2**30:.2f}",
                "tunekit plan says what makes it fit.",
            )
        batch //= 2
