"""What each process of a recipe's run holds in memory, phase by phase: the estimate that `plan` and `check` share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tunekit.data.loader import PlannedLoader
from tunekit.data.rows import Example, Sampled, Tokens
from tunekit.models import memory
from tunekit.models.devices import CONTEXT
from tunekit.models.load import load_config, locate, resolve_dtype
from tunekit.models.memory import Setup, Step
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import ALONE, Rows, micro_batches_of

KERNELS = 45 * 2**20  # code and buffers of the libraries that the first step brings into memory; a rough figure
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


def dtype_of(recipe: Recipe, device: str) -> torch.dtype:
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
        dtype=dtype_of(recipe, device),
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


def estimate(recipe: Recipe, base: Base, rows: Rows | None, device: str, count: int = 1) -> Need:
    """Of one process of `count`; without rows only what does not depend on them.

    Raises `RecipeError` where the adapter does not fit the model.
    """
    setup, held = setup_of(recipe, base, device), memory.resident() if device == "cpu" else CONTEXT
    model = memory.build(setup)
    trained = [each for each in model.parameters() if each.requires_grad]
    whole = weights = memory.weight_bytes(model, setup.quantization)
    states = memory.state_bytes(setup.optim, trained)
    step = Step(4 * sum(each.numel() for each in trained), 0, 0, 0)
    if rows is not None:
        passes = 2 if micro_batches_of(recipe, ALONE) > 1 else 1
        step = memory.traced(setup, longest(recipe, rows, recipe.train.batch_size), passes=passes)
    gradients, gathered = step.gradients, 0
    if recipe.distributed.strategy == "fsdp2" and count > 1:
        gathered = memory.gathered_bytes(model, setup.config.get_text_config().num_hidden_layers)
        offloaded = recipe.distributed.cpu_offload and device != "cpu"
        own = 4 * sum(each.numel() for each in trained) if setup.lora else 0  # is not divided
        weights = own + (0 if offloaded else (weights - own) // count)
        if not setup.lora:
            states, gradients = (0, 0) if offloaded else (states // count, gradients // count)
    dequantised = memory.largest_product(model) * setup.dtype.itemsize if setup.quantization != "none" else 0
    extra = KERNELS if device == "cpu" else 0
    parts = {
        "baseline": held + extra,
        "weights": weights,
        "gradients": gradients,
        "optimizer": states,
        "activations": step.activations + dequantised,
        "gathered": gathered,
        "logits": step.logits,
        "copies": copies(recipe, setup, whole, whole // count if gathered else whole),
        "cache": 0 if rows is None else cache(recipe, setup, rows),
        "evaluation": 0 if rows is None else _look(recipe, setup, rows),
    }
    always = parts["baseline"] + weights + parts["copies"] + gathered
    phases = {
        "loading": always + (_stored(base, setup) if device == "cpu" else 0),
        "step": always + states + gradients + parts["activations"],
        "update": always + states + gradients + 2 * max(each.numel() * each.element_size() for each in trained),
        "evaluation": always + states + parts["evaluation"] + dequantised,
    }
    if parts["cache"]:
        phases["rollout"] = always + states + parts["cache"]
    if gathered:  # for the artefact, and where answers are written, each process has all weights
        phases["artefact"] = always - gathered + states + whole
    if dequantised and rows is not None and rows.held_out_examples is not None:
        phases["full base"] = parts["baseline"] + memory.weight_bytes(model) + parts["evaluation"]  # is measured before
    count_all = sum(each.numel() for each in model.parameters())
    return Need(count_all, sum(each.numel() for each in trained), parts, phases, step.flops, step.traced)


def longest(recipe: Recipe, rows: Rows, batch_size: int) -> Sequence[Example]:
    """The micro-batch of `batch_size` rows that takes most; of online training with answers of full length."""
    if recipe.stage in ONLINE:
        return _sampled(recipe, rows, batch_size)
    if isinstance(rows.loader, PlannedLoader):
        plan = rows.loader.plan
        micro_batches = max(1, plan.batch_size * plan.micro_batches // batch_size)
        plan = replace(plan, batch_size=batch_size, micro_batches=micro_batches)
        return PlannedLoader(rows.loader.rows, plan).longest(False)
    row = rows.loader.longest(False)[0]  # of a stream any may be the longest
    return [row] * batch_size


def _sampled(recipe: Recipe, rows: Rows, batch_size: int) -> list[Sampled]:
    assert rows.train_examples is not None
    prompt, new = int(rows.train_examples.lengths.max()), recipe.rollout.max_new_tokens
    trained = np.arange(prompt + new) >= prompt
    tokens = Tokens(np.zeros(prompt + new, np.int32), trained, "")
    return [Sampled(tokens, prompt, group, new) for group in range(batch_size)]


def copies(recipe: Recipe, setup: Setup, weights: int, divided: int) -> int:
    """Reference of full fine-tuning, value model and reward models; beside an adapter the base serves as reference.

    weights: of the policy, which the reference copies whole;  divided: what of a value model each process has
    """
    total = 0
    if recipe.stage in ONLINE:
        full = setup.lora is None
        coefficient = recipe.objective.kl_coef if recipe.stage == "ppo" else recipe.objective.beta
        if full and (coefficient or recipe.objective.kl_target is not None):
            total += weights * setup.dtype.itemsize // 4
        if setup.value == "model":
            total += divided
        for each in recipe.rewards or ():
            if each.model and not (setup.lora and (Path(each.model) / "adapter").is_dir()):
                total += _size_of(each.model, setup.dtype)
    return total


def _size_of(name: str, dtype: torch.dtype) -> int:
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
        read = (
            rows.held_out_examples,
            rows.train_examples if recipe.stage in ("dpo", "kto") else None,
        )  # by a reference
        known = [each for each in read if each is not None]
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
