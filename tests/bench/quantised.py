"""LoRA on a base in 4 and 8 bits beside LoRA on the bf16 base: loss curve, peak memory, tokens per CPU second.

    python tests/bench/quantised.py [--data FILE] [--model NAME] [--steps N]

Each side runs in a process of its own with one thread: LoRA of rank 16 on all linear layers from one seed, 4 rows a
step, the same rows in the same order, AdamW at 2e-4. Rates are those of training alone, without its first two steps;
the peak is that of the whole process, loading included. "weights" is what the frozen base keeps in memory. Below stand
the losses of each step, and how far those of a quantised base are from those of the bf16 base; the held-out loss after
the last step is of 16 rows that no side has trained on. Exits with 1 where that, or the mean of the last ten steps, is
further off than the bound that docs/quantised.md states.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import compare, measured

BATCH, WARM_UP, HELD_OUT, LAST = 4, 2, 16, 10
BOUND = {"nf4": 0.15, "int8": 0.03}  # nats a token


def side(quantization: str) -> Any:
    def run(arguments: argparse.Namespace) -> dict[str, float]:
        import torch

        from tunekit.data import formats, sources
        from tunekit.data.render import render_all
        from tunekit.models import adapters
        from tunekit.models.load import load_model, load_tokenizer, locate
        from tunekit.models.policy import Policy
        from tunekit.objectives.sft import SFT
        from tunekit.train.engine import Engine
        from tunekit.train.evaluate import held_out_loss
        from tunekit.train.optim import make_optimizer
        from tunekit.train.step import backward, update

        location, engine = locate(arguments.model), Engine()
        tokenizer = load_tokenizer(location)
        count = BATCH * arguments.steps + HELD_OUT
        rows = itertools.islice(formats.convert(sources.find(arguments.data).rows()), count)
        tokens = [row for made in render_all(list(rows), tokenizer) for row in made]
        held_out, tokens = tokens[:HELD_OUT], tokens[HELD_OUT:]
        base = load_model(location, dtype=torch.bfloat16, device=engine.device, quantization=quantization)
        kept = sum(weight.numel() * weight.element_size() for weight in base.parameters())
        torch.manual_seed(0)
        model = adapters.add_lora(base, r=16, alpha=32, dropout=0.0, target_modules="all-linear")
        policy = Policy(model, torch.bfloat16, tokenizer.pad_token_id)
        policy.prove(tokens[:2])
        before = held_out_loss(policy, SFT, held_out, BATCH)["eval_loss"]
        parameters = adapters.trained_parameters(policy)
        optimizer = make_optimizer("adamw_torch", parameters, lr=2e-4, weight_decay=0.0)
        losses, start, trained = [], 0.0, 0
        policy.train()
        for step in range(arguments.steps):
            if step == WARM_UP:
                start, trained = time.process_time(), 0
            batch = policy.batch(tokens[step * BATCH : (step + 1) * BATCH])
            result = backward(policy, SFT, [batch], engine)
            update(result, list(parameters.values()), optimizer, 1.0)
            losses.append(result.loss)
            trained += batch.num_tokens
        figures = measured(start, trained, weights_mb=kept / 1e6, before=before)
        figures["after"] = held_out_loss(policy, SFT, held_out, BATCH)["eval_loss"]
        (Path(arguments.losses) / f"{arguments.side}.json").write_text(json.dumps(losses))
        return figures

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/data/sql/train.jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--losses", help=argparse.SUPPRESS)
    with tempfile.TemporaryDirectory() as folder:
        if "--side" not in sys.argv:
            sys.argv += ["--losses", folder]
        sides = {"bf16": side("none"), "nf4": side("4bit"), "int8": side("8bit")}
        results = compare(parser, sides, "tokens", [("nf4", "bf16"), ("int8", "bf16")])
        if not results:
            return 0
        curves = {name: json.loads((Path(folder) / f"{name}.json").read_text()) for name in sides}
    for step, losses in enumerate(zip(*curves.values(), strict=True), 1):
        print(f"step {step:3}   " + "   ".join(f"{name} {loss:.4f}" for name, loss in zip(curves, losses, strict=True)))
    good = True
    for name, bound in BOUND.items():
        last = abs(sum(curves[name][-LAST:]) - sum(curves["bf16"][-LAST:])) / LAST
        after = abs(results[name]["after"] - results["bf16"]["after"])
        print(f"{name}: last {LAST} steps {last:.4f}, held-out {after:.4f} from bf16 (bound {bound})")
        good = good and last < bound and after < bound
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
