"""`tunekit eval`: a model on tasks, the scores with their intervals, every answer on disk."""

import glob
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from tunekit.data import sources
from tunekit.data.formats import Found
from tunekit.data.rows import Rejected, Tokens
from tunekit.data.tokenise import Reading
from tunekit.errors import RecipeError
from tunekit.evals.answers import Subject
from tunekit.evals.code import load_function
from tunekit.evals.harness import run_harness
from tunekit.evals.items import find_source
from tunekit.evals.leakage import find_leakage
from tunekit.evals.metrics.hub import HUB, hub_metric, register
from tunekit.evals.score import TaskResult, run_task, summarise
from tunekit.evals.task import FoundTask, find_task
from tunekit.models.load import locate, weights_hash
from tunekit.models.policy import Policy
from tunekit.models.reward import load_reward_model
from tunekit.models.serve import load_for_inference
from tunekit.stages.present import rendered
from tunekit.train.folder import check_folder, open_folder, replace_text, result_file

log = logging.getLogger("tunekit")

MAX_GROUPS = 15  # that a table for people shows
PROBES = ("The quick brown fox jumps over the lazy dog.", "In 1912 a ship sank in the North Atlantic.")


def run(
    name: str,
    tasks: Sequence[str],
    *,
    data: Mapping[str, str] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int | None = None,
    dtype: str = "auto",
    output: str | None = None,
    engine: str = "tunekit",
    allow_code: bool = False,
    train_data: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures the model that `name` stands for on `tasks` (names or files) and returns what `result.json` holds.

    `data` gives a task other items, by its name. With `output`, the result and every answer are written there. The
    items are looked for in `train_data`. `engine` may be `lm-eval`, whose tasks and scores are then meant.
    """
    _check_output(output)
    training = [Reading(sources.find(path)) for path in train_data]
    # All that the user may have mistyped is told before a model is loaded.
    found = [] if engine == "lm-eval" else find_tasks(tasks, data, seed)
    functions = [_function(each, allow_code) for each in found]
    register_hub_metrics(found, allow_code)
    for each in found:
        find_source(each)

    def measure(folder: Path | None, result: dict[str, Any]) -> dict[str, Any]:
        location = locate(name)
        result["model"] = {"name": name, "revision": location.revision, "sha256": weights_hash(location)}
        if engine == "lm-eval":
            model, tokenizer = load_for_inference(name, dtype)
            result["tasks"] = run_harness(
                model, tokenizer, tasks, data=data or {}, limit=limit, batch_size=batch_size, seed=seed or 0
            )
            return result
        subject = _subject(name, dtype, batch_size, rewards=any(each.task.kind == "preference" for each in found))
        result["tasks"] = {}
        measured = []
        for each, function in zip(found, functions, strict=True):
            log.info("task %s", each.task.task)
            measured.append(run_task(each, subject, limit, function))
            result["tasks"][each.task.task] = kept(measured[-1], folder)
        add_leakage(result["tasks"], measured, training)
        return result

    if output is None:
        return measure(None, {"stage": "eval"})
    with open_folder(output, resuming=False) as folder, result_file(folder, "eval") as result:
        return measure(folder, result)


def _check_output(output: str | None) -> None:
    """Raises `RecipeError` where there is something already: the result of another evaluation is not overwritten."""
    try:
        check_folder(Path(output or "."), resuming=output is None)
    except RecipeError as error:
        message = error.message.replace("output_dir", "--output")
        raise RecipeError(message, "Choose another --output, or remove the folder.") from error


def add_leakage(results: Mapping[str, Any], measured: Sequence[TaskResult], training: Sequence[Reading]) -> None:
    """Adds to the result of each task what of its items is in the training data, and its scores without them."""
    if not training or not measured:
        return
    rows = (row for each in training for row in each.rows(Found()) if not isinstance(row, Rejected))
    sets = [[(reply.item.row, reply.item.place) for reply in each.replies] for each in measured]
    for each, leakage in zip(measured, find_leakage(sets, rows), strict=True):
        report: dict[str, Any] = leakage.as_dict()
        if leakage.flagged:
            flagged = set(leakage.flagged)
            clean = [reply for i, reply in enumerate(each.replies) if i not in flagged]
            report["scores_without"] = {name: score.as_dict() for name, score in summarise(each.task, clean)[0].items()}
            counts, examples = (len(flagged), len(each.replies)), "; ".join(leakage.examples)
            log.warning("%s: %d of %d items are in the training data, such as %s", each.task.task, *counts, examples)
        results[each.task.task]["leakage"] = report


def find_tasks(names: Sequence[str], data: Mapping[str, str] | None = None, seed: int | None = None) -> list[FoundTask]:
    """The tasks of these names or files. Raises `RecipeError` for one that is given twice, or data for none of them."""
    found = [find_task(name, {} if seed is None else {"seed": seed}) for name in names]
    known = [each.task.task for each in found]
    for name in known:
        if known.count(name) > 1:
            raise RecipeError(f"--tasks: {name} is given twice")
    for name in data or {}:
        if name not in known:
            raise RecipeError(f"--data: {name} is none of the tasks: {', '.join(known)}")
    if not data:
        return found
    changes = {name: {"data": {"path": _place(path)}} for name, path in data.items()}
    return [
        find_task(name, {**changes.get(each.task.task, {}), **({} if seed is None else {"seed": seed})})
        for name, each in zip(names, found, strict=True)
    ]


def _place(path: str) -> str:
    """A path from the working directory, and not from the task's file; what is not there may be an id of the hub."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() or glob.has_magic(path) or local.suffix else path


def _function(found: FoundTask, allow_code: bool) -> Callable[[Any], Any] | None:
    """The function that a task names. Raises `RecipeError` where it may not run or is not there."""
    if found.task.prepare is None:
        return None
    file, _, function = found.task.prepare.rpartition(":")
    path = found.file.parent / file
    if not allow_code:
        raise RecipeError(f"{found.file}: prepare: {path} is code", "Read it, and give --allow-code if it may run.")
    return load_function(path, function, f"{found.file}: prepare")


def register_hub_metrics(tasks: Sequence[FoundTask], allow_code: bool) -> None:
    """Loads the metrics that tasks call `hub:NAME`. Raises `RecipeError` where their code may not run."""
    for each in tasks:
        for name in each.task.metrics:
            if not name.startswith(HUB):
                continue
            if not allow_code:
                raise RecipeError(f"{each.file}: metrics: {name} is code of a hub", "Give --allow-code if it may run.")
            register(name, hub_metric(name.removeprefix(HUB)))


def _subject(name: str, dtype: str, batch_size: int, *, rewards: bool) -> Subject:
    if rewards:
        reward = load_reward_model(name, dtype, batch_size)
        return Subject(None, reward.tokenizer, batch_size, reward)
    model, tokenizer = load_for_inference(name, dtype, attn_implementation="auto")
    policy = Policy(model, model.dtype, tokenizer.pad_token_id)
    policy.prove(probes(tokenizer))
    return Subject(policy, tokenizer, batch_size)


def probes(tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Two texts on which the model's layouts are tried."""
    rows = [np.array(ids, np.int32) for ids in tokenizer(list(PROBES))["input_ids"]]
    return [Tokens(ids, np.arange(len(ids)) > 0, "probe") for ids in rows]


def kept(measured: TaskResult, folder: Path | None, suffix: str = "") -> dict[str, Any]:
    """The result of a task as it is written, after its answers went to `items/` in `folder`."""
    report = measured.as_dict()
    if folder is not None:
        file = folder / "items" / f"{measured.task.task}{suffix}.jsonl"
        file.parent.mkdir(exist_ok=True)
        replace_text(file, "".join(json.dumps(each.as_line(), ensure_ascii=False) + "\n" for each in measured.replies))
        report["items"] = str(file.relative_to(folder))
    return report


def render(result: dict[str, Any]) -> str:
    """A table for people: each score with its interval."""
    table = Table("task", "metric", "score", "95 % interval", "n")
    for name, task in result["tasks"].items():
        for metric, score in task["scores"].items():
            table.add_row(name, metric, *shown(score))
        for metric, groups in task["groups"].items():
            for group, score in groups.items() if len(groups) <= MAX_GROUPS else ():
                table.add_row("", f"{metric}  {group}", *shown(score))
    return rendered([table])


def shown(score: Mapping[str, Any]) -> tuple[str, str, str]:
    """A score, its interval and the number of items, for people; of a score that there is not, why there is none."""
    value, low, high = (score.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "none", "no item counts", f"{score['n']:,}"
    return f"{value:.4g}", "" if low is None else f"{low:.4g} to {high:.4g}", f"{score['n']:,}"
