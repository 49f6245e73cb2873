"""The data sets of an axolotl config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.recipe.convert.draft import Draft
from tunekit.recipe.convert.sources import CHATS, ROLES, dict_or_empty, names_in, renamed

LISTS = ("datasets", "pretraining_dataset", "test_datasets")
LOADERS = ("json", "csv", "parquet", "text", "arrow")
# The prompt types that are a format of rows: its name here, and which of our keys is which column.
TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "alpaca": ("alpaca", {}),
    "alpaca_chat": ("alpaca", {}),
    "alpaca_chat.load_qa": ("alpaca", {"instruction": "question", "output": "answer"}),
    "gpteacher": ("alpaca", {"output": "response"}),
    "sharegpt": ("sharegpt", {}),
    "sharegpt.load_role": ("messages", {"messages": "conversations"}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
}
ALPACA = "alpaca rows become turns of a chat in the model's own template; axolotl writes them in Alpaca's own words"
PIECES = (
    "a text over data.max_length is one row, to which data.overlong applies; axolotl cuts it into pieces of "
    "sequence_len and trains on all of them"
)


def read_data(draft: Draft, raw: dict[str, Any], folder: Path) -> None:
    """Takes over `datasets`, `pretraining_dataset` and `test_datasets`."""
    for name in LISTS:
        given = raw.get(name)
        if not given:
            continue
        draft.done.add(name)
        for index, item in enumerate(given if isinstance(given, list) else [given]):
            sources = _sources(draft, item, f"{name}.{index}", name == "pretraining_dataset")
            (draft.eval if name == "test_datasets" else draft.train).extend(sources)
    if raw.get("pretraining_dataset"):
        draft.put("data.streaming", True, "pretraining_dataset", "...")
        draft.put("data.loss_on", "all", "pretraining_dataset", "...")


def _sources(draft: Draft, item: Any, at: str, pretraining: bool) -> list[dict[str, Any]]:
    left = {"path": item} if isinstance(item, str) else dict_or_empty(item)
    path, files = left.pop("path", None), names_in(left.pop("data_files", None))
    rest: dict[str, Any] = {key: left.pop(key) for key in ("name", "revision") if left.get(key) is not None}
    split = left.pop("split", None)
    if pretraining:
        left.setdefault("type", "pretrain")
    rest |= _format(draft, left, at)
    if path in LOADERS and files:
        return [{"path": file, **rest} for file in files]
    if split not in (None, "train"):
        rest["split"] = split
    _list_the_rest(draft, left, at)
    return [{"path": path or f"TODO: the data of {at}", **({"data_files": files} if files else {}), **rest}]


def _format(draft: Draft, left: dict[str, Any], at: str) -> dict[str, Any]:
    """`format` and `columns` of a source; takes the keys that say them."""
    kind = left.pop("type", None)
    if draft.stage != "sft":
        return _answers(draft, kind, left, at)
    if isinstance(kind, dict):
        return _own_prompt(draft, kind, f"{at}.type")
    name = str(kind or "").partition(":")[0]
    if name.split(".")[0] == "chat_template":
        return _chat(draft, left, at)
    if name not in TYPES:
        if kind:
            draft.leave(f"{at}.type", kind, "no format of this name; the columns of the first row decide")
        return {}
    format, columns = TYPES[name]
    if format == "alpaca":
        draft.differ(ALPACA)
    if format == "text":
        draft.differ(PIECES)
        columns = renamed({"text": left.pop("field", None) or left.pop("text_column", None)})
    if format == "sharegpt":
        columns = renamed({"conversations": left.pop("field_messages", None)})
    return {"format": format, **({"columns": columns} if columns else {})}


def _answers(draft: Draft, kind: Any, left: dict[str, Any], at: str) -> dict[str, Any]:
    """`columns` of a source of pairs, or of answers that are labelled; its format is told by them."""
    columns = {ours: left.pop(f"field_{ours}", None) for ours in ("messages", "chosen", "rejected", "label")}
    if str(kind).endswith(".intel"):
        columns["prompt"] = "question"
    if kind is not None:
        draft.leave(f"{at}.type", kind, "the columns of the first row decide, and texts are trained as they are")
    return {"columns": renamed(columns)} if renamed(columns) else {}


def _chat(draft: Draft, left: dict[str, Any], at: str) -> dict[str, Any]:
    names = {"role": left.pop("message_field_role", None), "content": left.pop("message_field_content", None)}
    names |= dict_or_empty(left.pop("message_property_mappings", None))
    pair = (names.pop("role", None) or "role", names.pop("content", None) or "content")
    messages = left.pop("field_messages", None) or "messages"
    if names:
        draft.leave(f"{at}.message_property_mappings", names, "keys of a message keep their names")
    if pair not in CHATS:
        draft.leave(f"{at}.message_property_mappings", list(pair), "messages have role and content, or from and value")
    format, ours = CHATS.get(pair, ("messages", "messages"))
    columns = renamed({ours: messages, "tools": left.pop("field_tools", None)})
    roles = {role for theirs in dict_or_empty(left.get("roles")).values() for role in names_in(theirs)}
    if roles and roles <= ROLES:
        draft.leave(f"{at}.roles", left.pop("roles"), "these names of roles are known", needless=True)
    return {"format": format, **({"columns": columns} if columns else {})}


def _own_prompt(draft: Draft, kind: dict[str, Any], at: str) -> dict[str, Any]:
    """A prompt that the config itself writes, with {instruction} and {input} for the columns."""
    kind = {key: value for key, value in kind.items() if value is not None and value != ""}
    field = {name: kind.pop(f"field_{name}", name) for name in ("instruction", "input", "output")}
    text = kind.pop("format", None)
    for key, value in kind.items():
        draft.leave(f"{at}.{key}", value, "a prompt has one form here, that of columns.prompt")
    if text is None:
        return {"format": "alpaca", "columns": renamed(field)} if renamed(field) else {"format": "alpaca"}
    for name in ("instruction", "input"):
        text = str(text).replace(f"{{{name}}}", f"{{{field[name]}}}")
    return {"format": "prompt_completion", "columns": {"prompt": text, "completion": field["output"]}}


def _list_the_rest(draft: Draft, left: dict[str, Any], at: str) -> None:
    """What else the config says about a data set."""
    for key, value in left.items():
        if value is None or key == "ds_type":
            draft.leave(f"{at}.{key}", value, "told by the file" if value else "it is empty", needless=True)
        elif key == "roles_to_train" and set(names_in(value)) <= {"assistant", "gpt"}:
            draft.leave(f"{at}.{key}", value, "assistant turns are trained", needless=True)
        elif key == "drop_system_message" and value is True:
            draft.put("data.system_mode", "drop", f"{at}.{key}", value)
        elif key in ("train_on_eos", "preprocess_shards", "trust_remote_code") and value in ("turn", False):
            draft.leave(f"{at}.{key}", value, "it is so, or off", needless=True)
        else:
            draft.leave(f"{at}.{key}", value, "a source has no such key here")
