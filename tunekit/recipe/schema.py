"""What a recipe may say: one frozen model for each section, a field for each key.

A model says what a value must be on its own; `rules.py` says which values go together, `derive.py` fills in what was
left out.
A field typed `Derived[...]` may be left out or null in a file and is never None in a loaded recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunekit.recipe.data import Data
from tunekit.recipe.distributed import Distributed
from tunekit.recipe.forms import expand
from tunekit.recipe.objective import Objective
from tunekit.recipe.rewards import Reward
from tunekit.recipe.rollout import Limits, Rollout
from tunekit.recipe.types import (
    LEFT_OUT,
    MAX_COUNT,
    Attention,
    Checkpoint,
    Condition,
    Count,
    Derived,
    Layers,
    Metric,
    Names,
    Optimizer,
    PathText,
    Positive,
    Section,
    Text,
    Trackers,
)


class Model(Section):
    name_or_path: PathText = Field(description="Hub id, local folder, or built-in name such as smollm2-135m-instruct.")
    revision: Text | None = Field(
        default=None, description="Commit, tag or branch of the hub repository; null: its main branch."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Precision of matrix products and frozen weights; auto: bfloat16 where it is in hardware.",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="Precision in which the linear layers of the base are kept, beside an adapter: 4bit is NF4 with "
        "double quantisation, 8bit is int8; needs adapter: lora.",
    )
    attn_implementation: Attention = Field(
        default="auto",
        description="auto: flat rows with isolated examples; or a name of transformers', on padded rows.",
    )


class Adapter(Section):
    type: Literal["none", "lora"] = Field(
        default="none", description="none trains the model's own weights, lora a low-rank adapter."
    )
    r: Count = Field(default=16, description="Rank of the adapter.")
    alpha: Derived[Positive] = Field(
        default=LEFT_OUT, description="Scale of the adapter: its output is multiplied by alpha / r. Derived: 2 r."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the adapter.")
    target_modules: Text | Names = Field(
        default="all-linear",
        description="Modules that get an adapter: all-linear, a list of name endings, or one regular expression.",
    )
    target_parameters: Names | None = Field(
        default=None, description="Parameters (not modules) that get an adapter, such as fused experts."
    )
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(r) instead (rank-stabilised LoRA).")
    use_dora: bool = Field(default=False, description="Learn magnitude and direction apart (DoRA).")
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "pissa", "olora"] = Field(
        default=True, description="How the adapter starts, in peft's names; true starts at the base model's outputs."
    )
    modules_to_save: Names | None = Field(
        default=None, description="Modules trained in full and saved beside the adapter."
    )
    start_from: Literal["new", "continue", "merge_first"] | None = Field(
        default=None,
        description="Needed where the model is an adapter (or: from). continue trains it on, new trains another one "
        "beside it, merge_first merges it into its base first.",
    )


class Freeze(Section):
    layers: Layers = Field(
        default=(), description='Decoder layers that stay as they are, from 0: "0-19", "0-3,7" or a list.'
    )
    embeddings: bool = Field(default=False, description="Whether the token embeddings stay as they are.")


class Train(Section):
    learning_rate: Derived[Annotated[float, Field(gt=0, le=10)]] = Field(
        default=LEFT_OUT,
        description="Peak learning rate. Derived, with an adapter and without: sft 2e-4, 2e-5; dpo and kto 5e-5, "
        "1e-6; reward 1e-4, 1e-5; ppo, grpo and rloo 2e-5, 1e-6.",
    )
    num_train_epochs: Derived[Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default=LEFT_OUT, description="Passes over the training rows. Derived: sft 3, else 1."
    )
    max_steps: Count | None = Field(
        default=None, description="Optimizer steps after which training ends, whatever the epochs say."
    )
    per_device_train_batch_size: Count | Literal["auto"] = Field(
        default=8,
        description="Rows in one forward and backward pass on one device; auto: as many as fit into memory, found at "
        "the start, while a step keeps its rows.",
    )
    gradient_accumulation_steps: Derived[Count] = Field(
        default=LEFT_OUT, description="Passes added up for one optimizer step. Derived: from global_batch_size, else 1."
    )
    global_batch_size: Count | None = Field(
        default=None,
        description="Rows in one optimizer step, instead of gradient_accumulation_steps. Derived "
        "with per_device_train_batch_size: auto: 8.",
    )
    optim: Optimizer = Field(default="adamw_torch", description="Optimizer by transformers' name.")
    weight_decay: float = Field(default=0.0, ge=0, le=100, description="Decoupled weight decay.")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        default=None, description="Optimizer steps of linear warm-up."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Share of all steps spent on linear warm-up; excludes warmup_steps, and is 0.03 without it.",
    )
    max_grad_norm: Positive = Field(default=1.0, description="Gradients are scaled down to this norm.")
    activation_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time (or: gradient_checkpointing).",
    )
    sampling: Literal["random", "sequential"] = Field(default="random", description="Order of the rows in each epoch.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="Seed of everything that is random.")
    logging_steps: Count = Field(
        default=10, description="Optimizer steps between two lines of a run that is no terminal."
    )

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch; of `auto`, before it is settled, the least."""
        each = self.per_device_train_batch_size
        return each if isinstance(each, int) else 1


