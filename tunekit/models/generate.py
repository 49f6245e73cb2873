"""Completions of prompts by transformers' `generate`, in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = tuple[dict[str, Any], ...]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Token ids of a raw text, or of a conversation up to where the assistant answers (the tokenizer's own template)."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]  # type: ignore[return-value]
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, str, bool]]:
    """Yields (number of the prompt, its completion, whether the model ended it itself), in order of prompt length.

    Temperature 0 is greedy. Prompts of similar length share a batch, so that little of it is padding; `poll` is called
    before each batch.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        poll()
        chosen = order[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **inputs.to(model.device), max_new_tokens=max_new_tokens, **sampling_options(temperature, top_p)
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        for i, row in zip(chosen, new, strict=True):
            ended = bool(torch.isin(row, _end_ids(model)).any())
            yield i, tokenizer.decode(row, skip_special_tokens=True).strip(), ended
    model.train(training)


def sampling_options(temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, else the plain softmax cut to the nucleus `top_p`."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _end_ids(model: PreTrainedModel) -> torch.Tensor:
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    return torch.tensor(ends if isinstance(ends, list) else [ends], device=model.device)
