"""The section of a recipe that says how many processes train, and what they share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunekit.recipe.types import LEFT_OUT, MAX_COUNT, Count, Derived, Positive, Section


class Distributed(Section):
    processes: Count | Literal["auto"] = Field(
        default=1, description="Processes on each machine; auto: one for each GPU, or one where there is none."
    )
    nodes: Count = Field(default=1, description="Machines that train together; see tunekit launch.")
    strategy: Derived[Literal["none", "ddp", "fsdp2"]] = Field(
        default=LEFT_OUT,
        description="ddp: each process has all weights; fsdp2: each keeps a part of them. Derived: none for one "
        "process, else ddp.",
    )
    cpu_offload: bool = Field(
        default=False, description="With fsdp2: weights, gradients and optimizer states lie in the processor's memory."
    )
    async_save: bool = Field(
        default=False, description="With fsdp2: write checkpoints while training goes on, from a copy."
    )
    timeout: Positive = Field(
        default=600.0, description="Seconds that a process waits for the others before the run ends with exit code 6."
    )
    max_restarts: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        default=3, description="Times that training goes on from its newest checkpoint after a process was lost."
    )
