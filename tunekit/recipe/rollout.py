"""The sections of a recipe that say how answers are sampled, and what ends a run whose answers go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunekit.recipe.types import LEFT_OUT, MAX_COUNT, Count, Derived, Positive, Section, Text

OWN_ADAPTER = "adapter"  # the value_model that is one


class Rollout(Section):
    num_prompts: Count = Field(default=16, description="Prompts asked before the weights change.")
    num_generations: Derived[Count] = Field(
        default=LEFT_OUT, description="Answers to each prompt. Derived: of ppo 1, of grpo 8, of rloo 2."
    )
    max_new_tokens: Count = Field(
        default=128, description="Longest answer in tokens (or: response_length, max_completion_length)."
    )
    temperature: Positive = Field(
        default=1.0, description="Of the distribution that answers are drawn from; the same is trained."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Nucleus that answers are drawn from; below 1 it is another distribution than the trained one.",
    )
    top_k: Annotated[int, Field(ge=0, le=MAX_COUNT)] = Field(
        default=0, description="Likeliest tokens that answers are drawn from, likewise; 0: all."
    )
    batch_size: Count = Field(default=64, description="Answers that the built-in engine writes at the same time.")
    engine: Literal["builtin", "vllm", "openai"] = Field(
        default="builtin", description="What writes the answers: this process, a vLLM server, another endpoint."
    )
    base_url: Text | None = Field(default=None, description="Address of the server, such as http://127.0.0.1:8000.")
    served_model: Text | None = Field(default=None, description="Name of the model on the server; null: its only one.")
    samples_steps: Count = Field(
        default=10, description="Optimizer steps between five samples with their rewards, in the log and samples.jsonl."
    )


class Limits(Section):
    kl: Positive | None = Field(
        default=100.0, description="Nats an answer from the reference above which the run ends; null: no bound."
    )
    update_kl: Positive | None = Field(
        default=None,
        description="Nats a token from the sampling policy above which the other passes over a rollout are left out.",
    )
    entropy: Positive | None = Field(
        default=None, description="Nats a token of entropy below which the run ends; null: a warning below 0.02."
    )
    length: Positive | None = Field(
        default=None,
        description="Mean tokens of answers below which the run ends; null: a warning where they shrink.",
    )
    reward_failures: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05,
        description="Share of the answers of the last 20 rollouts on which a reward may fail, from the third failure.",
    )
