"""`python -m tunekit.models.reload FOLDER LOGITS DTYPE DEVICE`: what a user does, in a process of its own.

Loads FOLDER with nothing but the public classes of transformers and peft and prints the largest absolute difference of
its logits on the fixed prompts to those stored in LOGITS.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunekit.models.adapters import AutoPeftModelForCausalLM
from tunekit.models.export import fixed_logits, largest_difference


def main(folder: str, logits: str, dtype: str, device: str) -> None:
    adapter = (Path(folder) / "adapter_config.json").is_file()
    auto_class = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model: Any = auto_class.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.to(device)
    print(largest_difference(load_file(logits), fixed_logits(model, AutoTokenizer.from_pretrained(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
