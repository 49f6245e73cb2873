"""What the stages share whose answers the policy writes itself: PPO, GRPO, RLOO."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunekit.data.examples import Examples
from tunekit.data.plan import Plan
from tunekit.data.rows import Prompt
from tunekit.data.template import after_the_end
from tunekit.models.actor import Actor, Reference, Value, reference_of
from tunekit.models.adapter_roles import is_adapted
from tunekit.models.policy import Policy
from tunekit.recipe.schema import Recipe
from tunekit.rollout.advantages import Method
from tunekit.rollout.builtin import Builtin
from tunekit.rollout.collect import Asked, Collector, Rollout
from tunekit.rollout.loader import RolloutLoader
from tunekit.rollout.openai import OpenAIEndpoint
from tunekit.rollout.rewards import Source, check_prompts, make_rewards
from tunekit.rollout.samples import Sampler, Sampling
from tunekit.rollout.vllm import VllmServer
from tunekit.rollout.watch import RolloutWatch
from tunekit.stages.assemble import compute_dtype, end_at_terminators, finish_policy, trained_model
from tunekit.stages.base import Base
from tunekit.stages.reward_model import reward_model
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine
from tunekit.train.folder import replace_text
from tunekit.train.report import read_metrics
from tunekit.train.training import Evaluate

log = logging.getLogger("tunekit")

# Nats a token by which log-probabilities of sampling and training may differ, from products of other shapes.
SAMPLING_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.2}
SAMPLES = 5  # answers shown at a time
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Online:
    """The parts of a run that are other ones than where rows are given; `close` lets go of what asks the policy."""

    rows: Rows
    evaluate: Evaluate
    watch: RolloutWatch
    close: Callable[[], None]


def make_actor(recipe: Recipe, base: Base, rows: Rows, engine: Engine, value: Callable[..., Value] | None) -> Actor:
    """The language model as in other stages, once it is tried, with the head that `value` makes (None: none)."""
    actor = Actor(trained_model(recipe, base, engine), compute_dtype(recipe, engine), base.tokenizer.pad_token_id)
    end_at_terminators(actor, base, rows)
    finish_policy(recipe, base, rows, actor)
    actor.act(
        temperature=recipe.rollout.temperature,
        entropy=bool(recipe.objective.entropy_coef),
        value=None if value is None else value(recipe, base, actor, engine),
    )
    return actor


def prepare(
    recipe: Recipe,
    policy: Policy,
    base: Base,
    rows: Rows,
    folder: Path,
    method: Method,
    coefficient: float,
    code: bool,
    engine: Engine,
) -> Online:
    """Rollouts in place of rows. `coefficient`: of the divergence from the reference;  `code`: the user's may run."""
    assert isinstance(policy, Actor) and rows.train_examples is not None
    prompts = asked_of(rows.train_examples)
    held_out = [] if rows.held_out_examples is None else asked_of(rows.held_out_examples)
    rewards = make_rewards(
        [each.model_dump() for each in recipe.rewards or ()],
        allow_code=code,
        model=partial(reward_model, recipe, policy, base),
        tokenizer=base.tokenizer,
        dtype=recipe.model.dtype,
    )
    check_prompts(rewards, [each.prompt for each in [*prompts, *held_out]])
    needed = coefficient > 0 or recipe.objective.kl_target is not None or is_adapted(policy.model)
    reference = reference_of(policy) if needed else None
    collector = _collector(recipe, policy, base, folder, rewards, method, reference, coefficient)
    collector.engine = engine
    watch = _watch(recipe, policy, needed)
    loader = _loader(recipe, prompts, collector, rows, watch)
    loader.rank, loader.world_size = engine.rank, engine.world_size
    if engine.is_main:
        loader.seen = _show_samples(recipe, folder)
    return Online(replace(rows, loader=loader), evaluation(collector, held_out, recipe), watch, collector.sampler.close)


def _passes(recipe: Recipe) -> tuple[int, int]:
    """Over each rollout, and optimizer steps in each of these."""
    objective = recipe.objective
    return objective.num_ppo_epochs or objective.num_iterations or 1, objective.num_mini_batches or 1


def _collector(
    recipe: Recipe,
    policy: Actor,
    base: Base,
    folder: Path,
    rewards: Sequence[Source],
    method: Method,
    reference: Reference | None,
    coefficient: float,
) -> Collector:
    objective, rollout = recipe.objective, recipe.rollout
    ends = terminators_of(policy)
    return Collector(
        actor=policy,
        sampler=_sampler(recipe, base, folder),
        tokenizer=base.tokenizer,
        rewards=rewards,
        method=method,
        reference=reference,
        sampling=Sampling(rollout.max_new_tokens, rollout.temperature, rollout.top_p, rollout.top_k, ends),
        num_generations=rollout.num_generations,
        batch_size=recipe.eval.per_device_eval_batch_size,
        failures=recipe.limits.reward_failures,
        keeps_old=_passes(recipe) != (1, 1) or recipe.stage == "ppo" or (recipe.stage == "rloo" and coefficient > 0),
        checked=rollout.engine != "builtin",  # a server may hold other weights, or be slow to take them
        leaves_out_cut=bool(objective.mask_truncated_completions),
        missing_eos_penalty=objective.missing_eos_penalty or 0.0,
        tail=after_the_end(base.tokenizer, ends),
    )


