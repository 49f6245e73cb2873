"""From a recipe to the parts of a run. With the stages themselves, the only place below the CLI that reads one."""

import logging
from pathlib import Path
from typing import Any

import torch

from tunekit.errors import RecipeError
from tunekit.files import sha256
from tunekit.models import adapters
from tunekit.models.export import generation_config
from tunekit.models.load import load_config, load_model, locate, resolve_dtype, weights_hash
from tunekit.models.policy import Policy
from tunekit.models.quantised import refuse_stored
from tunekit.objectives.objective import Objective
from tunekit.recipe.losses import USERS_OWN
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import REJECTED, Place, Rows, shares_of
from tunekit.train import checkpoint
from tunekit.train.engine import Engine
from tunekit.train.optim import make_optimizer, make_schedule
from tunekit.train.ranks import Ranks
from tunekit.train.report import MetricsFile
from tunekit.train.saving import restore
from tunekit.train.sharding import divide_again
from tunekit.train.training import Evaluate, Schedule, Training

log = logging.getLogger("tunekit")

CHECKPOINTS = "checkpoints"  # the folder of them in `output_dir`
DATE = "date (as a chat template may write it)"
MICRO_BATCHES = "micro-batches in an optimizer step, over all processes"
WORLD_SIZE = "world size"  # with which the run began; it may go on with another one


def make_policy(recipe: Recipe, base: Base, rows: Rows, engine: Engine) -> Policy:
    """The language model with what is trained in it (see `trained_model`), tried on rows of the run."""
    policy = Policy(trained_model(recipe, base, engine), compute_dtype(recipe, engine), base.tokenizer.pad_token_id)
    end_at_terminators(policy, base, rows)
    finish_policy(recipe, base, rows, policy)
    return policy


def compute_dtype(recipe: Recipe, engine: Engine) -> torch.dtype:
    return resolve_dtype(recipe.model.dtype, engine.device)


def trained_model(recipe: Recipe, base: Base, engine: Engine, task_type: str = "CAUSAL_LM", **options: Any) -> Any:
    """The model with what is trained in it: an adapter beside a base in the compute dtype, or its own fp32 weights.

    `options` are those of `load_model`, `task_type` is peft's word for the kind of model.
    """
    compute, lora = compute_dtype(recipe, engine), recipe.adapter.type == "lora"
    log.info("model %s on %s: %s products, float32 trained weights", base.location.name, engine.device, compute)
    refuse_stored(load_config(base.location), base.location.name)
    if recipe.model.quantization != "none":
        log.info("frozen weights in %s, dequantised for each product", recipe.model.quantization)
    model: Any = load_model(
        base.location,
        dtype=compute if lora else torch.float32,
        device=engine.device,
        attn_implementation=recipe.model.attn_implementation,
        quantization=recipe.model.quantization,
        **options,
    )
    settings = recipe.adapter.model_dump(exclude={"type", "start_from"}) | {"task_type": task_type}
    if base.adapter is not None:
        log.info("adapter %s: %s", base.adapter.name, base.start_from)
        if base.start_from == "continue":
            return adapters.continue_adapter(model, base.adapter.path)
        if base.start_from == "new":
            return adapters.stack_adapter(model, base.adapter.path, **settings)
        model = adapters.merge_adapter(model, base.adapter.path)
    if lora:
        return adapters.add_lora(model, **settings)
    if recipe.freeze is not None:
        adapters.freeze(model, recipe.freeze.layers, recipe.freeze.embeddings)
    return model


def finish_policy(recipe: Recipe, base: Base, rows: Rows, policy: Policy) -> None:
    """Tries the layouts of `policy` on rows of the run. Raises `RecipeError` where packing is asked and not safe."""
    policy.prove(rows.examples, pairs=recipe.stage not in ("sft", "kto"))
    if recipe.data.packing and not policy.flat:
        raise RecipeError(
            f"data.packing: true: packed examples would see each other in {base.location.name}",
            "Set data.packing: false: batches are then padded.",
        )
    if recipe.train.activation_checkpointing:
        policy.causal.gradient_checkpointing_enable({"use_reentrant": False})


def end_at_terminators(policy: Policy, base: Base, rows: Rows) -> None:
    """Generation ends where the answers that were read so far do; a stream may bring others later."""
    policy.causal.generation_config = generation_config(policy.causal, base.tokenizer, rows.loader.terminators)


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
    divide_again(policy)
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
        checkpoints=folder / CHECKPOINTS,
        contract=_contract(recipe, rows, policy, base_model, engine),
    )


