"""Completions of a file of prompts, or of one prompt, in batches.

What a row asks, by its keys, the first that it has:
- `messages` (or `conversations`, ShareGPT; or `instruction` with `input`, Alpaca): a conversation; a last assistant
  message is left out and kept as `reference`;
- `prompt`: a list of messages, or a text that becomes the user's turn in the chat template (with `raw`, is continued as
  it stands); its `completion` is kept as `reference`;
- `text`: continued as it stands.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.data import sources
from tunekit.data.formats import FORMATS
from tunekit.data.formats.messages import read_chat
from tunekit.data.formats.tools import read_tools
from tunekit.data.messages import prepare_messages
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Messages, Prompt, Refused, Rejected
from tunekit.data.sources import Row, first_problems
from tunekit.errors import DataError, MemoryExceeded, RecipeError, StorageError
from tunekit.models.generate import all_prompt_ids, complete, seed_sampling
from tunekit.models.serve import context_of, load_for_inference, trained_preparation

log = logging.getLogger("tunekit")

BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and `row`, what is written beside its completion."""

    prompt: Prompt
    row: dict[str, Any]


def run(
    name: str,
    *,
    prompt: str | None,
    input_path: str | None,
    output: str | None,
    raw: bool,
    seed: int | None,
    batch_size: int,
    **sampling: Any,
) -> dict[str, Any]:
    """Writes JSON Lines to `output` or standard output and returns a summary, or returns the one completion.

    `sampling` is `max_new_tokens`, `temperature` and `top_p`. Raises `RecipeError` (what was asked), `DataError` (the
    rows), `StorageError` (the output) and `MemoryExceeded`.
    """
    if (prompt is None) == (input_path is None):
        raise RecipeError("give a prompt: either --prompt TEXT or --input FILE")
    destination = None if output is None else Path(output)
    if destination is not None and destination.exists():
        raise RecipeError(f"--output: {output} exists already", "Choose another name or remove it.")
    rows = [({"prompt": prompt}, "--prompt")] if input_path is None else _read(input_path)
    preparation = trained_preparation(name)
    requests = [prepared(request(row, source, raw), preparation) for row, source in rows]
    model, tokenizer = load_for_inference(name)
    _check_lengths(requests, tokenizer, context_of(model), sampling["max_new_tokens"])
    seed_sampling(seed)
    completed = _completed(model, tokenizer, requests, batch_size, sampling)
    if prompt is not None and destination is None:
        return next(completed)
    started = time.perf_counter()
    ended = 0
    with _opened(destination) as file, _progress(len(requests), destination is not None) as advance:
        for row in completed:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            file.flush()
            ended += row["ended"]
            advance()
    seconds = round(time.perf_counter() - started, 2)
    return {"rows": len(requests), "ended": ended, "seconds": seconds, "output": output}


def _read(path: str) -> list[Row]:
    rows, rejected = [], []
    for item in sources.find(path).rows():
        if isinstance(item, Rejected):
            rejected.append(f"{item.source}: {item.reason}")
        else:
            rows.append(item)
    if rejected:
        count = len(rejected)
        raise DataError(f"{path}: {count} of {count + len(rows)} rows cannot be read:\n{first_problems(rejected)}")
    return rows


def prepared(asked: Request, preparation: dict[str, Any]) -> Request:
    """`asked` with the system prompt and without the reasoning that training gave and took, if it is a conversation."""
    if isinstance(asked.prompt.prompt, str):
        return asked
    try:
        messages = prepare_messages(asked.prompt.prompt, Rendering(**preparation)).messages
    except Refused as refused:
        raise DataError(f"{asked.prompt.source}: {refused.reason}", refused.fix) from refused
    return replace(asked, prompt=replace(asked.prompt, prompt=tuple(messages)))


def request(row: dict[str, Any], source: str, raw: bool) -> Request:
    """What `row` asks; raises `DataError` with its place where that is nothing."""
    try:
        prompt, reference, key = _asked(row, source)
        tools = None if isinstance(prompt, str) else read_tools(row.get("tools"))
    except Refused as error:
        raise DataError(f"{source}: {error.reason}", error.fix) from error
    if isinstance(prompt, tuple) and not prompt:
        raise DataError(f"{source}: there is nothing before the assistant's message, so nothing to answer")
    if raw and isinstance(prompt, tuple):
        raise DataError(f"{source}: --raw continues plain text, and this row is a conversation", "Leave --raw out.")
    if isinstance(prompt, str) and not raw and key != "text":
        prompt = ({"role": "user", "content": prompt},)
    kept = {key: value for key, value in row.items() if key != "completion"}
    if reference:
        kept.setdefault("reference", reference)
    return Request(Prompt(prompt, source, tools), kept)


def _asked(row: dict[str, Any], source: str) -> tuple[str | Messages, Any, str]:
    """Prompt, reference and the key that they come from. Raises `Refused` with the reason where there are none."""
    for key in ("messages", "conversations"):
        if row.get(key) is not None:
            return *_cut(read_chat(row, key)), key
    if row.get("instruction") is not None:
        converted = FORMATS["alpaca"].convert({**row, "output": row.get("output") or "-"}, source)
        return converted.messages[:-1], row.get("output"), "instruction"  # type: ignore[union-attr]
    for key in ("prompt", "text"):
        value = row.get(key)
        if isinstance(value, str) and value:
            return value, row.get("completion"), key
        if key == "prompt" and isinstance(value, list):
            prompt, reference = _cut(read_chat(row, key))
            return prompt, row.get("completion") or reference, key
    accepted = ", ".join(("messages", "conversations", "instruction", "prompt", "text"))
    raise Refused(f"no prompt under one of the keys {accepted}; its keys are {', '.join(row)}")


def _cut(messages: Messages) -> tuple[Messages, Any]:
    """The conversation up to where the assistant is to answer, and the answer that stands there, if any."""
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1].get("content")
    return messages, None


def _check_lengths(
    requests: list[Request], tokenizer: PreTrainedTokenizerBase, context: int | None, max_new_tokens: int
) -> None:
    problems = []
    for each, ids in zip(requests, all_prompt_ids(tokenizer, [each.prompt for each in requests]), strict=True):
        length = len(ids)
        if length == 0:
            problems.append(f"{each.prompt.source}: the prompt has no token")
        elif context is not None and length + max_new_tokens > context:
            problems.append(f"{each.prompt.source}: {length:,} tokens")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(requests)} prompts do not fit the model's context of {context:,} tokens with "
            f"--max-new-tokens {max_new_tokens}:\n{first_problems(problems)}",
            "Lower --max-new-tokens, or shorten these prompts.",
        )


def _completed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[Request],
    batch_size: int,
    sampling: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The rows with `completion` and `ended`, in order; prompts are sorted by length only within a few batches."""
    size = BATCHES_SORTED_TOGETHER * batch_size
    for start in range(0, len(requests), size):
        some = requests[start : start + size]
        prompts = [each.prompt for each in some]
        try:
            answers = sorted(complete(model, tokenizer, prompts, batch_size=batch_size, **sampling))
        except torch.OutOfMemoryError as error:
            raise MemoryExceeded(f"a batch of {batch_size} prompts does not fit", "Lower --batch-size.") from error
        for each, (_, text, ended) in zip(some, answers, strict=True):
            yield {**each.row, "completion": text, "ended": ended}


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is at `path` only once it is whole. Raises `StorageError`."""
    if path is None:
        yield sys.stdout
        return
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("w", encoding="utf-8") as file:
            yield file
        staging.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def _progress(total: int, to_file: bool) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal on which the rows themselves do not appear."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty() or (not to_file and sys.stdout.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
