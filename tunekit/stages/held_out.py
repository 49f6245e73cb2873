"""What a training stage measures on held-out rows: the loss, metrics of generated answers, one answer to show."""

import logging
import math
from collections.abc import Callable, Iterator

from tunekit.data.rows import Prompt
from tunekit.errors import DataError
from tunekit.models.generate import complete, prompt_ids
from tunekit.models.policy import Policy
from tunekit.models.serve import context_of
from tunekit.objectives.objective import Objective
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import Rows
from tunekit.train import metrics
from tunekit.train.engine import Engine
from tunekit.train.evaluate import held_out_loss
from tunekit.train.sharding import gathered
from tunekit.train.training import Evaluate

log = logging.getLogger("tunekit")

SAMPLE_TOKENS = 96  # of the answer that is shown before and after training


def evaluation(
    recipe: Recipe, policy: Policy, objective: Objective, base: Base, rows: Rows, engine: Engine
) -> Evaluate:
    """What the loop calls when an evaluation is due: held-out loss, and metrics of generated answers if asked for."""
    prompts = _metric_prompts(recipe, policy, base, rows) if recipe.eval.metrics else []

    def answers(prompts: list[Prompt], poll: Callable[[], None]) -> list[str]:
        longest, size = recipe.eval.max_new_tokens, recipe.eval.per_device_eval_batch_size
        found = complete(policy.causal, base.tokenizer, prompts, max_new_tokens=longest, batch_size=size, poll=poll)
        return [text for _, text, _ in sorted(found)]

    def evaluate(poll: Callable[[], None]) -> dict[str, float]:
        if rows.held_out_examples is None:
            return {}
        batch_size = recipe.eval.per_device_eval_batch_size
        values = held_out_loss(policy, objective, rows.held_out_examples, batch_size, poll, engine)
        if recipe.stage == "sft":
            values["eval_perplexity"] = math.exp(min(values["eval_loss"], 700.0))
        if prompts:
            with gathered(policy):
                predictions = engine.shared(prompts, lambda mine: answers(mine, engine.by_itself(poll)))
            values |= metrics.compute(recipe.eval.metrics, predictions, [prompt.answer or "" for prompt in prompts])
        return values

    return evaluate


def _metric_prompts(recipe: Recipe, policy: Policy, base: Base, rows: Rows) -> list[Prompt]:
    """The held-out prompts to answer for the metrics; `DataError` if there is none, said aloud if one has no room."""
    max_new_tokens = recipe.eval.max_new_tokens
    prompts = list(_with_room(policy, base, rows, max_new_tokens))
    if not prompts:
        problem = "none has a prompt and an answer"
        if rows.prompts:
            problem = f"none leaves room for {max_new_tokens} tokens in the model's context"
        raise DataError(
            f"eval.metrics: there is nothing to generate from: of the held-out rows, {problem}",
            "Remove eval.metrics, lower eval.max_new_tokens, or hold out rows that have a prompt and an answer.",
        )
    if left_out := len(rows.prompts) - len(prompts):
        log.warning(
            "%d of %d held-out prompts are left out of the metrics: with eval.max_new_tokens: %d they do not fit the "
            "model's context of %s tokens",
            left_out,
            len(rows.prompts),
            max_new_tokens,
            f"{context_of(policy.causal):,}",
        )
    return prompts


def _with_room(policy: Policy, base: Base, rows: Rows, max_new_tokens: int) -> Iterator[Prompt]:
    """The held-out prompts that leave room for an answer of `max_new_tokens` in the model's context."""
    context = context_of(policy.causal)
    for prompt in rows.prompts:
        if context is None or len(prompt_ids(base.tokenizer, prompt)) + max_new_tokens <= context:
            yield prompt


def sample_answer(policy: Policy, base: Base, rows: Rows) -> str | None:
    """The model's greedy answer to the prompt of the sample."""
    prompt = sample_prompt(policy, base, rows)
    if prompt is None:
        return None
    answers = complete(policy.causal, base.tokenizer, [prompt], max_new_tokens=SAMPLE_TOKENS, batch_size=1)
    return next(answers)[1]


def sample_prompt(policy: Policy, base: Base, rows: Rows) -> Prompt | None:
    """The first held-out prompt that leaves room for an answer; None also where the policy writes none."""
    if not policy.generates:
        return None
    return next(_with_room(policy, base, rows, SAMPLE_TOKENS), None)