def _watch(recipe: Recipe, policy: Actor, has_reference: bool) -> RolloutWatch:
    plain = recipe.rollout.top_p == 1 and not recipe.rollout.top_k
    if not plain:
        log.info("rollout.top_p and top_k cut the distribution that answers are drawn from: it is not the trained one")
    return RolloutWatch(
        kl=recipe.limits.kl if has_reference else None,
        entropy=recipe.limits.entropy,
        length=recipe.limits.length,
        update_kl=recipe.limits.update_kl,
        sampling=SAMPLING_BOUND.get(policy.dtype) if plain else None,
    )


def asked_of(examples: Examples) -> list[Asked]:
    found = []
    for i in range(len(examples)):
        row, tokens = examples.rows.row(i), examples.rows[i]
        assert isinstance(row, Prompt)
        found.append(Asked(row, tokens.ids, tokens.part))
    return found


def terminators_of(policy: Policy) -> frozenset[int]:
    ends = policy.causal.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _sampler(recipe: Recipe, base: Base, folder: Path) -> Sampler:
    rollout = recipe.rollout
    if rollout.engine == "builtin":
        return Builtin(rollout.batch_size)
    assert rollout.base_url is not None
    if rollout.engine == "openai":
        return OpenAIEndpoint(rollout.base_url, rollout.served_model, base.tokenizer)
    adapted = recipe.adapter.type == "lora"
    return VllmServer(rollout.base_url, rollout.served_model, "adapter" if adapted else "reload", folder / "served")


def _loader(
    recipe: Recipe,
    prompts: list[Asked],
    collector: Collector,
    rows: Rows,
    watch: RolloutWatch,
) -> RolloutLoader:
    assert rows.train_examples is not None
    settings, passes = recipe.train, _passes(recipe)
    order = Plan(
        lengths=rows.train_examples.lengths,
        batch_size=recipe.rollout.num_prompts,
        micro_batches=1,
        epochs=settings.num_train_epochs,
        max_steps=None,
        seed=settings.seed,
        sampling=settings.sampling,
    )
    num_steps = settings.max_steps or order.num_steps * passes[0] * passes[1]
    log.info(
        "%d prompts x %d answers a rollout, %d optimizer steps on each, %d steps in all",
        min(recipe.rollout.num_prompts, len(prompts)),
        collector.num_generations,
        passes[0] * passes[1],
        num_steps,
    )
    return RolloutLoader(
        prompts=prompts,
        plan=replace(order, max_steps=2**31),  # rollouts that are left early, or asked again, take more prompts
        collector=collector,
        passes=passes[0],
        mini_batches=passes[1],
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_steps=num_steps,
        terminators=rows.loader.terminators,
        dynamic=bool(recipe.objective.dynamic_sampling),
        moved=watch.moved,
        watch=watch,
    )


def evaluation(collector: Collector, held_out: list[Asked], recipe: Recipe) -> Evaluate:
    """The likeliest answers to held-out prompts, rewarded: mean, standard deviation, each source, length, endings."""
    sampling = replace(collector.sampling, temperature=0.0, top_p=1.0, top_k=0)

    def evaluate(poll: Callable[[], None]) -> dict[str, float]:
        if not held_out:
            return {}
        seen = collector.seen(held_out, 1, sampling, 0, poll)
        responses, scores = [each.response for each in seen], collector.scores(seen)
        total = scores.total[scores.valid]
        values = {"eval_reward": float(total.mean()), "eval_reward_std": float(total.std())}
        if len(scores.values) > 1:
            values |= {f"eval_reward_{name}": float(each[scores.valid].mean()) for name, each in scores.values.items()}
        values["eval_length"] = sum(each.num_tokens for each in responses) / len(responses)
        values["eval_ended"] = sum(each.ended for each in responses) / len(responses)
        return values

    return evaluate


def _show_samples(recipe: Recipe, folder: Path) -> Callable[[int, Rollout], None]:
    """Every so many steps five answers with their rewards, in the log and in `samples.jsonl`."""
    last: list[int] = []
    every = recipe.rollout.samples_steps

    def show(step: int, rollout: Rollout) -> None:
        if not last:  # what a run that was killed wrote beyond its checkpoint is written anew
            _drop_from(step, folder / SAMPLES_FILE)
        elif step - last[0] < every:
            return
        last[:] = [step]
        count = len(rollout.responses)
        chosen = [count * i // SAMPLES for i in range(min(SAMPLES, count))]
        with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
            for i in chosen:
                each = rollout.responses[i]
                rewards = {name: _finite(values[i]) for name, values in rollout.scores.values.items()}
                row = asdict(each) | {"step": step, "reward": _finite(rollout.scores.total[i]), "rewards": rewards}
                del row["rendered"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                log.info("sample, step %d: reward %.3f: %s", step, rollout.scores.total[i], _line(each.text))

    return show


def _drop_from(step: int, path: Path) -> None:
    kept = [row for row in read_metrics(path) if row["step"] < step]
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _finite(value: Any) -> float | None:
    return float(value) if value == value else None


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:160] + " ..."
