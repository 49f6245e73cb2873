"""The data sets of a TRL config, and of the recipes of the alignment handbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.recipe.convert.draft import Draft, Left, truth
from tunekit.recipe.convert.sources import dict_or_empty, looks_local, names_in

NAMES = {"path": "path", "id": "path", "name": "name", "config": "name", "split": "split", "data_files": "data_files"}
NO_EVALUATION = "eval_strategy is no"
SHARE = "a share of the rows; a weight here is a share of the trained tokens"
ALL_TOKENS = (
    "of a conversation only the assistant's turns are trained; TRL trains all its tokens unless assistant_only_loss is "
    "set, and of prompt and completion the completion (data.loss_on: all, or completion)"
)
TEMPLATE_ARGUMENTS = "the chat template gets no arguments but messages and tools"


def read_data(draft: Draft, raw: dict[str, Any], folder: Path) -> None:
    """Takes over `dataset_name`, `datasets`, `dataset_mixture` and the older `dataset_mixer`."""
    held_out = raw.get("eval_strategy", raw.get("evaluation_strategy", "no")) not in ("no", False, None)
    if raw.get("dataset_name"):
        _one(draft, raw, held_out)
    mixture = dict_or_empty(raw.get("dataset_mixture"))
    for key, listed in (("datasets", raw.get("datasets")), ("dataset_mixture.datasets", mixture.get("datasets"))):
        for index, item in enumerate(listed if isinstance(listed, list) else []):
            draft.train.append(_source(draft, item, f"{key}.{index}"))
    for key, value in mixture.items():
        if key == "test_split_size":
            draft.put("data.eval_split", value, f"dataset_mixture.{key}", value)
        elif key != "datasets":
            draft.leave(f"dataset_mixture.{key}", value, "train.seed is the seed of everything")
    _older_mixer(draft, raw, held_out)
    draft.done.update(("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets"))
    draft.done.update(("dataset_mixture", "dataset_mixer", "dataset_splits", "dataset_configs"))
    if text := raw.get("dataset_text_field"):
        draft.done.add("dataset_text_field")
        _text_field(draft, str(text))
    if draft.stage == "sft":
        _loss(draft, raw)


def _loss(draft: Draft, raw: dict[str, Any]) -> None:
    """What two keys say together: each of them narrows the loss, and only completion_only_loss widens it to all."""
    said: dict[str, bool] = {}
    for key in ("assistant_only_loss", "completion_only_loss"):
        draft.done.add(key)
        try:
            said |= {} if raw.get(key) is None else {key: truth(raw[key])}
        except Left as left:
            draft.leave(key, raw[key], left.why)
    if any(said.values()):
        chosen = "completion" if said.get("completion_only_loss") else "assistant"
    elif "completion_only_loss" in said:
        chosen = "all"
    else:
        chosen = ""
        draft.differ(ALL_TOKENS)
    if chosen:
        draft.values["data.loss_on"] = chosen
    for key, value in said.items():
        draft.leave(key, value, f"data.loss_on: {chosen} says it" if chosen else "TRL's default", needless=True)


def _one(draft: Draft, raw: dict[str, Any], held_out: bool) -> None:
    path = str(raw["dataset_name"])
    local = looks_local(path)
    source = {"path": path}
    if raw.get("dataset_config") not in (None, "default"):
        source["name"] = raw["dataset_config"]
    splits = {"train": raw.get("dataset_train_split") or "train", "eval": raw.get("dataset_test_split") or "test"}
    draft.train.append(source if local or splits["train"] == "train" else {**source, "split": splits["train"]})
    if held_out:
        todo = f"TODO: the rows that TRL has as split {splits['eval']} of {path}"
        draft.eval.append({"path": todo} if local else {**source, "split": splits["eval"]})
    elif split := raw.get("dataset_test_split"):
        draft.leave("dataset_test_split", split, NO_EVALUATION, needless=True)


def _source(draft: Draft, item: Any, at: str) -> dict[str, Any]:
    item = {"path": item} if isinstance(item, str) else dict_or_empty(item)
    source: dict[str, Any] = {}
    for key, value in item.items():
        if value is None or (key in ("weight", "fraction") and value == 1) or (key, value) == ("config", "default"):
            draft.leave(f"{at}.{key}", value, "it changes nothing", needless=True)
        elif key == "columns" and "chat_template_kwargs" in names_in(value):
            draft.leave(f"{at}.{key}", value, TEMPLATE_ARGUMENTS)
        elif key == "columns":
            draft.leave(f"{at}.{key}", value, "columns that are not used are left out, and named", needless=True)
        elif key in NAMES:
            source[NAMES[key]] = value
        else:
            why = SHARE if key in ("weight", "fraction") else "a source has no such key here"
            draft.leave(f"{at}.{key}", value, why)
    if source.get("split") == "train":
        del source["split"]
    return source if "path" in source else {"path": f"TODO: the data of {at}", **source}


def _older_mixer(draft: Draft, raw: dict[str, Any], held_out: bool) -> None:
    """`dataset_mixer: {id: share}` with the same splits of each; one whose name has "test" in it is held out."""
    splits = names_in(raw.get("dataset_splits")) or ["train"]
    names = names_in(raw.get("dataset_configs"))
    for index, (path, share) in enumerate(dict_or_empty(raw.get("dataset_mixer")).items()):
        if share != 1:
            draft.leave(f"dataset_mixer.{path}", share, SHARE)
        name = {"name": names[index]} if index < len(names) and names[index] not in (None, "default") else {}
        for split in splits:
            source = {"path": path, **name, **({} if split == "train" else {"split": split})}
            if "test" not in split:
                draft.train.append(source)
            elif held_out:
                draft.eval.append(source)
            else:
                draft.leave("dataset_splits", split, NO_EVALUATION, needless=True)


def _text_field(draft: Draft, text: str) -> None:
    if text == "text":
        draft.leave("dataset_text_field", text, "the column of rows of text", needless=True)
        return
    for source in draft.train + draft.eval:
        source |= {"format": "text", "columns": {"text": text}}
