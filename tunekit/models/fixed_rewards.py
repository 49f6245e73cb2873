"""The rewards of eight fixed pairs, by which a reward model that was saved proves that it is the one that was trained.

`python -m tunekit.models.fixed_rewards FOLDER REWARDS DTYPE DEVICE` loads FOLDER with nothing but the public classes of
transformers, in a process of its own, and prints the largest difference to the rewards stored in REWARDS: of single
texts, and of batches through `pipeline("text-classification")`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tunekit import offline
from tunekit.models.fresh import in_fresh_process

PAIRS = (
    ("What is the capital of France?", "Paris.", "I do not care."),
    ("Say hello to the class.", "Hello everyone, welcome!", "Go away."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes.", "Eggs are a kind of fish."),
    ("What is 7 times 6?", "42", "It is 41, or maybe 50, who knows, numbers are hard and I would rather not say."),
    ("Is the earth flat?", "No, it is close to a sphere.", "Yes."),
    ("Name a colour.", "Blue", "Seventeen"),
    ("Summarise: the meeting moved to Monday.", "The meeting is on Monday now.", "Meetings, meetings, meetings."),
    ("Translate to German: good morning", "Guten Morgen", "Bonjour"),
)
TEXTS = [f"{prompt}\n{answer}" for prompt, *answers in PAIRS for answer in answers]


@torch.no_grad()
def fixed_rewards(model: Any, tokenizer: Any) -> Tensor:
    """`(16,)` in fp32, one text a forward pass, chosen and rejected in turn."""
    model.eval()
    inputs = (tokenizer(text, return_tensors="pt")["input_ids"].to(model.device) for text in TEXTS)
    return torch.stack([model(ids).logits[0, 0].float().cpu() for ids in inputs])


def verify(folder: Path, rewards: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Differences of a fresh process's rewards to `rewards`: of single texts, and through a pipeline in batches."""
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "rewards.safetensors"
        save_file({"rewards": rewards}, expected)
        arguments = [str(folder), str(expected), str(dtype).removeprefix("torch."), str(device)]
        single, batched = in_fresh_process("tunekit.models.fixed_rewards", arguments, folder).split()
    return float(single), float(batched)


def main(folder: str, rewards: str, dtype: str, device: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
    expected = load_file(rewards)["rewards"]
    single = (fixed_rewards(model, tokenizer) - expected).abs().max()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device)
    scores = torch.tensor([each["score"] for each in classify(TEXTS, batch_size=4)])
    print(float(single), float((scores - expected).abs().max()))


if __name__ == "__main__":
    if offline.entered():
        offline.enter()
    main(*sys.argv[1:])
