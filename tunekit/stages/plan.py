"""`tunekit plan`: what a recipe will need in memory, disk, time and money, and the smallest change that makes it fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunekit.data.loader import PlannedLoader
from tunekit.data.rows import Example, Sampled, Tokens
from tunekit.errors import MemoryExceeded
from tunekit.models import memory
from tunekit.models.devices import CONTEXT, Device, cost, find_device, read_prices
from tunekit.models.load import load_config, locate, resolve_dtype
from tunekit.models.memory import Setup
from tunekit.recipe.load import Resolved
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Recipe
from tunekit.stages import dpo, grpo, kto, ppo, reward, rloo, sft
from tunekit.stages.base import Base, find_base
from tunekit.stages.read import read_rows
from tunekit.stages.rows import ALONE, Rows, micro_batches_of

STAGES = {each.STAGE.name: each.STAGE for each in (sft, dpo, kto, reward, ppo, grpo, rloo)}
KERNELS = 45 * 2**20  # code and buffers of the libraries that the first step brings into memory; measured
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Need:
    """Bytes of each process. `parts` are what there is, `phases` what is held together in each of them."""

    parameters: int
    trained: int
    parts: dict[str, int]
    phases: dict[str, int]
    flops: float
    traced: bool

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])


def run(
    resolved: Resolved, *, gpu: str | None = None, gpus: int | None = None, prices: Path | None = None
) -> dict[str, Any]:
    """The plan as it is printed. Its `exit_code` is 5 where the run does not fit."""
    recipe = resolved.recipe
    base = find_base(recipe)
    rows = read_rows(recipe, base, kind=STAGES[recipe.stage].kind)
    name = gpu or ("cpu" if not torch.cuda.is_available() else "h100-80g")
    count = gpus or 1
    device = find_device(name, memory.available(CPU), _dtype(recipe, name))
    priced = read_prices(prices)
    need = estimate(recipe, base, rows, device.name, count)
    fits = need.peak <= _limit(device)
    report: dict[str, Any] = {
        "status": "ok" if fits else "failed",
        "exit_code": 0 if fits else MemoryExceeded.exit_code,
        "device": {"name": device.name, "count": count, "memory": _limit(device)},
        "parameters": {"all": need.parameters, "trained": need.trained, "frozen": need.parameters - need.trained},
        "memory": {**need.parts, "phases": need.phases, "peak": need.peak, "peak_phase": need.phase, "fits": fits},
        "traced": need.traced,
        "disk": disk(recipe, need),
    }
    flops_step, flops_run, steps = arithmetic(recipe, rows, need)
    report["compute"] = {"steps": steps, "flops_step": flops_step, "flops_run": flops_run}
    report["compute"] |= cost(flops_run, device, count, priced)
    report["change"] = None if fits else smallest_change(recipe, base, rows, device, count)
    return report


def _limit(device: Device) -> int:
    """What the process may hold: of this processor also what it holds already."""
    return device.memory + (memory.resident() if device.name == "cpu" else 0)


def _dtype(recipe: Recipe, device: str) -> torch.dtype:
    if device == "cpu":
        return resolve_dtype(recipe.model.dtype, CPU)
    return torch.float32 if recipe.model.dtype == "float32" or device == "t4" else torch.bfloat16


def setup_of(recipe: Recipe, base: Base, device: str) -> Setup:
    """What the recipe trains, in the terms of the models."""
    kind = "actor" if recipe.stage in ONLINE else "scorer" if recipe.stage == "reward" else "policy"
    value = None
    if recipe.stage == "ppo":
        value = "head" if recipe.value_model is None else "adapter" if recipe.value_model == OWN_ADAPTER else "model"
    return Setup(
        config=load_config(base.location),
        dtype=_dtype(recipe, device),
        kind=kind,
        lora=recipe.adapter.model_dump(exclude={"type", "start_from"}) if recipe.adapter.type == "lora" else None,
        freeze=recipe.freeze.model_dump() if recipe.freeze else None,
        optim=recipe.train.optim,
        quantization=recipe.model.quantization,
        checkpointing=recipe.train.activation_checkpointing,
        attention=recipe.model.attn_implementation,
        value=value,
        entropy=bool(recipe.objective.entropy_coef),
        pad_id=base.tokenizer.pad_token_id or 0,
    )


def estimate(recipe: Recipe, base: Base, rows: Rows, device: str, count: int = 1) -> Need:
    """Of one process of `count`. Raises `RecipeError` where the adapter does not fit the model."""
    setup, held = setup_of(recipe, base, device), memory.resident() if device == "cpu" else CONTEXT
    model = memory.build(setup)
    trained = [each for each in model.parameters() if each.requires_grad]
    weights = memory.weight_bytes(model, setup.quantization)
    states = memory.state_bytes(setup.optim, trained)
    passes = 2 if micro_batches_of(recipe, ALONE) > 1 else 1
    step = memory.traced(setup, longest(recipe, rows, rows_of(recipe)), passes=passes)
    gradients = step.gradients
    if recipe.distributed.strategy == "fsdp2":
        weights //= count
        states, gradients = (states, gradients) if setup.lora else (states // count, gradients // count)
    extra = KERNELS if device == "cpu" else 0
    parts = {
        "baseline": held + extra,
        "weights": weights,
        "gradients": gradients,
        "optimizer": states,
        "activations": step.activations,
        "logits": step.logits,
        "copies": copies(recipe, setup, base, weights),
        "cache": cache(recipe, setup, rows),
        "evaluation": _look(recipe, setup, rows),
    }
    always = parts["baseline"] + weights + parts["copies"]
    phases = {
        "loading": always + _stored(base, setup),
        "step": always + states + gradients + step.activations,
        "update": always + states + gradients + 2 * max(each.numel() * each.element_size() for each in trained),
        "evaluation": always + states + parts["evaluation"],
    }
    if parts["cache"]:
        phases["rollout"] = always + states + parts["cache"]
    count_all = sum(each.numel() for each in model.parameters())
    return Need(count_all, sum(each.numel() for each in trained), parts, phases, step.flops, step.traced)


def rows_of(recipe: Recipe) -> int:
    return int(recipe.train.per_device_train_batch_size)


def longest(recipe: Recipe, rows: Rows, batch_size: int) -> Sequence[Example]:
    """The micro-batch of `batch_size` rows that takes most; of online training with answers of full length."""
    if recipe.stage in ONLINE:
        return _sampled(recipe, rows, batch_size)
    if isinstance(rows.loader, PlannedLoader):
        plan = rows.loader.plan
        times = max(1, plan.batch_size // batch_size)
        plan = replace(plan, batch_size=batch_size, micro_batches=plan.micro_batches * times)
        return PlannedLoader(rows.loader.rows, plan).longest(False)
    return rows.loader.longest(False)[:batch_size]


def _sampled(recipe: Recipe, rows: Rows, batch_size: int) -> list[Sampled]:
    assert rows.train_examples is not None
    prompt, new = int(rows.train_examples.lengths.max()), recipe.rollout.max_new_tokens
    trained = np.arange(prompt + new) >= prompt
    tokens = Tokens(np.zeros(prompt + new, np.int32), trained, "")
    return [Sampled(tokens, prompt, group, new) for group in range(batch_size)]


def copies(recipe: Recipe, setup: Setup, base: Base, weights: int) -> int:
    """Reference of full fine-tuning, value model and reward models; beside an adapter the base serves as reference."""
    total = 0
    if recipe.stage in ONLINE:
        full = setup.lora is None
        coefficient = recipe.objective.kl_coef if recipe.stage == "ppo" else recipe.objective.beta
        if full and (coefficient or recipe.objective.kl_target is not None):
            total += weights * setup.dtype.itemsize // 4
        if setup.value == "model":
            total += weights
        for each in recipe.rewards or ():
            if each.model and not (setup.lora and (Path(each.model) / "adapter").is_dir()):
                total += _size_of(each.model, setup.dtype)
    return total


def _size_of(name: str, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = memory.build(Setup(load_config(locate(name)), dtype, kind="scorer"))
    return sum(each.numel() for each in model.parameters()) * dtype.itemsize


def cache(recipe: Recipe, setup: Setup, rows: Rows) -> int:
    """Keys, values and logits of the answers that the built-in engine writes together."""
    if recipe.stage not in ONLINE or recipe.rollout.engine != "builtin":
        return 0
    assert rows.train_examples is not None
    asked = recipe.rollout.num_prompts * (recipe.rollout.num_generations or 1)
    together, prompt = min(recipe.rollout.batch_size, asked), int(rows.train_examples.lengths.max())
    return memory.cache_bytes(setup.config, setup.dtype, together, prompt, recipe.rollout.max_new_tokens)


def _look(recipe: Recipe, setup: Setup, rows: Rows) -> int:
    """A forward pass over the longest batch of an evaluation, a reference or a rollout that is looked at."""
    batch_size = recipe.eval.per_device_eval_batch_size
    if recipe.stage in ONLINE:
        looked: Sequence[Example] = _sampled(recipe, rows, batch_size)
    else:
        known = [each for each in (rows.held_out_examples, rows.train_examples) if each is not None]
        if not known:
            return 0
        if recipe.stage not in ("dpo", "kto"):  # whose reference reads the training rows too
            known = known[:1] if rows.held_out_examples is not None else []
        if not known:
            return 0
        widest = max(known, key=lambda each: int(np.sort(each.lengths)[-batch_size:].sum()))
        looked = [widest[int(i)] for i in np.argsort(widest.lengths)[-batch_size:]]
    return memory.traced(setup, looked, backward=False).activations


def _stored(base: Base, setup: Setup) -> int:
    """Bytes of the files that are mapped while their weights are cast to another precision; 0 where they are not."""
    folder = base.location.folder
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    kept = str(getattr(setup.config, "dtype", None) or torch.float32).removeprefix("torch.")
    wanted = str(setup.dtype if setup.lora else torch.float32).removeprefix("torch.")
    return size if kept != wanted else 0


def disk(recipe: Recipe, need: Need) -> dict[str, int]:
    """A checkpoint, those that are kept with one being written and the best, and the artefact."""
    trained = 4 * need.trained
    checkpoint = trained + need.parts["optimizer"]
    artefact = trained if recipe.adapter.type == "lora" and recipe.stage != "reward" else need.parts["weights"]
    return {"checkpoint": checkpoint, "output_dir": checkpoint * (recipe.save.total_limit + 2) + artefact}


def arithmetic(recipe: Recipe, rows: Rows, need: Need) -> tuple[float, float, int]:
    """Operations of a mean step and of the run, and its steps; those of rollouts are not among them."""
    steps, micro = rows.loader.num_steps, micro_batches_of(recipe, ALONE)
    most = sum(len(answer.ids) for row in longest(recipe, rows, rows_of(recipe)) for answer in row.answers)
    if rows.train_examples is None or recipe.stage in ONLINE:
        return need.flops * micro, need.flops * micro * steps, steps
    per_row = float(rows.train_examples.lengths.mean())
    mean = need.flops * per_row * rows_of(recipe) / most
    if recipe.data.packing:
        mean = need.flops
    return mean * micro, mean * micro * steps, steps


def smallest_change(recipe: Recipe, base: Base, rows: Rows, device: Device, count: int) -> dict[str, Any] | None:
    """The first of the changes, alone and then together, with which the same estimate fits; None where none does."""
    together: dict[str, Any] = {}
    for change in _changes(recipe, count):
        for tried in ([change] if not together else [change, together | change]):
            need = estimate(_changed(recipe, tried), base, rows, device.name, count)
            if need.peak <= _limit(device):
                return {"set": tried, "peak": need.peak}
        together |= change
    return None


def _changes(recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """From what costs least in time and quality to what costs most."""
    rows, found = rows_of(recipe), list[dict[str, Any]]()
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


def render(report: dict[str, Any]) -> str:
    """The plan for people."""
    used, found = report["memory"], report["parameters"]
    device, compute = report["device"], report["compute"]
    lines = [f"parameters   {found['all']:,}, trained {found['trained']:,}, frozen {found['frozen']:,}"]
    names = ("baseline", "weights", "gradients", "optimizer", "activations", "logits", "copies", "cache", "evaluation")
    lines += [f"{name:<12} {size(used[name])}" for name in names if used[name] or name in names[:5]]
    lines.append(f"peak         {size(used['peak'])} in {used['peak_phase']} of {size(device['memory'])} on {device['name']}")
    lines.append(f"disk         {size(report['disk']['checkpoint'])} a checkpoint, {size(report['disk']['output_dir'])} in all")
    lines.append(f"compute      {compute['steps']:,} steps, {compute['flops_step']:.3g} FLOP each, {compute['flops_run']:.3g} in all")
    price = "no price known" if compute["price"] is None else f"{compute['price']:.2f} {compute['currency']}"
    lines.append(f"time         {compute['hours']:.2f} h, {price}, {compute['kwh']:.2f} kWh ({compute['speed_source']})")
    if not report["traced"]:
        lines.append("             activations by a formula: the model's code cannot be traced without data")
    if report["memory"]["fits"]:
        lines.append("fits         yes")
    elif report["change"] is None:
        lines.append("fits         no, and no change that was tried makes it fit: take a smaller model or larger device")
    else:
        settings = " ".join(f"{key}={value}" for key, value in report["change"]["set"].items())
        lines.append(f"fits         no; it does with {settings} ({size(report['change']['peak'])})")
    return "\n".join(lines)


def size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
