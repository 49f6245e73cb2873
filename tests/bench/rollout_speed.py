"""The built-in rollouts beside transformers' `generate`, and a GRPO step beside TRL's GRPOTrainer, on the same prompts.

    python tests/bench/rollout_speed.py [--data FILE] [--model NAME] [--steps N]

Each side runs in a process of its own with one thread; tokens are those of the answers. Rollouts: 16 prompts, one
answer of 128 tokens each, with the bf16 model alone; groups: 4 answers to each of 8 prompts, with a LoRA adapter, each
until it ends or has 128 tokens. Steps: 2 prompts x 8 answers of up to 64 tokens, LoRA of rank 16
on all linear layers, bf16 weights, no reference, one update on each rollout; the first step is not counted. TRL runs
without activation checkpointing, its fastest.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sides import compare, measured

PROMPTS, LENGTH = 16, 128
GROUPS, EACH = 8, 4
ASKED, ANSWERS, LONGEST = 2, 8, 64
WARM_UP = 1
EXAMPLES = Path(__file__).parents[2] / "examples" / "data" / "arithmetic" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(EXAMPLES), help="JSONL of prompts, or SVAMP.json")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=3)
    sides = {"rollout": rollout, "generate": generate, "rollout-groups": rollout, "generate-groups": generate}
    pairs = [("rollout", "generate"), ("rollout-groups", "generate-groups"), ("grpo", "trl")]
    compare(parser, {**sides, "grpo": grpo, "trl": trl}, "tokens", pairs)


def questions(arguments: argparse.Namespace, count: int) -> list[list[dict[str, str]]]:
    """Conversations of one question."""
    text = Path(arguments.data).read_text(encoding="utf-8")
    if arguments.data.endswith("SVAMP.json"):
        asked = [f"{row['Body']} {row['Question']}" for row in json.loads(text)]
        return [[{"role": "user", "content": each}] for each in asked[:count]]
    return [json.loads(line)["prompt"] for line in text.splitlines()[:count]]


def loaded(arguments: argparse.Namespace, adapter: bool) -> tuple[Any, Any, Any]:
    """The policy, its tokenizer, and where it lies."""
    import torch

    from tunekit.models import adapters
    from tunekit.models.actor import Actor
    from tunekit.models.load import load_model, load_tokenizer, locate

    location = locate(arguments.model)
    tokenizer = load_tokenizer(location)
    torch.manual_seed(0)
    model = load_model(location, dtype=torch.bfloat16, device=torch.device("cpu"))
    if adapter:
        model = adapters.add_lora(model, r=16, alpha=32, dropout=0.0, target_modules="all-linear")
    actor = Actor(model, torch.bfloat16, tokenizer.pad_token_id)
    actor.act(temperature=1.0)
    return actor, tokenizer, location


def rollout(arguments: argparse.Namespace) -> dict[str, float]:
    from tunekit.data.rows import Prompt
    from tunekit.models.generate import all_prompt_ids
    from tunekit.rollout.builtin import Builtin
    from tunekit.rollout.samples import Sampling

    grouped = arguments.side.endswith("groups")
    actor, tokenizer, _ = loaded(arguments, adapter=grouped)
    count, answers = (GROUPS, EACH) if grouped else (PROMPTS, 1)
    ids = all_prompt_ids(tokenizer, [Prompt(tuple(each), "") for each in questions(arguments, count)])
    sampler = Builtin(count * answers)
    sampler.sync(actor, 0)
    sampler.sample(ids, 1, Sampling(8), 0)
    ends = frozenset({tokenizer.eos_token_id} if grouped else ())
    start = time.process_time()
    found = sampler.sample(ids, answers, Sampling(LENGTH, ends=ends), 1)
    return measured(start, sum(len(each.ids) for answers in found for each in answers))


def generate(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    grouped = arguments.side.endswith("groups")
    actor, tokenizer, _ = loaded(arguments, adapter=grouped)
    tokenizer.padding_side = "left"
    asked = [each for each in questions(arguments, GROUPS) for _ in range(EACH)]
    inputs = tokenizer.apply_chat_template(
        asked if grouped else questions(arguments, PROMPTS),
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": tokenizer.pad_token_id}
    actor.causal.eval()
    with torch.no_grad():
        actor.causal.generate(**inputs, min_new_tokens=8, max_new_tokens=8, **options)
        start = time.process_time()
        least = 1 if grouped else LENGTH
        output = actor.causal.generate(**inputs, min_new_tokens=least, max_new_tokens=LENGTH, **options)
    new = output[:, inputs["input_ids"].shape[1] :]
    # Up to the token that ends an answer, that one included: what comes after is padding.
    ended = ((new == tokenizer.eos_token_id).cumsum(1) - (new == tokenizer.eos_token_id).int()) > 0
    return measured(start, int((~ended).sum()))


def length_reward(text: str) -> float:
    return -len(text) / 100


def grpo(arguments: argparse.Namespace) -> dict[str, float]:
    import numpy as np
    import torch

    from tunekit.data.rows import Prompt
    from tunekit.models import adapters
    from tunekit.models.generate import all_prompt_ids
    from tunekit.objectives import policy_gradient
    from tunekit.rollout.advantages import Grouped
    from tunekit.rollout.builtin import Builtin
    from tunekit.rollout.collect import Asked, response, sampled_row
    from tunekit.rollout.samples import Sampling
    from tunekit.train.engine import Engine
    from tunekit.train.optim import make_optimizer
    from tunekit.train.step import backward, update

    actor, tokenizer, _ = loaded(arguments, adapter=True)
    actor.share_prompts = True
    prompts = [Prompt(tuple(each), "") for each in questions(arguments, ASKED * (arguments.steps + WARM_UP))]
    asked = [
        Asked(prompt, np.array(ids, np.int32))
        for prompt, ids in zip(prompts, all_prompt_ids(tokenizer, prompts), strict=True)
    ]
    objective = policy_gradient.grpo("dapo", beta=0.0, epsilon=0.2, epsilon_high=None, max_new_tokens=LONGEST)
    parameters = adapters.trained_parameters(actor)
    optimizer = make_optimizer("adamw_torch", parameters, lr=1e-6, weight_decay=0.0)
    engine, method, sampler = Engine(), Grouped("group", by_tokens=True), Builtin(ASKED * ANSWERS)
    sampling = Sampling(LONGEST, ends=frozenset({tokenizer.eos_token_id}))
    tokens = 0
    for step in range(arguments.steps + WARM_UP):
        if step == WARM_UP:
            start, tokens = time.process_time(), 0
        chosen = asked[step * ASKED : (step + 1) * ASKED]
        sampler.sync(actor, step)
        found = sampler.sample([each.ids.tolist() for each in chosen], ANSWERS, sampling, step)
        rows, rewards = [], []
        for group, (each, answers) in enumerate(zip(chosen, found, strict=True)):
            rows += [sampled_row(each, answer, group) for answer in answers]
            rewards.append([length_reward(response(tokenizer, each, answer).text) for answer in answers])
            tokens += sum(len(answer.ids) for answer in answers)
        rows, _ = method.assign(rows, torch.tensor(rewards))
        actor.train()
        batches = [actor.batch(rows[i : i + ANSWERS]) for i in range(0, len(rows), ANSWERS)]
        update(backward(actor, objective, batches, engine), list(parameters.values()), optimizer, 1.0)
    return measured(start, tokens, seconds_a_step=(time.process_time() - start) / arguments.steps)


def trl(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from tunekit.models.load import load_tokenizer, locate

    location = locate(arguments.model)
    started: list[float] = []
    lengths: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        if started:
            lengths.extend(map(len, completion_ids))
        return [length_reward(each[0]["content"]) for each in completions]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                started.append(time.process_time())

    config = GRPOConfig(
        output_dir=arguments.scratch,
        per_device_train_batch_size=ANSWERS,
        gradient_accumulation_steps=ASKED,
        num_generations=ANSWERS,
        max_completion_length=LONGEST,
        max_steps=arguments.steps + WARM_UP,
        learning_rate=1e-6,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    data = [{"prompt": each} for each in questions(arguments, ASKED * (arguments.steps + WARM_UP))]
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(location.path, dtype=torch.bfloat16),
        reward,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(location),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = (time.process_time() - started[0]) / arguments.steps
    return measured(started[0], sum(lengths), seconds_a_step=seconds)


if __name__ == "__main__":
    main()
