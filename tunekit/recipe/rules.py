"""Which values of a recipe do not go together, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunekit.recipe.conflict import Conflict
from tunekit.recipe.data import Data, Source
from tunekit.recipe.distributed import distributed_conflicts, known_processes
from tunekit.recipe.quantisation import quantisation_conflicts
from tunekit.recipe.schema import Eval, Recipe
from tunekit.recipe.stage_rules import stage_conflicts

MEMORY = "memory:"
ONE_FILE = re.compile(r".*\.(jsonl|json|csv|tsv|parquet)(\.gz)?", re.IGNORECASE)
LIST_IN_FILE = re.compile(r".*\.json(\.gz)?", re.IGNORECASE)
PATTERN = re.compile(r"[*?\[]")


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Every rule that the recipe breaks; to be asked before `derive`."""
    yield from _weights(recipe)
    yield from _adapter(recipe)
    yield from quantisation_conflicts(recipe)
    yield from _batch(recipe)
    yield from distributed_conflicts(recipe)
    yield from _warmup(recipe)
    yield from _held_out(recipe)
    yield from _answers(recipe)
    yield from _tasks(recipe)
    yield from stage_conflicts(recipe)
    yield from _streaming(recipe)
    yield from _system(recipe)
    yield from _packing(recipe)
    for part, sources in (("train", recipe.data.train), ("eval", recipe.data.eval or [])):
        yield from _shares(part, sources)
        for index, source in enumerate(sources):
            yield from _source(f"data.{part}.{index}", source)


def _weights(recipe: Recipe) -> Iterator[Conflict]:
    adapter, freeze = recipe.adapter, recipe.freeze
    given = sorted(adapter.model_fields_set)
    if given and "type" not in given:
        keys = (*(f"adapter.{name}" for name in given), "adapter.type")
        yield Conflict("adapter", keys, "sets " + ", ".join(given) + " but no type; add type: lora (or type: none)")
    if freeze is not None and adapter.type != "none":
        message = f"does not go with adapter {adapter.type}, which leaves all of the model's own weights as they are; "
        yield Conflict("freeze", ("freeze", "adapter.type"), message + "remove freeze, or set adapter: none")
    if freeze is not None and not freeze.layers and not freeze.embeddings:
        keys = ("freeze", "freeze.layers", "freeze.embeddings")
        yield Conflict("freeze", keys, 'freezes nothing; give layers ("0-19"), embeddings: true, or remove freeze')


def _adapter(recipe: Recipe) -> Iterator[Conflict]:
    """Settings of an adapter that there is not. A dumped recipe holds every key; only another value was meant."""
    adapter = recipe.adapter
    if adapter.type != "none" or "type" not in adapter.model_fields_set:
        return
    for name, field in type(adapter).model_fields.items():
        value = getattr(adapter, name)
        default = 2 * adapter.r if name == "alpha" and value is not None else field.default
        if value != default and value != "merge_first":  # which is about the model that is trained whole
            message = (
                "has no effect with adapter none; set type: lora, or remove it (that of a base: adapter: null; on the "
                "command line: adapter=none)"
            )
            yield Conflict(f"adapter.{name}", (f"adapter.{name}", "adapter.type"), message)


def _batch(recipe: Recipe) -> Iterator[Conflict]:
    train = recipe.train
    rows, passes, each = train.global_batch_size, train.gradient_accumulation_steps, train.batch_size
    if rows is None:
        if train.per_device_train_batch_size == "auto" and passes not in (None, 1):
            message = "does not go with per_device_train_batch_size: auto, from which it follows; give "
            message += "global_batch_size, the rows of a step, instead"
            both = ("train.gradient_accumulation_steps", "train.per_device_train_batch_size")
            yield Conflict(both[0], both, message)
        return
    at = "train.global_batch_size"
    keys = (at, "train.per_device_train_batch_size", "distributed.processes", "distributed.nodes")
    count = known_processes(recipe.distributed)
    together = each * count
    times = f" x {count} processes" if count > 1 else ""
    if rows % together:
        fix = f"set {rows + -rows % together}, or change that one"
        message = f"{rows} is not a multiple of train.per_device_train_batch_size ({each}){times}; {fix}"
        yield Conflict(at, keys, message)
    # A dumped recipe holds both; they conflict only when they disagree.
    elif passes is not None and rows != passes * together:
        product = f"gradient_accumulation_steps x per_device_train_batch_size ({passes} x {each}){times}"
        message = f"{rows} is not {product}; remove one of the two"
        yield Conflict(at, (*keys, "train.gradient_accumulation_steps"), message)


def _warmup(recipe: Recipe) -> Iterator[Conflict]:
    train = recipe.train
    if train.warmup_steps is not None and train.warmup_ratio is not None:
        keys = ("train.warmup_ratio", "train.warmup_steps")
        yield Conflict("train.warmup_ratio", keys, "excludes warmup_steps; remove one of the two")


