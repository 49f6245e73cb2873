"""tunekit's DPO beside TRL's on the same pairs: pairs per CPU second of one thread, and peak memory.

    python tests/bench/dpo_speed.py --data FILE [--model NAME] [--steps N] [--max-length N]

Each side runs in a process of its own with one thread: LoRA of rank 16 on all linear layers, 2 pairs a step, the same
pairs in the same order, bf16 weights, each without activation checkpointing (its fastest) and with it (its smallest).
TRL computes the reference in each step, tunekit before the first one, and that time is counted. The first step of each
is not counted.
"""

import argparse
import time
from typing import Any

from sides import compare, measured

WARM_UP, BATCH = 1, 2
SIDES = ("tunekit", "tunekit-checkpointing", "trl", "trl-checkpointing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    sides = {name: run_tunekit if name.startswith("tunekit") else run_trl for name in SIDES}
    compare(parser, sides, "pairs", [("tunekit", "trl"), ("tunekit-checkpointing", "trl-checkpointing")])


def read(arguments: argparse.Namespace) -> tuple[Any, Any, list[Any], list[Any]]:
    """Where the model lies, its tokenizer, the rows of the benchmark and their tokens, cut as TRL cuts them."""
    from dataclasses import replace

    from tunekit.data import formats, sources
    from tunekit.data.pairs import render_pairs
    from tunekit.data.rows import Pair
    from tunekit.models.load import load_tokenizer, locate

    location = locate(arguments.model)
    tokenizer = load_tokenizer(location)
    limit = arguments.max_length
    rows, pairs = [], []
    for row in formats.convert(sources.find(arguments.data).rows()):
        made = render_pairs([row], tokenizer)[0]
        if isinstance(made, Pair) and made.prompt_length < limit // 2:
            cut = [replace(each, ids=each.ids[:limit], trained=each.trained[:limit]) for each in made.answers]
            rows.append(row)
            pairs.append(replace(made, chosen=cut[0], rejected=cut[1]))
        if len(rows) == BATCH * (arguments.steps + WARM_UP):
            break
    return location, tokenizer, rows, pairs


def run_tunekit(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    from tunekit.models import adapters
    from tunekit.models.load import load_model
    from tunekit.models.policy import Policy
    from tunekit.models.reference import with_reference
    from tunekit.objectives.pair_losses import PAIR_LOSSES
    from tunekit.objectives.preference import Weighted, preference
    from tunekit.train.engine import Engine
    from tunekit.train.optim import make_optimizer
    from tunekit.train.step import backward, update

    location, tokenizer, _, pairs = read(arguments)
    engine = Engine()
    torch.manual_seed(0)
    base = load_model(location, dtype=torch.bfloat16, device=engine.device)
    model = adapters.add_lora(base, r=16, alpha=32, dropout=0.0, target_modules="all-linear")
    policy = Policy(model, torch.bfloat16, tokenizer.pad_token_id)
    policy.prove([pair.chosen for pair in pairs[:2]], pairs=True)
    objective = preference([Weighted(PAIR_LOSSES["sigmoid"], 1.0, {"beta": 0.1, "label_smoothing": 0.0})], 0.0)
    if arguments.side == "tunekit-checkpointing":
        policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = adapters.trained_parameters(policy)
    optimizer = make_optimizer("adamw_torch", parameters, lr=1e-5, weight_decay=0.0)
    for step, rows in enumerate(_batched(pairs)):
        if step == WARM_UP:
            start = time.process_time()
        with torch.no_grad(), policy.model.disable_adapter():
            batch = with_reference(policy, policy.batch(list(rows)))
        policy.train()
        result = backward(policy, objective, [batch], engine)
        update(result, list(parameters.values()), optimizer, 1.0)
    return measured(start, BATCH * arguments.steps, loss=result.loss)


def _batched(pairs: list[Any]) -> list[list[Any]]:
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


def run_trl(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    location, tokenizer, rows, _ = read(arguments)
    data = [{key: list(getattr(row, key)) for key in ("prompt", "chosen", "rejected")} for row in rows]
    started = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                started.append(time.process_time())

    config = DPOConfig(
        output_dir=arguments.scratch,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=arguments.side == "trl-checkpointing",
        use_cpu=True,
        max_length=arguments.max_length,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(location.path, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return measured(started[0], BATCH * arguments.steps, loss=losses[-1])


if __name__ == "__main__":
    main()
