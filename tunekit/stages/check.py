"""`tunekit check`: whether a recipe will run, tried on a processor in seconds, before a machine is paid for.

The parts run in order; one that needs a part that failed is not reached. The last trains a tiny random model of the
recipe's architecture on the recipe's own rows with the recipe's own settings, through the code that trains.
"""

import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, set_seed

from tunekit.data import sources
from tunekit.errors import MemoryExceeded, RecipeError, TunekitError
from tunekit.models.load import Location, default_device, resolve_dtype
from tunekit.models.memory import MemoryNeed, memory_need
from tunekit.models.tiny_random import shrunk
from tunekit.objectives.sft import negative_log_likelihood
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.stages.assemble import make_policy, make_training
from tunekit.stages.base import Base, find_base
from tunekit.stages.read import read_rows
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine
from tunekit.train.folder import check_folder
from tunekit.train.step import backward, update

log = logging.getLogger("tunekit")

STEPS = 2
MICRO_BATCHES = 2  # of a step: more would only take longer
TINY_RANK = 8  # some initialisations take no rank above the width of the layer
T = TypeVar("T")


@dataclass
class _Found:
    """What the parts have found so far; None where one has not come to it."""

    load: Callable[[], Resolved]
    recipe: Recipe | None = None
    base: Base | None = None
    rows: Rows | None = None


class _NotReached(Exception):
    """A part that this one needs failed."""


def _need(value: T | None) -> T:
    if value is None:
        raise _NotReached
    return value


def run(load: Callable[[], Resolved]) -> dict[str, Any]:
    """`{"status", "exit_code", "parts": [{"part", "status", "detail", "seconds"}]}`; nothing is left on the disk.

    The exit code is that of the first part that failed.
    """
    found, parts, exit_code = _Found(load), [], 0
    for name, part in PARTS.items():
        started, status, detail = time.perf_counter(), "ok", ""
        try:
            detail = part(found)
        except _NotReached:
            status = "not reached"
        except TunekitError as error:
            status, detail = "failed", str(error)
            exit_code = exit_code or error.exit_code
        seconds = round(time.perf_counter() - started, 2)
        parts.append({"part": name, "status": status, "detail": detail, "seconds": seconds})
    return {"status": "failed" if exit_code else "ok", "exit_code": exit_code, "parts": parts}


def render(report: dict[str, Any]) -> str:
    """The report for people, a line for each part."""
    lines = []
    for part in report["parts"]:
        detail = part["detail"].replace("\n", "\n" + " " * 21)
        lines.append(f"{part['part']:<8} {part['status']:<11} {detail}".rstrip())
    return "\n".join(lines)


def _recipe(found: _Found) -> str:
    recipe = found.load().recipe
    found.recipe = recipe
    check_folder(Path(recipe.output_dir), recipe.resume != "never")
    return f"{recipe.model.name_or_path} to {recipe.output_dir}"


def _files(found: _Found) -> str:
    data = _need(found.recipe).data
    for source in [*data.train, *(data.eval or ())]:
        sources.find(source.path, **source.model_dump(include={"name", "split", "data_files", "revision", "field"}))
    return ", ".join(source.path for source in [*data.train, *(data.eval or ())])