def _held_out(recipe: Recipe) -> Iterator[Conflict]:
    data, evaluation = recipe.data, recipe.eval
    keys = ("data.eval", "data.eval_split", "data.streaming")
    if data.eval is not None and data.eval_split:
        yield Conflict("data.eval_split", keys, "excludes data.eval; remove one of the two")
    streamed = data.streaming and data.eval_split is None
    if data.eval is not None or (data.eval_split != 0 and not streamed):
        return
    fix = "give data.eval or data.eval_split: 100" if streamed else "remove data.eval_split: 0, give data.eval"
    for name, wanted in (
        ("early_stopping_patience", evaluation.early_stopping_patience is not None),
        ("load_best_model_at_end", evaluation.load_best_model_at_end),
        ("metrics", bool(evaluation.metrics)),
        ("steps", evaluation.steps is not None),
    ):
        if wanted:
            yield Conflict(f"eval.{name}", (*keys, f"eval.{name}"), f"needs held-out rows; {fix}, or remove this key")


def _answers(recipe: Recipe) -> Iterator[Conflict]:
    evaluation, key = recipe.eval, "eval.max_new_tokens"
    if not evaluation.metrics and evaluation.max_new_tokens != Eval.model_fields["max_new_tokens"].default:
        message = "has no effect without eval.metrics, for which answers are generated; give them, or remove this key"
        yield Conflict(key, (key, "eval.metrics"), message)


def _tasks(recipe: Recipe) -> Iterator[Conflict]:
    evaluation = recipe.eval
    for key, given in (("task_limit", evaluation.task_limit is not None), ("tasks_at", evaluation.tasks_at != "ends")):
        if given and not evaluation.tasks:
            keys = (f"eval.{key}", "eval.tasks")
            yield Conflict(keys[0], keys, "has no effect without eval.tasks; give them, or remove this key")


def _streaming(recipe: Recipe) -> Iterator[Conflict]:
    data, defaults = recipe.data, Data.model_fields
    at = "data.streaming"
    if not data.streaming:
        # A dumped recipe holds every key; only another value than the default was meant.
        if data.shuffle_buffer != defaults["shuffle_buffer"].default:
            keys = ("data.shuffle_buffer", at)
            yield Conflict(keys[0], keys, "has no effect without streaming; add streaming: true, or remove this key")
        return
    if recipe.train.max_steps is None:
        message = "needs train.max_steps, since the length of a stream is not known; give it, or remove streaming"
        yield Conflict(at, (at, "train.max_steps"), message)
    if data.max_length is None:
        message = "needs data.max_length, since the longest row to come is not known; give it, or remove streaming"
        yield Conflict(at, (at, "data.max_length"), message)
    if isinstance(data.eval_split, float):
        message = "cannot be a share with streaming; give a number of rows, or data.eval"
        yield Conflict("data.eval_split", (at, "data.eval_split", "data.eval"), message)


def _system(recipe: Recipe) -> Iterator[Conflict]:
    data, keys = recipe.data, ("data.system_mode", "data.system")
    if data.system_mode == "replace" and data.system is None:
        yield Conflict(keys[0], keys, "replace needs data.system; give it, or set system_mode: drop (or keep)")
    if data.system_mode == "drop" and data.system is not None:
        yield Conflict(keys[0], keys, "drop excludes data.system; remove one of the two, or set system_mode: replace")


def _packing(recipe: Recipe) -> Iterator[Conflict]:
    attention = recipe.model.attn_implementation
    if recipe.data.packing and attention != "auto":
        message = (
            f"needs model.attn_implementation: auto, which keeps packed examples apart, and not {attention}; "
            "remove that key, or set packing: false"
        )
        yield Conflict("data.packing", ("data.packing", "model.attn_implementation"), message)


def _shares(part: str, sources: list[Source]) -> Iterator[Conflict]:
    """Weights are those of training, and of all its sources or of none."""
    places = [f"data.{part}.{index}" for index in range(len(sources))]
    given = [source.weight is not None for source in sources]
    keys = (f"data.{part}", *places, *(f"{place}.weight" for place in places))
    if part == "eval":
        for place, has in zip(places, given, strict=True):
            if has:
                message = "has no meaning for held-out rows, which are all measured; remove it"
                yield Conflict(f"{place}.weight", keys, message)
    elif any(given) and not all(given):
        missing = [place for place, has in zip(places, given, strict=True) if not has]
        message = f"has no weight, others of data.train have one; give it {missing[0]}.weight, or remove the others"
        yield Conflict(missing[0], keys, message)


def _source(at: str, source: Source) -> Iterator[Conflict]:
    """What the path of a source alone, without a look at the disk, says about its other keys."""
    path = source.path
    in_memory, one_file = path.startswith(MEMORY), ONE_FILE.fullmatch(path) is not None
    if path == MEMORY:
        yield Conflict(f"{at}.path", (f"{at}.path",), "needs the name of a data set behind memory:")
    for key in ("name", "split", "revision", "data_files", "field"):
        if getattr(source, key) is None:
            continue
        why = ""
        if in_memory:
            why = f"has no meaning for {path}, which is already in memory"
        elif one_file and key in ("name", "split", "revision"):
            why = f"is for data sets of the hub, and {path} is a file"
        elif one_file and key == "data_files":
            why = f"chooses files of a folder or hub repository, and {path} {_is(path)}"
        elif one_file and key == "field" and not LIST_IN_FILE.fullmatch(path):
            why = f"is for a JSON file with one object, and {path} has a row on each line"
        if why:
            yield Conflict(f"{at}.{key}", (at, f"{at}.path", f"{at}.{key}"), f"{why}; remove {key}")


def _is(path: str) -> str:
    return "is a pattern itself" if PATTERN.search(path) else "is a file"
