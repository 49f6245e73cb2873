"""What a stage of a pipeline reads, by content: where all of it is as it was, the stage need not run again.

No torch here: a pipeline in which nothing changed is through in seconds.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunekit import __version__
from tunekit.data import sources
from tunekit.errors import RecipeError
from tunekit.evals.task import find_task
from tunekit.files import cache_root, sha256
from tunekit.recipe.losses import USERS_OWN
from tunekit.recipe.parse import dotted, leaves
from tunekit.recipe.references import is_inside
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Recipe

# What decides where a run writes and who watches it, and nothing of its result.
IGNORED = ("output_dir", "run_name", "report_to", "resume", "train.logging_steps", "rollout.samples_steps")
READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a model folder
PASSPORT = "tunekit.json"  # says when and from what a model was made, not what it is
BASE = "base_model_name_or_path"
MAX_SHOWN = 3
Inputs = dict[str, Any]


def inputs_of(recipe: Recipe, later: Sequence[str] = ()) -> Inputs:
    """By dotted key each value of the recipe that its result depends on, of files a hash of their content instead.

    What lies in one of the folders `later` is not looked at. Raises `RecipeError` and `DataError` where something else
    is not there.
    """
    values = {dotted(path): value for path, value in leaves(recipe.model_dump(mode="json"), whole_lists=True)}
    found = {key: value for key, value in values.items() if key not in IGNORED}
    for name, part in (("train", recipe.data.train), ("eval", recipe.data.eval or ())):
        for index, source in enumerate(part):
            if not _is_in(source.path, later):
                where = source.model_dump(include={"name", "split", "data_files", "revision", "field"})
                found[f"data.{name}.{index}.path"] = sources.find(source.path, **where).fingerprint()
    for key, model in _models(recipe):
        if not _is_in(model, later):
            found[key] = _model(key, model)
    for key, file in _files(recipe):
        if not _is_in(file, later):
            found[key] = _content(key, Path(file))
    return {"tunekit": __version__, **found}


def _is_in(path: str, folders: Sequence[str]) -> bool:
    return any(is_inside(path, folder) for folder in folders)


def _content(key: str, file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise RecipeError(f"{key}: {file}: {error.strerror}") from None


def code_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The functions of the user's own that a recipe names, `path/to/file.py:name`, each with its key."""
    for index, loss in enumerate(recipe.objective.loss or ()):
        if USERS_OWN.fullmatch(loss):
            yield f"objective.loss.{index}", loss
    for index, reward in enumerate(recipe.rewards or ()):
        if reward.function is not None and USERS_OWN.fullmatch(reward.function):
            yield f"rewards.{index}.function", reward.function


def changes(before: Inputs, now: Inputs) -> str:
    """In which inputs two runs differ, in words; "" if in none."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    said = [_change(key, before.get(key), now.get(key)) for key in differing[:MAX_SHOWN]]
    more = [f"{len(differing) - MAX_SHOWN} more"] if len(differing) > MAX_SHOWN else []
    return ", ".join(said + more)


def _change(key: str, before: Any, now: Any) -> str:
    if any(isinstance(value, str) and len(value) == 64 for value in (before, now)):
        return f"{key} has another content"
    return f"{key} {json.dumps(before)} -> {json.dumps(now)}"


def _models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "model.name_or_path", recipe.model.name_or_path
    for index, reward in enumerate(recipe.rewards or ()):
        if reward.model is not None:
            yield f"rewards.{index}.model", reward.model
    if recipe.value_model not in (None, OWN_ADAPTER):
        yield "value_model", str(recipe.value_model)


def _files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.data.chat_template is not None:
        yield "data.chat_template", recipe.data.chat_template
    for index, reward in enumerate(recipe.rewards or ()):
        if reward.schema_path is not None:
            yield f"rewards.{index}.schema_path", reward.schema_path
    for index, name in enumerate(recipe.eval.tasks):
        task = find_task(name)
        if task.file == Path(name).expanduser():  # one that is not part of tunekit
            yield f"eval.tasks.{index} (file)", str(task.file)
            items = task.file.parent / task.task.data.path
            if items.is_file():
                yield f"eval.tasks.{index} (items)", str(items)
    for key, function in code_of(recipe):
        yield f"{key} (file)", function.rpartition(":")[0]


def _model(key: str, name: str) -> str:
    """A hash of a local model; of a built-in one and of one of a hub the name, to which its revision belongs."""
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise RecipeError(f"{key}: {name} does not exist", "Give a hub id, a local folder or a built-in name.")
        return name
    for candidate in (folder / "model", folder):
        if any((candidate / config).is_file() for config in ("config.json", "adapter_config.json")):
            return _hash(candidate)
    raise RecipeError(
        f"{key}: {name} is a folder without config.json or adapter_config.json",
        "A model folder has config.json; a run folder of tunekit has model/ once the run is done.",
    )


def _hash(folder: Path) -> str:
    """sha256 over what is read of a model folder; of an adapter with its base, wherever that lies."""
    if folder.resolve().parent == (cache_root() / "models").resolve():
        return folder.name  # a built-in model, whose name says which version of it
    parts: list[Any] = []
    for file in sorted(folder.iterdir()):
        if file.name == "adapter_config.json":
            config = _adapter_config(file)
            base = config.pop(BASE, None)
            parts += [config, _hash(Path(base)) if base and Path(base).is_dir() else base]
        elif file.suffix in READ and file.name != PASSPORT:
            parts.append([file.name, sha256(file)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _adapter_config(file: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model: {file} is damaged: {error}", "Copy the folder again from where it was made."
        ) from None
    return config
