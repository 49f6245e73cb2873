"""The reference of a run: its log-probabilities put beside the rows, and the proof that training starts from it."""

import logging
from dataclasses import replace
from typing import Any

import torch

from tunekit.data.prepare import fingerprint
from tunekit.errors import Diverged
from tunekit.models.policy import Policy
from tunekit.models.reference import reference_logprobs
from tunekit.objectives.objective import Objective
from tunekit.ops.logprobs import answer_sums
from tunekit.recipe.schema import Recipe
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine
from tunekit.train.sharding import gathered

log = logging.getLogger("tunekit")

PROBED = 4  # rows on which policy and reference are compared before step 1
# Nats a token by which policy and reference may differ at step 0, from products of other shapes; by precision.
BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def add_reference(
    recipe: Recipe, policy: Policy, objective: Objective, rows: Rows, base_model: dict[str, Any], engine: Engine
) -> None:
    """Computes what the reference, `policy` as it is before step 1, gives the answers, or reads it from the cache.

    Raises `Diverged` where training would not start from it.
    """
    for examples in (rows.train_examples, rows.held_out_examples):
        if examples is None:
            continue
        identity: list[Any] = [base_model, fingerprint(examples.rows)]
        if examples.rows.kind == "unpaired":  # whose mismatched answers the seed deals out and the limit cuts
            identity += [recipe.train.seed, examples.rows.max_length]
        if recipe.adapter.type == "lora" and recipe.adapter.init_lora_weights is not True:
            # Other beginnings than the usual one move the model, the random ones by the seed.
            identity += [recipe.adapter.model_dump(mode="json"), recipe.train.seed]
        with gathered(policy):
            examples.reference = reference_logprobs(
                policy,
                examples,
                recipe.eval.per_device_eval_batch_size,
                identity,
                all_know=lambda known: all(engine.gather(known)),
                spread=engine.shared,
            )
    assert rows.train_examples is not None
    check_start(policy, objective, rows.train_examples[:PROBED])


@torch.no_grad()
def check_start(policy: Policy, objective: Objective, rows: Any) -> None:
    """Raises `Diverged` unless `policy` gives `rows` what their reference says: log-ratios and margins are then 0."""
    policy.eval()
    batch = policy.batch(rows)
    assert batch.reference is not None
    output = policy(batch)
    sums = answer_sums(output, batch.counts)
    difference = float(((sums - batch.reference).abs() / batch.counts).mean())
    if (others := batch.mismatched) is not None and others.reference is not None:
        apart = (answer_sums(policy(others), others.counts) - others.reference).abs() / others.counts
        difference = max(difference, float(apart.mean()))
    weight = batch.weight
    loss = float(objective.terms(output, batch, 0.0).loss_sum) / weight
    expected = float(objective.terms(output, replace(batch, reference=sums), 0.0).loss_sum) / weight
    log.info("step 0: loss %.4f, %.4f where policy and reference are one", loss, expected)
    if not difference <= BOUND.get(policy.dtype, BOUND[torch.bfloat16]):
        raise Diverged(
            f"step 0: policy and reference differ by {difference:.3g} nats a token on the first rows, and the loss is "
            f"{loss:.4f} instead of {expected:.4f}: training would not start from its reference",
            "Remove the folder reference/ in the cache of tunekit (TUNEKIT_CACHE), and run again.",
        )