def find_start(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The checkpoint that `resume` asks for, verified, with its contract; None where the run starts at step 0."""
    for place in (folder, folder / CHECKPOINTS):
        checkpoint.sweep(place)
    path = None
    if recipe.resume == "auto":
        path = checkpoint.newest(folder / CHECKPOINTS)
    elif recipe.resume != "never":
        path = Path(recipe.resume)
    if path is not None:
        return {"path": str(path), "contract": checkpoint.verify(path)["contract"]}
    if recipe.resume == "auto":
        log.info("%s: there is no checkpoint to resume from: starting at step 0", folder)
    (folder / REJECTED).unlink(missing_ok=True)  # that of a run that ended before its first checkpoint
    return None


def resume(run: Training, start: dict[str, Any] | None) -> None:
    """Puts `run` at `start`, of `find_start`. Raises where the checkpoint is another run's."""
    if start is not None:
        path = Path(start["path"])
        run.contract[WORLD_SIZE] = start["contract"][WORLD_SIZE]
        checkpoint.check_contract(start["contract"], run.contract, path)
        restore(run, path)
        log.info("resuming from %s", path)
        best = run.state.best_step
        if best is not None and not run.engine.ranks.from_main(
            lambda: checkpoint.is_whole(run.checkpoints / f"step-{best}")
        ):
            log.warning("the best checkpoint, step %d, is not whole: the best is sought anew", best)
            run.state.best_metric = run.state.best_step = None
    if run.engine.is_main:
        run.metrics.drop_after(-1 if start is None else run.state.step)


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
    *("model.", "adapter.", "freeze", "objective.", "train.", "eval.metric_for_best_model"),
    *("rewards", "rollout.", "value_model"),
    *("data.packing", "data.max_length", "data.overlong", "data.streaming", "data.shuffle_buffer"),
)


NOT_KEPT = (
    *("train.logging_steps", "rollout.samples_steps"),
    *("train.gradient_accumulation_steps", "train.global_batch_size"),  # see MICRO_BATCHES
)


def place_of(recipe: Recipe, ranks: Ranks, start: dict[str, Any] | None) -> Place:
    """Where this process stands. A run that others began makes steps of as many micro-batches as theirs."""
    before = None if start is None else start["contract"]
    if before is None or before[WORLD_SIZE] == ranks.world_size:
        return Place(ranks.rank, ranks.world_size)
    count = before[MICRO_BATCHES]
    log.info("an optimizer step keeps its %d micro-batches, over %d processes", count, ranks.world_size)
    return Place(ranks.rank, ranks.world_size, count)


def own_files(recipe: Recipe) -> list[str] | None:
    """The hash of each file of the user's own that decides what is trained: losses, rewards, schemas of rewards."""
    rewards = recipe.rewards or ()
    named = [*(recipe.objective.loss or ()), *(each.function or "" for each in rewards)]
    files = [name.rpartition(":")[0] for name in named if USERS_OWN.fullmatch(name)]
    files += [each.schema_path for each in rewards if each.schema_path]
    return [sha256(Path(file)) for file in files] or None


def judges(recipe: Recipe) -> list[str | None] | None:
    """The hash of the weights of each model that rewards answers, and of that which the value function starts from."""
    names = [each.model for each in recipe.rewards or () if each.model]
    names += [recipe.value_model] if recipe.value_model not in (None, OWN_ADAPTER) else []
    return [weights_hash(locate(name)) for name in names] or None


def _contract(recipe: Recipe, rows: Rows, policy: Policy, base_model: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """What may not change between a checkpoint and the run that continues it, each under its recipe key."""
    values = {key: value for key, value in flat_values(recipe).items() if key.startswith(KEPT)}
    shares = shares_of(recipe)
    for key in NOT_KEPT:
        del values[key]
    return {
        **values,
        "model.revision": base_model["revision"],
        "model.dtype": str(policy.dtype),
        "model.quantization": base_model.get("quantization"),  # None without, as before there was the key
        "weights of the model (sha256)": base_model["sha256"],
        "weights of the adapter to start from (sha256)": base_model.get("adapter", {}).get("sha256"),
        "data (hash of ids and masks)": rows.fingerprint,
        "labels and margins (hash)": None if rows.train_examples is None else rows.train_examples.fingerprint,
        "losses and rewards of your own (sha256 of their files)": own_files(recipe),
        "weights of reward and value models (sha256)": judges(recipe),
        "data.train weights": None if shares is None else list(shares),
        DATE: rows.facts["date"],
        "held-out data (hash of ids and masks)": rows.facts.get("held_out", {}).get("sha256"),
        MICRO_BATCHES: rows.micro_batches,
        WORLD_SIZE: engine.world_size,
    }
