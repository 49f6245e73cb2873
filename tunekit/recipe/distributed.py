"""The section of a recipe that says how many processes train, and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunekit.recipe.conflict import Conflict
from tunekit.recipe.types import LEFT_OUT, MAX_COUNT, Count, Derived, Positive, Section

if TYPE_CHECKING:
    from tunekit.recipe.schema import Recipe

DIVIDED = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # optimizers that take a part of a weight


class Distributed(Section):
    processes: Count | Literal["auto"] | None = Field(
        default=None,
        description="Processes on each machine; auto: one for each GPU, or one where there is none; null: one, or as "
        "many as a launcher (torchrun, accelerate, Slurm) started.",
    )
    nodes: Count = Field(default=1, description="Machines that train together; see tunekit launch.")
    strategy: Derived[Literal["none", "ddp", "fsdp2"]] = Field(
        default=LEFT_OUT,
        description="ddp: each process has all weights; fsdp2: each keeps a part of them. Derived: none for one "
        "process, else ddp.",
    )
    cpu_offload: bool = Field(
        default=False,
        description="With fsdp2 on GPUs: keep weights, gradients and optimizer states in the memory of the machine.",
    )
    timeout: Positive = Field(
        default=600.0, description="Seconds that a process waits for the others before the run ends with exit code 6."
    )
    max_restarts: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        default=3, description="Times that training goes on from its newest checkpoint after a process was lost."
    )


def known_processes(distributed: Distributed) -> int:
    """All that train together; one on each machine where that is seen only at the start."""
    processes = distributed.processes
    return distributed.nodes * (processes if isinstance(processes, int) else 1)


def distributed_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """What several processes do not go together with."""
    distributed, strategy = recipe.distributed, recipe.distributed.strategy
    several = known_processes(distributed) > 1
    if several and strategy == "none":
        at = "distributed.strategy"
        message = "none: is for one process; set ddp or fsdp2, or remove the key"
        yield Conflict(at, (at, "distributed.processes", "distributed.nodes"), message)
    if distributed.cpu_offload and strategy != "fsdp2":
        at = "distributed.cpu_offload"
        yield Conflict(at, (at, "distributed.strategy"), "is for strategy: fsdp2; set that, or remove the key")
    if strategy == "fsdp2" and recipe.adapter.type == "none" and recipe.train.optim not in DIVIDED:
        message = f"does not go with distributed.strategy: fsdp2 without an adapter; accepted: {', '.join(DIVIDED)}"
        yield Conflict("train.optim", ("train.optim", "distributed.strategy", "adapter.type"), message)
    if distributed.nodes > 1 and distributed.max_restarts and recipe.resume != "auto":
        message = "does not go with distributed.nodes: a machine that starts again must go on; set resume: auto"
        yield Conflict("resume", ("resume", "distributed.nodes", "distributed.max_restarts"), message)
    if strategy == "fsdp2" and recipe.model.quantization != "none":
        message = "does not go with distributed.strategy: fsdp2, which is not proven on a quantised base; set ddp"
        yield Conflict("model.quantization", ("model.quantization", "distributed.strategy"), message)
    if several and "aot" in (recipe.objective.loss or ()):
        message = "does not go with loss aot, which compares all pairs of a step: they must be one batch; remove it"
        yield Conflict("distributed.processes", ("distributed", "distributed.processes", "objective.loss"), message)
