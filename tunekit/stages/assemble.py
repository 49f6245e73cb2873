"""From a recipe to the parts of a run. With the stages themselves, the only place below the CLI that reads one."""

import logging
from pathlib import Path
from typing import Any

from tunekit.errors import RecipeError
from tunekit.models import adapters
from tunekit.models.export import generation_config
from tunekit.models.load import load_model, resolve_dtype
from tunekit.models.policy import Policy
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import Rows, shares_of
from tunekit.train import checkpoint
from tunekit.train.engine import Engine
from tunekit.train.loop import Evaluate, Schedule, Training, restore
from tunekit.train.optim import make_optimizer, make_schedule
from tunekit.train.report import MetricsFile
from tunekit.train.step import Objective

log = logging.getLogger("tunekit")


def make_policy(recipe: Recipe, base: Base, rows: Rows, engine: Engine) -> Policy:
    """The model with what is trained in it: an adapter beside a base in the compute dtype, or its own fp32 weights."""
    compute = resolve_dtype(recipe.model.dtype, engine.device)
    lora = recipe.adapter.type == "lora"
    stored = compute if lora else resolve_dtype("float32", engine.device)
    log.info("model %s on %s: %s products, float32 trained weights", base.location.name, engine.device, compute)
    model: Any = load_model(
        base.location, dtype=stored, device=engine.device, attn_implementation=recipe.model.attn_implementation
    )
    if lora:
        model = adapters.add_lora(model, **recipe.adapter.model_dump(exclude={"type"}))
    elif recipe.freeze is not None:
        adapters.freeze(model, recipe.freeze.layers, recipe.freeze.embeddings)
    policy = Policy(model, compute, base.tokenizer.pad_token_id)
    policy.causal.generation_config = generation_config(policy.causal, base.tokenizer, rows.terminators)
    policy.prove(rows.examples)
    if recipe.data.packing and not policy.flat:
        raise RecipeError(
            f"data.packing: true: packed examples would see each other in {base.location.name}",
            "Set data.packing: false: batches are then padded.",
        )
    if recipe.train.activation_checkpointing:
        policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def make_training(
    recipe: Recipe,
    rows: Rows,
    policy: Policy,
    objective: Objective,
    evaluate: Evaluate,
    engine: Engine,
    base_model: dict[str, Any],
    folder: Path,
) -> Training:
    """The parts of the loop, at step 0; `base_model` identifies the weights that training starts from."""
    settings, num_steps = recipe.train, rows.loader.num_steps
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round((settings.warmup_ratio or 0) * num_steps)
    parameters = adapters.trained_parameters(policy)
    optimizer = make_optimizer(
        settings.optim, parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = settings.lr_scheduler_type
    evaluation = recipe.eval.model_dump(
        include={"metric_for_best_model", "greater_is_better", "early_stopping_patience"}
    )
    return Training(
        policy=policy,
        objective=objective,
        loader=rows.loader,
        parameters=parameters,
        optimizer=optimizer,
        learning_rate=make_schedule(schedule, optimizer, warmup_steps=warmup, num_steps=num_steps),
        max_grad_norm=settings.max_grad_norm,
        engine=engine,
        evaluate=evaluate,
        schedule=Schedule(
            save_steps=recipe.save.steps,
            total_limit=recipe.save.total_limit,
            eval_steps=recipe.eval.steps,
            logging_steps=settings.logging_steps,
            **evaluation,
        ),
        metrics=MetricsFile(folder / "metrics.jsonl"),
        checkpoints=folder / "checkpoints",
        contract=_contract(recipe, rows, policy, base_model, engine),
    )


def resume(recipe: Recipe, run: Training, folder: Path) -> bool:
    """Puts `run` where `resume` says; False if it starts at step 0. Raises where the checkpoint is another run's."""
    for place in (folder, run.checkpoints):
        checkpoint.sweep(place)
    path = None
    if recipe.resume == "auto":
        path = checkpoint.newest(run.checkpoints)
    elif recipe.resume != "never":
        path = Path(recipe.resume)
    if path is None:
        if recipe.resume == "auto":
            log.info("%s: there is no checkpoint to resume from: starting at step 0", folder)
        run.metrics.drop_after(-1)
        return False
    checkpoint.check_contract(checkpoint.verify(path)["contract"], run.contract, path)
    restore(run, path)
    log.info("resuming from %s", path)
    if run.state.best_step is not None and not checkpoint.is_whole(run.checkpoints / f"step-{run.state.best_step}"):
        log.warning("the best checkpoint, step %d, is not whole: the best is sought anew", run.state.best_step)
        run.state.best_metric = run.state.best_step = None
    run.metrics.drop_after(run.state.step)
    return True


def flat_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe under its dotted key, in JSON's types."""
    values: dict[str, Any] = {}
    for name, section in recipe.model_dump(mode="json").items():
        values |= (
            {f"{name}.{key}": value for key, value in section.items()} if isinstance(section, dict) else {name: section}
        )
    return values


# The keys of a recipe that may not change between a checkpoint and the run that continues it; and see `_contract`.
KEPT = (
    *("model.", "adapter.", "freeze", "train.", "eval.metric_for_best_model"),
    *("data.packing", "data.max_length", "data.overlong", "data.streaming", "data.shuffle_buffer"),
)


def _contract(recipe: Recipe, rows: Rows, policy: Policy, base_model: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """What may not change between a checkpoint and the run that continues it, each under its recipe key."""
    values = {key: value for key, value in flat_values(recipe).items() if key.startswith(KEPT)}
    del values["train.logging_steps"]
    return {
        **values,
        "model.revision": base_model["revision"],
        "model.dtype": str(policy.dtype),
        "weights of the model (sha256)": base_model["sha256"],
        "data (hash of ids and masks)": rows.fingerprint,
        "data.train weights": shares_of(recipe),
        "held-out data (hash of ids and masks)": rows.facts.get("held_out", {}).get("sha256"),
        "world size": engine.world_size,
    }
