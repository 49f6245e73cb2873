"""`tunekit check`: whether a recipe will run, tried on a processor in seconds, before a machine is paid for.

The parts run in order; one that needs a part that failed is not reached. The last trains a tiny random model of the
recipe's architecture on the recipe's own rows with the recipe's own settings, through the code that trains.
"""

import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import set_seed

from tunekit.data.rows import Example
from tunekit.errors import DataError, MemoryExceeded, TunekitError
from tunekit.models import memory
from tunekit.models.load import Location, check_weights, default_device, load_config
from tunekit.models.reference import with_reference
from tunekit.models.tiny_random import shrunk
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.stages.assemble import make_training
from tunekit.stages.base import Base, find_base
from tunekit.stages.batch_size import MARGIN, choose_batch, is_auto, readable, with_batch
from tunekit.stages.plan import STAGES
from tunekit.stages.plan_need import estimate
from tunekit.stages.read import read_rows
from tunekit.stages.rows import Rows, find_source
from tunekit.stages.tasks import find as find_tasks
from tunekit.train.engine import Engine
from tunekit.train.folder import check_folder
from tunekit.train.step import backward, update

log = logging.getLogger("tunekit")

STEPS = 2
STEP_TOKENS = 8192  # of each step, or its first row: more would only take longer
TINY_ANSWER = 8  # tokens
TINY_RANK = 8  # some initialisations take no rank above the width of the layer
T = TypeVar("T")


@dataclass
class _Found:
    """What the parts have found so far; None where one has not come to it."""

    load: Callable[[], Resolved]
    asked: Recipe | None = None
    recipe: Recipe | None = None  # with what was chosen for it
    base: Base | None = None
    rows: Rows | None = None
    allow_code: bool = False


class _NotReached(Exception):
    """A part that this one needs failed."""


class _NotJudged(Exception):
    """The rewards fail on the answers of a random model."""


def _need(value: T | None) -> T:
    if value is None:
        raise _NotReached
    return value


def run(load: Callable[[], Resolved], *, allow_code: bool = False) -> dict[str, Any]:
    """`{"status", "exit_code", "parts": [{"part", "status", "detail", "seconds"}]}`; nothing is left on the disk.

    The exit code is that of the first part that failed.
    """
    found, parts, exit_code = _Found(load, allow_code=allow_code), [], 0
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
    found.recipe = found.asked = recipe
    check_folder(Path(recipe.output_dir), recipe.resume != "never")
    return f"{recipe.model.name_or_path} to {recipe.output_dir}"


def _files(found: _Found) -> str:
    data = _need(found.recipe).data
    for source in [*data.train, *(data.eval or ())]:
        find_source(source)
    tasks = find_tasks(_need(found.recipe))
    return ", ".join(
        [*(source.path for source in [*data.train, *(data.eval or ())]), *(each.task.task for each in tasks)]
    )


def _model(found: _Found) -> str:
    recipe = _need(found.recipe)
    base = find_base(recipe)
    config = load_config(base.location)
    check_weights(base.location)
    found.base = base
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return f"{config.model_type}" + (f", context {context:,} tokens" if context else "")


def _template(found: _Found) -> str:
    recipe, tokenizer = _need(found.recipe), _need(found.base).tokenizer
    whose = recipe.data.chat_template or "the tokenizer's own"
    template = f"chat template: {whose}" if tokenizer.chat_template else "no chat template (raw text only)"
    return f"{len(tokenizer):,} tokens, {template}"


def _data(found: _Found) -> str:
    recipe = _need(found.recipe)
    found.rows = rows = read_rows(readable(recipe), _need(found.base), kind=STAGES[recipe.stage].kind)
    if rows.train is None:
        return "streaming; of the first rows: " + ", ".join(f"{n:,} {name}" for name, n in rows.loader.report().items())
    summary = rows.train.summary
    held_out = 0 if rows.held_out is None else rows.held_out.summary.rows
    return (
        f"{summary.rows:,} rows, {summary.tokens:,} tokens, {summary.trained:,} trained ({summary.trained_share:.0%}), "
        f"longest {summary.lengths['max']:,}; {held_out:,} held out, {summary.dropped:,} dropped, "
        f"{summary.answers_cut:,} answers cut"
    )