def _model(found: _Found) -> str:
    recipe = _need(found.recipe)
    base = find_base(recipe)
    folder = Path(base.location.path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise RecipeError(f"model: {folder} holds no *.safetensors file", "Copy the weights there, or convert them.")
    found.base = base
    config = AutoConfig.from_pretrained(base.location.path, revision=base.location.revision or "main")
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return f"{config.model_type}" + (f", context {context:,} tokens" if context else "")


def _template(found: _Found) -> str:
    recipe, tokenizer = _need(found.recipe), _need(found.base).tokenizer
    whose = recipe.data.chat_template or "the tokenizer's own"
    template = f"chat template: {whose}" if tokenizer.chat_template else "no chat template (raw text only)"
    return f"{len(tokenizer):,} tokens, {template}"


def _data(found: _Found) -> str:
    found.rows = rows = read_rows(_need(found.recipe), _need(found.base))
    if rows.train is None:
        return f"streaming; the first {len(rows.examples)} rows can be trained on"
    summary = rows.train.summary
    held_out = 0 if rows.held_out is None else rows.held_out.summary.rows
    return (
        f"{summary.rows:,} rows, {summary.tokens:,} tokens, {summary.trained:,} trained ({summary.trained_share:.0%}), "
        f"longest {summary.lengths['max']:,}; {held_out:,} held out, {summary.dropped:,} dropped, "
        f"{summary.answers_cut:,} answers cut"
    )


def _memory(found: _Found) -> str:
    recipe, location, device = _need(found.recipe), _need(found.base).location, default_device()
    lora = recipe.adapter.model_dump(exclude={"type"}) if recipe.adapter.type == "lora" else None
    freeze = recipe.freeze.model_dump() if recipe.freeze else None
    dtype = resolve_dtype(recipe.model.dtype, device)
    need = memory_need(location, dtype=dtype, optim=recipe.train.optim, lora=lora, freeze=freeze, device=device)
    said = (
        f"{need.trained:,} of {need.parameters:,} weights trained; weights, gradients and optimizer take "
        f"{_size(need.total)} of {_size(need.available)} on {device}, activations come on top"
    )
    if need.total > need.available:
        raise MemoryExceeded(said, _smaller(need))
    return said


def _smaller(need: MemoryNeed) -> str:
    if need.trained == need.parameters:
        return "Set adapter: lora: only the adapter then has gradients and optimizer states."
    return "Take a smaller model, or a larger machine: the frozen weights alone take most of it."


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _steps(found: _Found) -> str:
    recipe, base, rows = _need(found.recipe), _need(found.base), _need(found.rows)
    config = AutoConfig.from_pretrained(base.location.path, revision=base.location.revision or "main")
    with tempfile.TemporaryDirectory() as scratch:
        set_seed(recipe.train.seed)
        model = shrunk(config)
        model.save_pretrained(scratch)
        tiny = Base(Location(f"tiny-random/{model.config.model_type}", scratch), base.tokenizer)
        losses = _try(_for_tiny(recipe), tiny, rows, Path(scratch))
    return f"{STEPS} optimizer steps of {tiny.location.name}, loss " + " -> ".join(f"{loss:.4f}" for loss in losses)


def _try(recipe: Recipe, tiny: Base, rows: Rows, folder: Path) -> list[float]:
    engine = Engine()
    policy = make_policy(recipe, tiny, rows, engine)
    unknown = {"revision": None, "sha256": None}
    run = make_training(recipe, rows, policy, negative_log_likelihood, lambda poll: {}, engine, unknown, folder)
    losses = []
    for step in itertools.islice(run.loader.steps(0), STEPS):
        policy.train()
        batches = [policy.batch(rows) for rows in step.micro_batches[:MICRO_BATCHES]]
        result = backward(policy, run.objective, batches, engine)
        losses.append(update(result, list(run.parameters.values()), run.optimizer, run.max_grad_norm).loss)
        run.learning_rate.step()
    return losses


def _for_tiny(recipe: Recipe) -> Recipe:
    """The recipe with what names the size of the real model (layer numbers, a rank) brought down to the tiny one's."""
    adapter, freeze = recipe.adapter, recipe.freeze
    targets = adapter.target_modules
    if isinstance(targets, str) and re.search(r"\d", targets):
        targets = "all-linear"
    adapter = adapter.model_copy(update={"r": min(adapter.r, TINY_RANK), "target_modules": targets})
    if freeze is not None:
        freeze = freeze.model_copy(update={"layers": (0,) if freeze.layers else ()})
    return recipe.model_copy(update={"adapter": adapter, "freeze": freeze})


PARTS: dict[str, Callable[[_Found], str]] = {
    "recipe": _recipe,
    "files": _files,
    "model": _model,
    "template": _template,
    "data": _data,
    "memory": _memory,
    "steps": _steps,
}
