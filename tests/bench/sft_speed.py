"""tunekit's SFT beside TRL's on the same rows: real tokens per CPU second of one thread, and peak memory.

    python tests/bench/sft_speed.py [--data FILE] [--model NAME] [--steps N]

Each side runs in a process of its own with one thread, LoRA of rank 16 on all linear layers, 4 rows a step, the same
rows in the same order, a bf16 base and no activation checkpointing. TRL is given its best settings on a processor:
`bf16` autocast off and on are both tried and the faster one counts. The first two steps are not counted. Tokens are
those of the rows, without padding. Beside the figures stands the limit: the matrix products a step must do (forward and
the gradient of the activations through the frozen base, the head at trained positions alone), over what this machine's
bf16 product of a layer's size reaches.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

WARM_UP = 2
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/data/sql/train.jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", choices=["tunekit", "trl", "trl-autocast"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        run = run_tunekit if arguments.side == "tunekit" else run_trl
        print(json.dumps(run(arguments)))
        return
    results = {side: in_process_of_its_own(side) for side in ("tunekit", "trl", "trl-autocast")}
    for side, result in results.items():
        figures = f"{result['rate']:6.0f} tokens/CPU s   {result['peak_gb']:.2f} GB peak   loss {result['loss']:.4f}"
        print(f"{side:14} {figures}")
    best = max(results["trl"]["rate"], results["trl-autocast"]["rate"])
    ours = results["tunekit"]
    print(f"ratio to TRL   {ours['rate'] / best:6.2f}")
    share = 100 * ours["rate"] / ours["limit"]
    print(f"limit          {ours['limit']:6.0f} tokens/CPU s: tunekit reaches {share:.0f} %")


def in_process_of_its_own(side: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--side", side]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def read(arguments: argparse.Namespace) -> tuple[Any, Any, list[Any], list[Any]]:
    """Where the model lies, its tokenizer, the conversations of the benchmark and their tokens."""
    from tunekit.data import formats, sources
    from tunekit.data.render import render_all
    from tunekit.models.load import load_tokenizer, locate

    location = locate(arguments.model)
    tokenizer = load_tokenizer(location)
    count = BATCH * (arguments.steps + WARM_UP)
    rows = list(itertools.islice(formats.convert(sources.find(arguments.data).rows()), count))
    return location, tokenizer, rows, [token_row for made in render_all(rows, tokenizer) for token_row in made]


def measured(start: float, tokens: int, loss: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"rate": tokens / (time.process_time() - start), "peak_gb": peak, "loss": loss}


def run_tunekit(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    from tunekit.models import adapters
    from tunekit.models.load import load_model
    from tunekit.models.policy import Policy
    from tunekit.objectives.sft import SFT
    from tunekit.train.engine import Engine
    from tunekit.train.optim import make_optimizer
    from tunekit.train.step import backward, update

    location, tokenizer, _, tokens = read(arguments)
    engine = Engine()
    torch.manual_seed(0)
    base = load_model(location, dtype=torch.bfloat16, device=engine.device)
    model = adapters.add_lora(base, r=16, alpha=32, dropout=0.0, target_modules="all-linear")
    policy = Policy(model, torch.bfloat16, tokenizer.pad_token_id)
    policy.prove(tokens[:2])
    policy.train()
    parameters = adapters.trained_parameters(policy)
    optimizer = make_optimizer("adamw_torch", parameters, lr=2e-4, weight_decay=0.0)
    for step in range(arguments.steps + WARM_UP):
        if step == WARM_UP:
            start = time.process_time()
        rows = tokens[step * BATCH : (step + 1) * BATCH]
        result = backward(policy, SFT, [policy.batch(rows)], engine)
        update(result, list(parameters.values()), optimizer, 1.0)
    counted = tokens[BATCH * WARM_UP :]
    figures = measured(start, sum(len(row.ids) for row in counted), result.loss)
    return {**figures, "limit": limit(policy, counted)}


def limit(policy: Any, rows: list[Any]) -> float:
    """Tokens a CPU second if nothing but the necessary matrix products were done, each at the measured speed."""
    import torch

    causal = policy.causal
    head = causal.get_output_embeddings().weight.numel()
    linear = sum(m.weight.numel() for m in causal.base_model.modules() if isinstance(m, torch.nn.Linear))
    tokens = sum(len(row.ids) for row in rows)
    trained = sum(int(row.trained.sum()) for row in rows)
    products = 4 * (linear * tokens + head * trained)  # 2 forward, 2 for the gradient of the input
    width, inner = causal.config.hidden_size, causal.config.intermediate_size
    a, b = torch.randn(tokens // 10, width).bfloat16(), torch.randn(inner, width).bfloat16()
    torch.nn.functional.linear(a, b)
    start = time.process_time()
    for _ in range(50):
        torch.nn.functional.linear(a, b)
    speed = 50 * 2 * a.numel() * inner / (time.process_time() - start)
    return tokens / (products / speed)


def run_trl(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    location, tokenizer, rows, tokens = read(arguments)
    pairs = [{"prompt": list(row.messages[:-1]), "completion": [row.messages[-1]]} for row in rows]
    started = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                started.append(time.process_time())

    config = SFTConfig(
        output_dir="/tmp/sft_speed",
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        bf16=arguments.side == "trl-autocast",
        gradient_checkpointing=False,
        use_cpu=True,
        max_length=None,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(location.path, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return measured(started[0], sum(len(row.ids) for row in tokens[BATCH * WARM_UP :]), losses[-1])


if __name__ == "__main__":
    main()
