"""What the data sets of all three tools have in common."""

from __future__ import annotations

import re
from typing import Any

# How a message names its role and its content: the format of the rows, and its key for the messages.
CHATS = {("role", "content"): ("messages", "messages"), ("from", "value"): ("sharegpt", "conversations")}
ROLES = {"system", "user", "assistant", "tool", "human", "gpt", "observation", "function_call"}


def looks_local(path: str) -> bool:
    """Whether the path is one of a file or folder of this machine and no id of the hub."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or re.search(r"\.[A-Za-z]\w*$", path) is not None


def names_in(value: Any) -> list[str]:
    """One name, several in a list, or several with commas between them, as a list."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")] if value else []
    return [str(name) for name in value] if isinstance(value, list) else [str(value)] if value else []


def dict_or_empty(value: Any) -> dict[str, Any]:
    """A copy of a section; something else that stands in its place says nothing."""
    return dict(value) if isinstance(value, dict) else {}


def renamed(columns: dict[str, Any]) -> dict[str, str]:
    """Only those columns that do not have our name anyway."""
    return {ours: theirs for ours, theirs in columns.items() if theirs and isinstance(theirs, str) and theirs != ours}
