"""Tasks of lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness), run by itself.

The only module that knows it. A task is found by the name of its file and loaded alone: to let the harness look through
all of its task files would take a quarter of a minute.
"""

import difflib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.errors import DataError, MissingEnvironment, RecipeError
from tunekit.evals.statistics import interval

log = logging.getLogger("tunekit")

SPLIT = "test"
NOT_SCORES = ("alias", "name", "sample_len", "sample_count")
INSTALL = 'pip install "tunekit[lm-eval]"'


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    data: Mapping[str, str],
    limit: int | None,
    batch_size: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The result of each task in the form that our own have. `data` gives a task the rows of a local file.

    Raises `MissingEnvironment` where the harness or a data set is not on this machine, `RecipeError` for a task that it
    does not have.
    """
    harness = _imported()
    configs = {name: _config(harness, name, data.get(name)) for name in names}
    # `HFLM` would move the model and look for its files; what we hand over is on its device.
    subject = harness["HFLM"](pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return {
        name: _run(harness, subject, name, config, limit=limit, seed=seed, own_data=name in data)
        for name, config in configs.items()
    }


def _imported() -> dict[str, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise MissingEnvironment(f"--engine lm-eval: {error}", f"Install it: {INSTALL}") from error
    folder = Path(evaluator.__file__).parent / "tasks"
    for name in ("lm-eval", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return {
        "simple_evaluate": evaluator.simple_evaluate,
        "HFLM": HFLM,
        "TaskManager": TaskManager,
        "load_yaml": load_yaml,
        "tasks": folder,
    }


def _config(harness: Mapping[str, Any], name: str, data: str | None) -> dict[str, Any]:
    file = Path(name)
    if file.suffix not in (".yaml", ".yml") or not file.is_file():
        file = _task_file(harness["tasks"], name)
    config: dict[str, Any] = harness["load_yaml"](file)
    if not isinstance(config.get("task"), str):
        raise RecipeError(f"--tasks: {name}: {file} is a group of tasks", "Name the tasks themselves.")
    if data is not None:
        path = Path(data).expanduser()
        if not path.is_file():
            raise DataError(f"--data: {name}: {data}: no such file")
        own = {"dataset_path": "csv" if path.suffix == ".csv" else "json", "dataset_name": None}
        config |= own | {"dataset_kwargs": {"data_files": {SPLIT: str(path)}}, "test_split": SPLIT}
        config |= {key: None for key in ("training_split", "validation_split") if key in config}
        if config.get("fewshot_split"):
            config["fewshot_split"] = SPLIT
    return config


def _task_file(folder: Path, name: str) -> Path:
    """The file that defines a task: the one of its name, else one that says `task: NAME`."""
    yamls = [Path(top) / each for top, _, inner in os.walk(folder) for each in inner if each.endswith(".yaml")]
    found = next((file for file in yamls if file.stem == name), None)
    if found is None:
        said = re.compile(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
        found = next((file for file in yamls if said.search(file.read_text(encoding="utf-8"))), None)
    if found is None:
        near = difflib.get_close_matches(name, {file.stem for file in yamls}, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"--tasks: {name}: lm-evaluation-harness has no such task{guess}")
    return found


def _run(
    harness: Mapping[str, Any],
    subject: Any,
    name: str,
    config: dict[str, Any],
    *,
    limit: int | None,
    seed: int,
    own_data: bool,
) -> dict[str, Any]:
    started = time.perf_counter()
    options = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    try:
        results = harness["simple_evaluate"](
            model=subject,
            tasks=[config],
            task_manager=harness["TaskManager"](include_defaults=False),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            **options,
        )
    except (OSError, ConnectionError) as error:
        raise MissingEnvironment(
            f"task {name}: its data set {config.get('dataset_path')} is not on this machine: {error}",
            f"Give the rows: --data {name}=FILE.jsonl, or fetch the data set once where there is a network.",
        ) from error
    except (LookupError, ValueError, TypeError, TemplateError) as error:
        if not own_data:
            raise
        raise DataError(
            f"task {name}: the rows of --data do not have what the task reads: {type(error).__name__}: {error}"
        ) from error
    task = config["task"]
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    scores = {}
    for key, value in results["results"][task].items():
        metric = key.partition(",")[0]
        if metric in NOT_SCORES or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [each[metric] for each in samples if isinstance(each.get(metric), int | float)]
        lower = not results["higher_is_better"].get(task, {}).get(metric, True)
        score = interval(values, seed=seed) if len(values) == len(samples) else None
        found = {} if score is None else replace(score, better="lower" if lower else "higher").as_dict()
        scores[metric] = {**found, "value": float(value), "n": len(samples), "better": "lower" if lower else "higher"}
    kept = {key: value for key, value in config.items() if isinstance(value, str | int | float | list | type(None))}
    return {
        "task": task,
        "n": len(samples),
        "of": results["n-samples"][task]["original"],
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 2),
        "scores": scores,
        "groups": {},
        "configuration": {**kept, "engine": "lm-eval", "limit": limit, "version": results["versions"].get(task)},
    }
