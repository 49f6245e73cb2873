"""What `tunekit plan` says of memory beside what a run takes: each recipe planned, and run, in processes of their own.

    python tests/bench/plan_memory.py [NAME ...] [--as-is]

Each recipe is planned and then run in one fresh process. The measured figure is the peak resident memory of that
process (VmHWM): two optimizer steps with evaluation, checkpoint and artefact. In the second ratio what it held before
(interpreter, libraries, rows) is taken from both. Models are smollm2-135m-instruct and a random one of 85 million
weights. The C library gives tensors of 1 MiB and more back at once; with `--as-is` it keeps its own bound.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
SMOL, MID = "smollm2-135m-instruct", "MID"
CHAT, SQL, LONG = DATA / "chat.jsonl", DATA / "sql" / "train.jsonl", "LONG"
PERSONA, LABELLED = DATA / "persona" / "train.jsonl", DATA / "persona" / "labelled.jsonl"
SUMS = DATA / "arithmetic" / "train.jsonl"
ONLINE = ["rewards=number_match", "rollout.num_prompts=4", "rollout.max_new_tokens=32"]
PAIRS = ["train.per_device_train_batch_size=16"]
RECIPES: dict[str, tuple[str, str, Path | str, list[str]]] = {
    "sft lora": ("sft", SMOL, SQL, ["adapter=lora"]),
    "sft full": ("sft", SMOL, SQL, []),
    "sft packed": (
        "sft",
        SMOL,
        SQL,
        ["adapter=lora", "data.packing=true", "data.max_length=1024", "train.per_device_train_batch_size=1"],
    ),
    "sft long rows": ("sft", MID, LONG, ["train.per_device_train_batch_size=2"]),
    "sft recomputed": ("sft", SMOL, SQL, ["adapter=lora", "train.activation_checkpointing=true"]),
    "sft 8-bit": ("sft", MID, CHAT, ["train.optim=adamw_8bit"]),
    "sft mid full": ("sft", MID, CHAT, ["train.per_device_train_batch_size=16"]),
    "dpo lora": ("dpo", SMOL, PERSONA, ["adapter=lora", *PAIRS]),
    "dpo full": ("dpo", MID, PERSONA, PAIRS),
    "kto": ("kto", MID, LABELLED, ["adapter=lora", *PAIRS]),
    "reward": ("reward", SMOL, PERSONA, ["adapter=lora", *PAIRS]),
    "grpo": ("grpo", SMOL, SUMS, ["adapter=lora", *ONLINE]),
    "ppo": ("ppo", MID, SUMS, [*ONLINE, "rollout.num_generations=4"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--as-is", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, as_is=arguments.as_is)
        return
    print(
        f"{'recipe':15} {'predicted':>9} {'measured':>9} {'ratio':>6} {'beside the baseline':>19} {'ratio':>6}  peak in"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.names or RECIPES:
            print(compared(name, Path(scratch), as_is=arguments.as_is), flush=True)


def compared(name: str, scratch: Path, *, as_is: bool) -> str:
    found = in_its_own_process(write(name, scratch), as_is=as_is)
    ours, theirs = found["predicted"], found["measured"]
    mib = [value / 2**20 for value in (ours, theirs, ours - found["baseline"], theirs - found["baseline"])]
    return (
        f"{name:15} {mib[0]:9.0f} {mib[1]:9.0f} {mib[0] / mib[1]:6.2f} "
        f"{mib[2]:9.0f}/{mib[3]:<9.0f} {mib[2] / mib[3]:6.2f}  {found['phase']}"
    )


def in_its_own_process(recipe: Path, *, as_is: bool = False) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(recipe), *(["--as-is"] if as_is else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{recipe}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(file: str, *, as_is: bool) -> None:
    from importlib import import_module

    from tunekit.models import memory
    from tunekit.recipe.load import load
    from tunekit.stages import plan

    resolved = load(file)
    predicted = plan.run(resolved, lambda more: load(file, more), gpu="cpu")["memory"]
    stage = import_module(f"tunekit.stages.{resolved.recipe.stage}")
    assert as_is or memory.give_back_what_goes()
    baseline = memory.resident()
    stage.run(resolved)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    found = {"measured": int(status["VmHWM"].split()[0]) * 1024, "baseline": baseline}
    print(json.dumps(found | {"predicted": predicted["peak"], "phase": predicted["peak_phase"]} | predicted))


def write(name: str, scratch: Path) -> Path:
    """The recipe `name` as a file."""
    stage, model, data, settings = RECIPES[name]
    place = scratch / name.replace(" ", "-")
    place.mkdir()
    if data == LONG:
        data = place / "long.jsonl"
        rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ab" * 700}]}] * 20
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return written(place, stage, random_llama(scratch / "middle") if model == MID else model, data, settings)


def written(place: Path, stage: str, model: Path | str, data: Path | str, settings: Sequence[str]) -> Path:
    """A recipe of two optimizer steps, with held-out rows."""
    values = {"stage": stage, "model": str(model), "data.train": str(data), "data.eval_split": "8"}
    values |= {"train.max_steps": "2", "output_dir": str(place / "out")}
    values |= dict(each.split("=", 1) for each in settings)
    file = place / "recipe.yaml"
    lines: dict[str, list[str]] = {}
    for key, value in values.items():
        section, _, inner = key.partition(".")
        lines.setdefault(section, []).append(f"  {inner}: {value}" if inner else value)
    file.write_text(
        "".join(
            f"{section}: {given[0]}\n" if not given[0].startswith(" ") else f"{section}:\n" + "\n".join(given) + "\n"
            for section, given in lines.items()
        )
    )
    return file


def random_llama(folder: Path, width: int = 768, layers: int = 12) -> Path:
    """A random llama with byte tokens, made once: of 85 million weights where nothing else is said."""
    if folder.exists():
        return folder
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from tunekit.models.tiny_random import tokenizer

    set_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": width // 64, "max_position_embeddings": 4096}
    sizes |= {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    LlamaForCausalLM(LlamaConfig(vocab_size=259, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
