"""Completions of prompts by transformers' `generate`: in batches, or one that is streamed as it comes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.data.pairs import render_prompts
from tunekit.data.rows import Prompt, Rejected
from tunekit.errors import RecipeError


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a raw text, or of a conversation up to where the assistant answers, as in training.

    Raises `RecipeError` where there is no template or it refuses the conversation (a system message, for example).
    """
    return all_prompt_ids(tokenizer, [prompt])[0]


def all_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """`prompt_ids` of each of the prompts; many together take little longer than one."""
    if tokenizer.chat_template is None and not all(isinstance(each.prompt, str) for each in prompts):
        raise RecipeError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so it takes no conversations",
            "Take a chat model, or continue plain text: tunekit generate MODEL --raw --prompt TEXT",
        )
    ids = []
    for rendered in render_prompts(prompts, tokenizer):
        if isinstance(rendered, Rejected):
            raise RecipeError(f"{rendered.source}: {rendered.reason}")
        ids.append(rendered.ids.tolist())
    return ids


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, str, bool]]:
    """Yields (number of the prompt, its completion, whether the model ended it itself), in order of prompt length.

    Temperature 0 is greedy; a completion ends before the first of the texts `stop`. Prompts of similar length share a
    batch, so that little of it is padding; `poll` is called before each batch. The model is left in evaluation mode.
    """
    ids = all_prompt_ids(tokenizer, prompts)
    options = sampling_options(temperature, top_p)
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    model.eval()
    for start in range(0, len(order), batch_size):
        poll()
        chosen = order[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        output = model.generate(  # type: ignore[operator]
            **inputs.to(model.device), max_new_tokens=max_new_tokens, **options
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        for i, row in zip(chosen, new, strict=True):
            whole = _text(tokenizer, row)
            text = whole[: min((at for each in stop if (at := whole.find(each)) >= 0), default=len(whole))]
            ended = text != whole or bool(torch.isin(row, _end_ids(model)).any())
            yield i, text.strip(), ended


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion: `ended` by the model itself, or `interrupted` by Ctrl-C (`text` is then what there was)."""

    text: str
    num_tokens: int
    seconds: float
    ended: bool
    interrupted: bool


@torch.no_grad()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    write: Callable[[str], None],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Answer:
    """Continues `ids`, handing the text to `write` piece by piece; the pieces together are the text of the answer."""
    inputs = torch.tensor([ids], device=model.device)
    pieces = _Pieces(tokenizer, write)
    interrupted = False
    started = time.perf_counter()
    try:
        model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            streamer=pieces,
            max_new_tokens=max_new_tokens,
            **sampling_options(temperature, top_p),
        )
    except KeyboardInterrupt:
        interrupted = True
        pieces.end()
    seconds = time.perf_counter() - started
    text = _text(tokenizer, pieces.ids).strip()
    ended = pieces.ids[-1:] != [] and bool(torch.isin(torch.tensor(pieces.ids[-1]), _end_ids(model).cpu()))
    return Answer(text, len(pieces.ids), seconds, ended, interrupted)


@dataclass
class _Pieces:
    """A streamer for `generate`: text goes on as soon as its characters are whole, without white space around it.

    Decoding two windows that both begin at `start` keeps the spaces that tokenizers drop at the beginning of a text,
    and costs the same at every length (after Hugging Face text-generation-inference, `Model.decode_token`).
    """

    tokenizer: PreTrainedTokenizerBase
    write: Callable[[str], None]
    ids: list[int] = field(default_factory=list)
    start: int = 0
    written: int = 0
    white_space: str = ""
    seen_prompt: bool = False
    empty: bool = True

    def put(self, value: Tensor) -> None:
        if not self.seen_prompt:  # `generate` hands over the prompt first
            self.seen_prompt = True
            return
        self.ids += value.tolist()
        text = self._pending()
        if text and not text.endswith("\ufffd"):  # a character of several tokens is not whole yet
            self._write(text)

    def end(self) -> None:
        self._write(self._pending())

    def _pending(self) -> str:
        before = _text(self.tokenizer, self.ids[self.start : self.written])
        return _text(self.tokenizer, self.ids[self.start :])[len(before) :]

    def _write(self, text: str) -> None:
        self.start, self.written = self.written, len(self.ids)
        text = self.white_space + text
        if self.empty:
            text = text.lstrip()
        body = text.rstrip()
        self.white_space = text[len(body) :]
        if body:
            self.empty = False
            self.write(body)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int] | Tensor) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def seed_sampling(seed: int | None) -> None:
    """Makes what is sampled repeatable, or with None different each time."""
    if seed is None:
        torch.seed()  # torch begins with the same state in every process
    else:
        torch.manual_seed(seed)


def sampling_options(temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, else the plain softmax cut to the nucleus `top_p`.

    A process waits for no other one, which may not generate at all.
    """
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "synced_gpus": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "synced_gpus": False}


def _end_ids(model: PreTrainedModel) -> Tensor:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = []
    return torch.tensor(ends if isinstance(ends, list) else [ends], dtype=torch.long, device=model.device)
