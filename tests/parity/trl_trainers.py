"""TRL's trainers of preferences on the token ids of our examples, and what they make of one batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from preference_steps import examples_of, labelled_rows
from tiny import gradients, plain_model
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tunekit.data.examples import Examples
from tunekit.data.rows import Labelled, Tokens
from tunekit.models.load import load_tokenizer, locate

STEPS, BATCH, RATE, WARMUP, DECAY, CLIP = 20, 4, 1e-3, 3, 0.1, 1.0
KINDS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "reward": (RewardTrainer, RewardConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
}


def ids_of(answer: Tokens) -> list[int]:
    """Up to the last trained token: what the template writes after the end of the answer has no part in the loss."""
    return answer.ids[: np.flatnonzero(answer.trained)[-1] + 1].tolist()


def rows_of(kind: str, examples: Examples) -> Dataset:
    """The examples as the texts that they are the tokens of; a reward model reads all tokens, which TRL takes too."""
    decode = load_tokenizer(locate("tiny-random/llama")).decode
    rows: list[dict[str, Any]] = []
    for each in examples:
        begin = int(each.answers[0].trained.argmax())
        prompt, *answers = each.answers[0].ids[:begin], *(ids_of(answer)[begin:] for answer in each.answers)
        if isinstance(each, Labelled):
            rows.append({"prompt": decode(prompt), "completion": decode(answers[0]), "label": each.label})
        elif kind == "reward":
            names = ("chosen_ids", "rejected_ids")
            rows.append({name: answer.ids.tolist() for name, answer in zip(names, each.answers, strict=True)})
            rows[-1]["margin"] = each.margin
        else:
            rows.append({"prompt": decode(prompt), "chosen": decode(answers[0]), "rejected": decode(answers[1])})
    return Dataset.from_list(rows)


def trainer(kind: str, model: nn.Module, folder: Path, examples: Examples, **settings: Any) -> Any:
    """TRL's trainer, all examples one batch; `settings` of its config, `ref_model` and `peft_config` of its own."""
    made, config = KINDS[kind]
    own = {key: settings.pop(key) for key in ("ref_model", "peft_config") if key in settings}
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "per_device_train_batch_size": len(examples),
        "max_steps": STEPS,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "max_length": 1024,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return made(
        model,
        args=config(**options | settings),
        train_dataset=rows_of(kind, examples),
        processing_class=load_tokenizer(locate("tiny-random/llama")),
        **own,
    )


def partners_in_batches_of(size: int, count: int) -> NDArray[np.int64]:
    """TRL takes a row's mismatched answer from the row before it in its batch, of the first from the last."""
    numbers = np.arange(count)
    return numbers // size * size + (numbers - 1) % size


def labelled_examples(count: int, batch_size: int) -> Examples:
    examples = examples_of(labelled_rows(count))
    examples._partners = partners_in_batches_of(batch_size, count)
    return examples


def first_batch(made: Any) -> dict[str, Tensor]:
    return next(iter(made.get_train_dataloader()))


def their_step(made: Any, loss_of: Callable[[Any, Any], Tensor] | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first batch."""
    model = made.model.train()
    loss = (loss_of or made.compute_loss)(model, first_batch(made))
    loss.backward()
    return loss.item(), gradients(model)


def watched_by(made: Any) -> dict[str, float]:
    """What the trainer noted of the first batch."""
    noted = made._metrics if hasattr(made, "_metrics") else made._stored_metrics
    return {name: values[-1] for name, values in noted["train"].items()}


def dpo_trainer(model: nn.Module, folder: Path, examples: Examples, **settings: Any) -> Any:
    """Its reference is the model as it was loaded, if no other is given."""
    return trainer("dpo", model, folder, examples, **{"ref_model": plain_model("llama")} | settings)


class Caught(TrainerCallback):
    """The gradient of each step, before the optimizer has it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.gradients = gradients(given["model"])
