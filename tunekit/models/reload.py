"""`python -m tunekit.models.reload FOLDER LOGITS SERVED DTYPE DEVICE`: what a user does, in a process of its own.

Loads FOLDER with nothing but the public classes of transformers and peft and prints the largest absolute difference of
its logits on the fixed prompts to those stored in LOGITS. Its tokenizer must render the conversations in SERVED to the
ids that stand beside them, as a server would. The base of an adapter is quantised as its passport says.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunekit import offline
from tunekit.models import quantised
from tunekit.models.adapters import AutoPeftModelForCausalLM
from tunekit.models.export import fixed_logits, largest_difference
from tunekit.models.load import Location
from tunekit.models.serve import trained_quantization


def main(folder: str, logits: str, served: str, dtype: str, device: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for example in json.loads(Path(served).read_text(encoding="utf-8")):
        check_rendering(tokenizer, **example)
    adapter = (Path(folder) / "adapter_config.json").is_file()
    auto_class = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    quantization = trained_quantization(Location(folder, folder)) if adapter else "none"
    options = quantised.options(quantization, getattr(torch, dtype), torch.device(device))
    model: Any = auto_class.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    if quantization == "none":
        model.to(device)
    else:
        quantised.same_in_evaluation(model.get_base_model(), folder)
    print(largest_difference(load_file(logits), fixed_logits(model, tokenizer)))


def check_rendering(tokenizer: Any, source: str, messages: list[Any], tools: list[Any] | None, ids: list[int]) -> None:
    """Exits with the difference where the tokenizer's own template does not give the ids that were trained."""
    found = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
    if found != ids:
        at = next((i for i, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), len(ids))
        near = slice(max(0, at - 5), at + 10)
        sys.exit(
            f"{source}: the saved tokenizer renders it differently than it was trained, from token {at}:\n"
            f"  trained: {tokenizer.decode(ids[near])!r}\n  saved:   {tokenizer.decode(found[near])!r}"
        )


if __name__ == "__main__":
    if offline.entered():
        offline.enter()
    main(*sys.argv[1:])
