"""`tunekit plan`: what a recipe needs in memory, disk, time and money, and the smallest change that makes it fit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tunekit.data.loader import PlannedLoader
from tunekit.errors import DataError, MemoryExceeded, RecipeError
from tunekit.models import memory, scaling
from tunekit.models.devices import Device, cost, find_device, read_prices
from tunekit.recipe.load import Resolved
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.schema import Recipe
from tunekit.stages import dpo, grpo, kto, ppo, reward, rloo, sft
from tunekit.stages.base import Base, find_base
from tunekit.stages.batch_size import MARGIN, choose_batch, is_auto, readable, rows_of_step, sizes, with_batch
from tunekit.stages.plan_need import CPU, Need, dtype_of, estimate, longest
from tunekit.stages.read import read_rows
from tunekit.stages.rows import ALONE, Rows, micro_batches_of

Reload = Callable[[Sequence[str]], Resolved]  # the recipe again, with further overrides
STAGES = {each.STAGE.name: each.STAGE for each in (sft, dpo, kto, reward, ppo, grpo, rloo)}


def run(
    resolved: Resolved,
    reload: Reload,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    prices: Path | None = None,
    with_scaling: bool = False,
) -> dict[str, Any]:
    """The plan as it is printed. Its `exit_code` is 5 where the run does not fit.

    `reload` makes a recipe of each change that is tried: one that its rules refuse is no advice.
    """
    recipe = resolved.recipe
    base = find_base(recipe)
    rows = read_rows(readable(recipe), base, kind=STAGES[recipe.stage].kind)
    name = gpu or ("cpu" if not torch.cuda.is_available() else "h100-80g")
    count = gpus or 1
    device = find_device(name, memory.available(CPU), dtype_of(recipe, name))
    priced = read_prices(prices)
    limit = limit_of(device)
    if is_auto(recipe):
        recipe = with_batch(recipe, _chosen(recipe, base, rows, device, count), count)
    need = estimate(recipe, base, rows, device.name, count)
    fits = need.peak <= limit
    report: dict[str, Any] = {
        "status": "ok" if fits else "failed",
        "exit_code": 0 if fits else MemoryExceeded.exit_code,
        "device": {"name": device.name, "count": count, "memory": limit},
        "parameters": {"all": need.parameters, "trained": need.trained, "frozen": need.parameters - need.trained},
        "memory": {**need.parts, "phases": need.phases, "peak": need.peak, "peak_phase": need.phase, "fits": fits},
        "batch": {"rows": recipe.train.batch_size, "chosen": is_auto(resolved.recipe)},
        "traced": need.traced,
        "disk": disk(recipe, need),
    }
    flops_step, flops_run, steps = arithmetic(recipe, rows, need)
    report["compute"] = {"steps": steps, "flops_step": flops_step, "flops_run": flops_run}
    report["compute"] |= cost(flops_run, device, count, priced)
    if with_scaling:
        report["scaling"] = uses(need.parameters, recipe, rows)
    report["change"] = None if fits else smallest_change(recipe, base, rows, device, count, reload)
    return report


def _chosen(recipe: Recipe, base: Base, rows: Rows, device: Device, count: int) -> int:
    """What a run would choose; one row where none fits, which is what is planned then."""
    try:
        return choose_batch(recipe, base, rows, device.name, int(MARGIN * limit_of(device)), count)
    except MemoryExceeded:
        return 1


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
    """Operations of a mean step and of the run, and its steps."""
    batch = recipe.train.batch_size
    per_row = need.flops / batch
    if recipe.stage in ONLINE:
        return _online(recipe, rows, need, per_row)
    steps, micro = rows.loader.num_steps, micro_batches_of(recipe, ALONE)
    if rows.train_examples is not None and not recipe.data.packing:
        most = sum(len(answer.ids) for row in longest(recipe, rows, batch) for answer in row.answers)
        per_row = need.flops * float(rows.train_examples.lengths.mean()) / most
    step = per_row * batch * micro
    return step, step * steps, steps


def _online(recipe: Recipe, rows: Rows, need: Need, per_row: float) -> tuple[float, float, int]:
    """Of answers of full length, each written once (2 operations a weight and token) and looked at once before it is

    trained on, by the policy or its reference.
    """
    assert isinstance(rows.loader, PlannedLoader) and rows.train_examples is not None
    objective, train, rollout = recipe.objective, recipe.train, recipe.rollout
    passes = (objective.num_ppo_epochs or objective.num_iterations or 1) * (objective.num_mini_batches or 1)
    plan = replace(rows.loader.plan, batch_size=rollout.num_prompts, micro_batches=1, max_steps=None)
    steps = train.max_steps or plan.num_steps * passes
    answers = rollout.num_prompts * (rollout.num_generations or 1)
    tokens = float(rows.train_examples.lengths.mean()) + rollout.max_new_tokens
    step = per_row * rows_of_step(recipe, 1) + 2 * 2 * need.parameters * tokens * answers / passes
    return step, step * steps, steps


def smallest_change(
    recipe: Recipe, base: Base, rows: Rows, device: Device, count: int, reload: Reload
) -> dict[str, Any] | None:
    """The first of the changes, alone and then together, with which the same estimate fits; None where none does."""
    together: dict[str, Any] = {}
    for change in _changes(recipe, count):
        taken = False
        for tried in [change] if not together else [change, together | change]:
            try:
                changed = reload([f"{key}={json.dumps(value)}" for key, value in tried.items()]).recipe
            except RecipeError:
                continue
            taken = True
            need = estimate(changed, base, rows, device.name, count)
            if need.peak <= limit_of(device):
                return {"set": tried, "peak": need.peak}
        together |= change if taken else {}
    return None


def _changes(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """From what costs least in time and quality to what costs most."""
    train, found = recipe.train, list[dict[str, Any]]()
    micro = micro_batches_of(recipe, ALONE)
    for rows in sizes(train.batch_size)[1:]:
        passes = {"train.gradient_accumulation_steps": micro * (train.batch_size // rows)}
        found.append({"train.per_device_train_batch_size": rows} | (passes if recipe.stage not in ONLINE else {}))
    if not train.activation_checkpointing:
        found.append({"train.activation_checkpointing": True})
    if recipe.adapter.type == "lora":
        found += [{"adapter.r": recipe.adapter.r // 2}] if recipe.adapter.r > 1 else []
        found += [{"model.quantization": "4bit"}] if recipe.model.quantization == "none" else []
    elif "8bit" not in train.optim:
        found.append({"train.optim": "adamw_8bit"})
    if count > 1 and recipe.distributed.strategy != "fsdp2":
        found.append({"distributed.strategy": "fsdp2"})
    if recipe.adapter.type == "none":
        found.append({"adapter.type": "lora"})
    return found


def uses(need_parameters: int, recipe: Recipe, rows: Rows) -> dict[str, Any]:
    """What the laws of pre-training say of twice the arithmetic, for the tokens and passes of the recipe.

    Raises `DataError` where the tokens are not known before they are read.
    """
    if rows.train is None or recipe.stage in ONLINE:
        raise DataError("--scaling: how many tokens the run has is not known before they are read or written")
    summary, epochs = rows.train.summary, recipe.train.num_train_epochs
    found: dict[str, Any] = {"weights": need_parameters, "tokens": summary.tokens, "epochs": epochs}
    if reason := scaling.beyond_the_laws(need_parameters, summary.tokens * epochs):
        return found | {"refused": reason}
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
