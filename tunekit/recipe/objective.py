"""The section of a recipe that says what is optimised."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunekit.recipe.types import LEFT_OUT, Derived, Losses, NotNegative, Positive, Section

Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class Objective(Section):
    loss: Derived[Losses] = Field(
        default=LEFT_OUT,
        description="Loss, or a list of losses that are added up, by TRL's names (or: loss_type); or a function of "
        "yours as path/to/file.py:name, which needs --allow-code. Derived: of dpo sigmoid, of kto kto, of reward "
        "bradley_terry.",
    )
    loss_weights: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        default=None, description="Weight of each loss of the list; null: 1 each."
    )
    beta: Derived[Positive] = Field(
        default=LEFT_OUT,
        description="How strongly the policy is held to the reference; the scale of implied rewards. Derived: 0.1, of "
        "simpo 2.0.",
    )
    label_smoothing: Derived[Smoothing] = Field(
        default=LEFT_OUT,
        description="Share of pairs whose order is taken to be wrong. Derived: 0, of robust 0.1, of exo_pair 0.001.",
    )
    gamma: Derived[NotNegative] = Field(
        default=LEFT_OUT, description="Margin that simpo aims at (or: simpo_gamma). Derived: 0.5."
    )
    tau: Derived[Positive] = Field(
        default=LEFT_OUT, description="Temperature of the blend of discopop (or: discopop_tau). Derived: 0.05."
    )
    sft_weight: Derived[NotNegative] = Field(
        default=LEFT_OUT,
        description="Weight of the negative log-likelihood of the chosen answers, a mean over their tokens (or: "
        "rpo_alpha). Derived: 0, of orpo and cpo 1.",
    )
    desirable_weight: Derived[Positive] = Field(
        default=LEFT_OUT, description="Weight of the loss of answers that are wanted, in kto. Derived: 1."
    )
    undesirable_weight: Derived[Positive] = Field(
        default=LEFT_OUT, description="Weight of the loss of answers that are not wanted, in kto. Derived: 1."
    )
    center_rewards_coefficient: NotNegative | None = Field(
        default=None, description="Weight of the squared sum of the two rewards of a pair; null: rewards may drift."
    )