def _memory(found: _Found) -> str:
    recipe, device = _need(found.recipe), default_device()
    available = memory.available(device) + (memory.resident() if device.type == "cpu" else 0)
    base = _need(found.base)
    if is_auto(recipe):
        batch = choose_batch(recipe, base, _need(found.rows), device.type, int(MARGIN * available))
        found.recipe = recipe = with_batch(recipe, batch)
    need = estimate(recipe, base, found.rows, device.type)
    said = (
        f"{need.trained:,} of {need.parameters:,} weights trained; at most {_size(need.peak)} ({need.phase}) of "
        f"{_size(available)} on {device}"
    )
    if is_auto(_need(found.asked)):
        said += f"; micro-batches of {recipe.train.batch_size} rows, chosen"
    if need.peak > available:
        more = "tunekit plan says what else makes it fit."
        raise MemoryExceeded(said, f"Set adapter: lora; {more}" if need.trained == need.parameters else more)
    return said


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _steps(found: _Found) -> str:
    recipe, base, rows = _need(found.recipe), _need(found.base), _need(found.rows)
    config = load_config(base.location)
    with tempfile.TemporaryDirectory() as scratch:
        set_seed(recipe.train.seed)
        model = shrunk(config)
        model.save_pretrained(scratch)
        tiny = Base(Location(f"tiny-random/{model.config.model_type}", scratch), base.tokenizer)
        try:
            losses = _try(_for_tiny(recipe), tiny, rows, Path(scratch), found.allow_code)
        except _NotJudged as error:
            return f"not tried: of the answers of a random model, which say nothing of those of yours, {error}"
    return f"{STEPS} optimizer steps of {tiny.location.name}, loss " + " -> ".join(f"{loss:.4f}" for loss in losses)


def _try(recipe: Recipe, tiny: Base, rows: Rows, folder: Path, allow_code: bool) -> list[float]:
    engine, stage = Engine(), STAGES[recipe.stage]
    objective, policy = stage.objective(recipe, allow_code), stage.policy(recipe, tiny, rows, engine)
    if stage.online is not None:
        rows = stage.online(recipe, policy, tiny, rows, folder, allow_code, engine).rows
    unknown = {"revision": None, "sha256": None}
    run = make_training(recipe, rows, policy, objective, lambda poll: {}, engine, unknown, folder)
    try:
        steps = list(itertools.islice(run.loader.steps(0, lambda: None), STEPS))
    except DataError as error:  # of rewards alone: all else is looked at before
        raise _NotJudged(error.message) from error
    batches = [policy.batch(_first(step.micro_batches)) for step in steps]
    if objective.needs_reference:
        batches = [with_reference(policy, batch) for batch in batches]
    losses = []
    for batch in batches:
        policy.train()
        result = backward(policy, run.objective, [batch], engine)
        losses.append(update(result, list(run.parameters.values()), run.optimizer, run.max_grad_norm).loss)
        run.learning_rate.step()
    return losses


def _first(micro_batches: Sequence[Sequence[Example]]) -> list[Example]:
    """The first rows of a step, up to `STEP_TOKENS`."""
    rows = [row for batch in micro_batches for row in batch]
    fitting = np.cumsum([sum(len(answer.ids) for answer in row.answers) for row in rows]) <= STEP_TOKENS
    return rows[: max(1, int(fitting.sum()))]


def _for_tiny(recipe: Recipe) -> Recipe:
    """The recipe with what names the size of the real model (layer numbers, a rank) brought down to the tiny one's."""
    adapter, freeze = recipe.adapter, recipe.freeze
    targets = adapter.target_modules
    if any(re.search(r"\d", name) for name in ([targets] if isinstance(targets, str) else targets)):
        targets = "all-linear"
    adapter = adapter.model_copy(update={"start_from": None, "r": min(adapter.r, TINY_RANK), "target_modules": targets})
    if freeze is not None:
        freeze = freeze.model_copy(update={"layers": (0,) if freeze.layers else ()})
    rollout = recipe.rollout.model_copy(
        update={"num_prompts": 2, "max_new_tokens": TINY_ANSWER, "engine": "builtin", "base_url": None}
    )
    objective = recipe.objective
    if objective.mask_truncated_completions:  # a random model ends none by itself
        objective = objective.model_copy(update={"mask_truncated_completions": False})
    parts = {"adapter": adapter, "freeze": freeze, "rollout": rollout, "objective": objective}
    return recipe.model_copy(update=parts)


PARTS: dict[str, Callable[[_Found], str]] = {
    "recipe": _recipe,
    "files": _files,
    "model": _model,
    "template": _template,
    "data": _data,
    "memory": _memory,
    "steps": _steps,
}
