"""The processes of a run: started where the recipe asks for several, united once each has its model."""

import logging

import torch

from tunekit import __version__
from tunekit.errors import RankFailed, RecipeError
from tunekit.models.policy import Policy
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import dump
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine
from tunekit.train.launcher import count_here
from tunekit.train.ranks import Ranks
from tunekit.train.sharding import shard

log = logging.getLogger("tunekit")


def restarted(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The recipe as this process follows it: one that torchrun started again goes on from the newest checkpoint.

    Raises `RankFailed` where there are other processes than the recipe asks for.
    """
    asked, found = recipe.distributed, ranks.world_size
    each = count_here(asked.processes) if asked.processes is not None else None
    if each is not None and each * asked.nodes != found:
        raise RankFailed(
            f"distributed: {each} processes on {asked.nodes} machines are asked for, and this is one of {found}",
            "Start the run with tunekit itself, or with a launcher that starts as many.",
        )
    if "aot" in (recipe.objective.loss or ()) and found > 1:
        raise RecipeError("objective.loss: aot: compares all pairs of a step, and takes one process")
    if ranks.attempt and recipe.resume == "never":
        recipe = recipe.model_copy(update={"resume": "auto"})
    return recipe


def unite(recipe: Recipe, policy: Policy, rows: Rows, engine: Engine) -> None:
    """Forms the group once data and model are there; weights become equal in all processes, or are divided over them.

    Raises `RankFailed` where the processes have other recipes, data or base models.
    """
    divides = recipe.distributed.strategy == "fsdp2"
    if engine.world_size == 1 and not divides:
        return
    if divides and recipe.distributed.cpu_offload and engine.device.type == "cpu":
        raise RecipeError("distributed.cpu_offload: on a processor the weights lie in the memory of the machine anyway")
    data = [rows.fingerprint, rows.micro_batches, rows.facts.get("held_out", {}).get("sha256")]
    alike = [__version__, dump(recipe.model_copy(update={"resume": "never"})), *data, _frozen_sum(policy)]
    engine.form(recipe.distributed.timeout, alike)
    log.info("%d processes, %s", engine.world_size, "fsdp2" if divides else "ddp")
    engine.take_from_main(each for each in policy.parameters() if each.requires_grad)
    if divides:
        shard(policy, engine, cpu_offload=recipe.distributed.cpu_offload)
    if engine.rank:
        torch.manual_seed(recipe.train.seed + engine.rank)  # dropout differs from process to process


def _frozen_sum(policy: Policy) -> list[int]:
    """The bytes of each frozen weight added up: equal where the files of the base are."""
    frozen = (each.detach().contiguous() for each in policy.parameters() if not each.requires_grad)
    return [int(each.flatten().view(torch.uint8).sum(dtype=torch.int64)) for each in frozen]