class Eval(Section):
    steps: Count | None = Field(
        default=None, description="Optimizer steps between evaluations; null: at the end of each epoch."
    )
    per_device_eval_batch_size: Count = Field(default=8, description="Rows in one forward pass on one device.")
    metrics: list[Metric] = Field(default=[], description="Metrics on generated answers, besides loss and perplexity.")
    max_new_tokens: Count = Field(default=128, description="Longest generated answer, for the metrics that need one.")
    tasks: list[Text] = Field(
        default=[], description="Tasks, by name or file, on which the model is measured before and after training."
    )
    task_limit: Count | None = Field(default=None, description="Items of each task at most, chosen by its seed.")
    tasks_at: Literal["ends", "evaluations"] = Field(
        default="ends", description="evaluations: the tasks are also measured at each evaluation in between."
    )
    metric_for_best_model: Derived[Text] = Field(
        default=LEFT_OUT,
        description="Metric that decides which checkpoint is best. Derived: eval_loss, of ppo, grpo and rloo "
        "eval_reward.",
    )
    greater_is_better: Derived[bool] = Field(
        default=LEFT_OUT, description="Direction of that metric. Derived: false for loss and perplexity, else true."
    )
    early_stopping_patience: Count | None = Field(
        default=None, description="Evaluations without improvement after which training ends."
    )
    load_best_model_at_end: bool = Field(
        default=False, description="Whether the result is the best checkpoint instead of the last."
    )


class Save(Section):
    steps: Count = Field(default=100, description="Optimizer steps between checkpoints.")
    total_limit: Count = Field(default=2, description="Checkpoints kept; older ones are deleted.")


class Recipe(Section):
    stage: Derived[Literal["sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo"]] = Field(
        default=LEFT_OUT,
        description="What is trained for. Derived: the command, else what objective.loss is for, else sft.",
    )
    model: Model = Field(description="The model to start from.")
    adapter: Adapter = Field(default=Adapter(), description="Which weights are trained.")
    freeze: Freeze | None = Field(
        default=None, description="Parts of the model that stay as they are; only with adapter: none."
    )
    data: Data = Field(description="The rows, and which of their tokens are trained.")
    objective: Objective = Field(default=Objective(), description="What is optimised; sft has nothing to choose.")
    rewards: Annotated[list[Reward], Field(min_length=1)] | None = Field(
        default=None,
        description="What answers are rewarded for, added up; for ppo, grpo and rloo (one reward model: reward_model).",
    )
    rollout: Rollout = Field(default=Rollout(), description="How the policy is asked; for ppo, grpo and rloo.")
    value_model: PathText | None = Field(
        default=None,
        description="What estimates the return in ppo. null: a head on the policy; adapter: a head on an adapter of "
        "its own beside the policy's; or a reward model that a separate value model starts from.",
    )
    limits: Limits = Field(default=Limits(), description="What ends a run that goes wrong; for ppo, grpo and rloo.")
    train: Train = Field(default=Train(), description="How the weights are updated.")
    eval: Eval = Field(default=Eval(), description="How and when held-out rows are measured.")
    gate: Annotated[dict[Text, Condition], Field(min_length=1)] | None = Field(
        default=None, description="Figures that the result must reach, such as eval_loss: '< 1.9'; else exit code 8."
    )
    save: Save = Field(default=Save(), description="When checkpoints are written.")
    distributed: Distributed = Field(
        default=Distributed(), description="How many processes train, and what they share."
    )
    output_dir: PathText = Field(description="Folder that receives all that the run writes.")
    run_name: Text | None = Field(default=None, description="Name of the run in the trackers.")
    report_to: Trackers = Field(default=(), description="Trackers that receive the metrics, besides metrics.jsonl.")
    resume: Checkpoint = Field(
        default="never",
        description="auto: from the newest good checkpoint in output_dir; never; or a checkpoint's path.",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, raw: Any) -> Any:
        return expand(raw)
