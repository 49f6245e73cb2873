"""The section of a recipe that says what is optimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunekit.recipe.types import LEFT_OUT, Count, Derived, Losses, NotNegative, Positive, Section

Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class Objective(Section):
    loss: Derived[Losses] = Field(
        default=LEFT_OUT,
        description="Loss, or a list of losses that are added up, by TRL's names (or: loss_type); or a function of "
        "yours as path/to/file.py:name, which needs --allow-code. Derived: of dpo sigmoid, of reward bradley_terry, "
        "else the name of the stage.",
    )
    loss_weights: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        default=None, description="Weight of each loss of the list; null: 1 each."
    )
    beta: Derived[NotNegative] = Field(
        default=LEFT_OUT,
        description="How strongly the policy is held to the reference; the scale of implied rewards. Derived: 0.1, of "
        "simpo 2.0, of rloo 0.05, of grpo and its variants 0.",
    )
    label_smoothing: Derived[Smoothing] = Field(
        default=LEFT_OUT,
        description="Share of pairs whose order is taken to be wrong. Derived: 0, of robust 0.1, of exo_pair 0.001.",
    )
    gamma: Derived[NotNegative] = Field(
        default=LEFT_OUT,
        description="Margin that simpo aims at (or: simpo_gamma), derived 0.5; discount of ppo, derived 1.",
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
    kl_coef: Derived[NotNegative] = Field(
        default=LEFT_OUT,
        description="What a nat of divergence from the reference takes off the reward, in ppo. Derived: 0.05.",
    )
    kl_estimator: Derived[Literal["k1", "k2", "k3"]] = Field(
        default=LEFT_OUT, description="How ppo estimates that divergence at each token (Schulman 2020). Derived: k1."
    )
    kl_target: Positive | None = Field(
        default=None, description="Nats an answer that kl_coef is adapted to; null: kl_coef stays as it is."
    )
    kl_horizon: Derived[Count] = Field(
        default=LEFT_OUT, description="Answers over which kl_coef adapts to kl_target. Derived: 10000."
    )
    cliprange: Derived[Positive] = Field(
        default=LEFT_OUT, description="How far the ratio of probabilities counts in ppo. Derived: 0.2."
    )
    cliprange_value: Derived[Positive] = Field(
        default=LEFT_OUT, description="How far the value counts from what it was at the rollout. Derived: 0.2."
    )
    vf_coef: Derived[NotNegative] = Field(default=LEFT_OUT, description="Weight of the value loss. Derived: 0.1.")
    entropy_coef: Derived[NotNegative] = Field(
        default=LEFT_OUT, description="Weight of the entropy of the policy, a bonus. Derived: 0."
    )
    lam: Derived[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=LEFT_OUT, description="Lambda of generalised advantage estimation. Derived: 0.95."
    )
    whiten_rewards: Derived[bool] = Field(
        default=LEFT_OUT, description="Scale the rewards of a rollout to variance 1. Derived: false."
    )
    missing_eos_penalty: NotNegative | None = Field(
        default=None, description="Taken off the reward of an answer that did not end by itself."
    )
    num_ppo_epochs: Derived[Count] = Field(
        default=LEFT_OUT, description="Passes of ppo over the answers of a rollout. Derived: 4."
    )
    num_iterations: Derived[Count] = Field(
        default=LEFT_OUT, description="Passes of grpo and rloo over the answers of a rollout. Derived: 1."
    )
    num_mini_batches: Derived[Count] = Field(
        default=LEFT_OUT, description="Optimizer steps in each of these passes. Derived: 1."
    )
    epsilon: Derived[Positive] = Field(
        default=LEFT_OUT, description="How far the ratio of probabilities counts downwards. Derived: 0.2, of gspo 3e-4."
    )
    epsilon_high: Positive | None = Field(
        default=LEFT_OUT, description="The same upwards; null: epsilon. Derived: of dapo 0.28, of gspo 4e-4."
    )
    scale_rewards: Derived[Literal["group", "batch", "none"]] = Field(
        default=LEFT_OUT,
        description="Standard deviation that advantages are divided by. Derived: group, of dr_grpo none.",
    )
    normalize_advantages: Derived[bool] = Field(
        default=LEFT_OUT, description="Scale the advantages of a rollout to mean 0 and variance 1. Derived: false."
    )
    mask_truncated_completions: Derived[bool] = Field(
        default=LEFT_OUT, description="Leave answers that did not end by themselves out of the loss. Derived: false."
    )
    dynamic_sampling: Derived[bool] = Field(
        default=LEFT_OUT,
        description="Ask further prompts in place of those whose answers all have the same reward. Derived: of dapo "
        "true, else false.",
    )
