"""What quantisation costs: the held-out loss of the base as it is stored, beside that of the quantised one."""

import copy
import gc
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import set_seed

from tunekit.data.rows import Example, Tokens
from tunekit.models.policy import Policy
from tunekit.objectives.objective import Objective
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine
from tunekit.train.evaluate import held_out_loss

log = logging.getLogger("tunekit")

Make = Callable[[Recipe, Base, Rows, Engine], Policy]


def beside_full_base(
    make: Make, recipe: Recipe, objective: Objective, base: Base, rows: Rows, engine: Engine, *, measure: bool
) -> tuple[Policy, dict[str, float]]:
    """The policy that `make` gives, and of a quantised one what the full base has on held-out rows (with `measure`).

    `eval_loss_full` of sft and reward, to be held against `eval_loss` before training. The losses of other stages say
    nothing then: `eval_nll_full` and `eval_nll`, nats a token of the answers (of prompts without answers, a token).

    The full base is gone from memory before the quantised one is loaded; where a GPU has no room for it, it is measured
    on the processor.
    """
    if recipe.model.quantization == "none" or not measure:
        return make(recipe, base, rows, engine), {}
    if rows.held_out_examples is None:
        log.info("what quantisation costs is not measured: there are no held-out rows")
        return make(recipe, base, rows, engine), {}
    full = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantization": "none"})})
    log.info("what quantisation costs: measuring the full base on %d held-out rows", len(rows.held_out_examples))
    try:
        cost = _measured(make(full, base, rows, engine), recipe, objective, rows, "_full")
    except torch.OutOfMemoryError:
        log.info("%s has no room for the full base: measuring it on the processor", engine.device)
        _release()
        elsewhere = copy.copy(engine)
        elsewhere.device = torch.device("cpu")
        cost = _measured(make(full, base, rows, elsewhere), recipe, objective, rows, "_full")
    _release()
    set_seed(recipe.train.seed)  # a new head, and an adapter, begin as they did
    policy = make(recipe, base, rows, engine)
    if "eval_nll_full" in cost:
        cost |= _measured(policy, recipe, objective, rows, "")
    return policy, cost


def _measured(policy: Policy, recipe: Recipe, objective: Objective, rows: Rows, suffix: str) -> dict[str, float]:
    assert rows.held_out_examples is not None
    batch_size = recipe.eval.per_device_eval_batch_size
    if recipe.stage in ("sft", "reward"):
        loss = held_out_loss(policy, objective, rows.held_out_examples, batch_size)
        return {f"eval_loss{suffix}": loss["eval_loss"]}
    return {f"eval_nll{suffix}": _nats(policy, [_scored(row) for row in rows.held_out_examples], batch_size)}


def _scored(row: Example) -> Example:
    """`row`, all tokens of which are scored where it is a prompt alone."""
    if isinstance(row, Tokens) and not row.trained.any():
        return Tokens(row.ids, np.arange(len(row.ids)) > 0, row.source)
    return row


@torch.no_grad()
def _nats(policy: Policy, rows: Sequence[Example], batch_size: int) -> float:
    """Negative log-likelihood a trained token."""
    policy.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        logprobs = policy(policy.batch(rows[start : start + batch_size]))
        total -= float(logprobs.double().sum())
        count += len(logprobs)
    return total / max(count, 1)


def _release() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
