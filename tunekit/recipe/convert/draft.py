"""A recipe in the making: what is known of it, and what of the original went nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tunekit.recipe.explain import refusal, shown
from tunekit.recipe.foreign import VALUES
from tunekit.recipe.hints import SECTIONS
from tunekit.recipe.parse import scalar

ON = ("true", "yes", "on", "1")
OFF = ("false", "no", "off", "0")


class Note(NamedTuple):
    """A key of the original that is not in the recipe, and why; `ours` is the key whose value it would have been."""

    key: str
    value: Any
    why: str
    ours: str = ""


class Left(Exception):
    """A value that goes nowhere: it has no counterpart, or (`needless`) nothing is lost without it."""

    def __init__(self, why: str, *, needless: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.needless = needless


@dataclass
class Draft:
    """values: by our dotted key;  train, eval: sources;  remarks: what stands beside a value;  done: keys seen to

    said: those of our keys of which the original says something, whether or not that could be taken over
    """

    tool: str
    values: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    eval: list[dict[str, Any]] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)
    origins: dict[str, Note] = field(default_factory=dict)
    missing: list[Note] = field(default_factory=list)
    needless: list[Note] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    @property
    def stage(self) -> str:
        return str(self.values.get("stage", "sft"))

    def put(self, ours: str, value: Any, key: str, original: Any) -> None:
        """Takes over a value, or notes why it cannot be."""
        self.said.add(ours)
        value = coerced(ours, value)
        path = tuple(ours.split("."))
        if why := refusal(path, value):
            self.leave(key, original, f"{ours}: {why}", ours=ours)
        elif ours in self.values:
            same, other = self.values[ours] == value, self.origins[ours].key
            why = f"{other} says the same" if same else f"{ours} is {shown(self.values[ours])} already, by {other}"
            self.leave(key, original, why, needless=same)
        else:
            self.values[ours] = value
            self.origins[ours] = Note(key, original, "")

    def leave(self, key: str, value: Any, why: str, *, needless: bool = False, ours: str = "") -> None:
        (self.needless if needless else self.missing).append(Note(key, value, why, ours))
        if ours and not needless:
            self.said.add(ours)

    def differ(self, sentence: str) -> None:
        if sentence not in self.differences:
            self.differences.append(sentence)

    def withdraw(self, ours: str, why: str, *, needless: bool = False) -> None:
        """Takes a value out again, that of the original and not one that we added."""
        if ours in self.values:
            del self.values[ours]
            self.remarks.pop(ours, None)
            if note := self.origins.get(ours):
                self.leave(note.key, note.value, why, needless=needless)


def truth(value: Any) -> bool:
    """A truth value as YAML 1.1 and people write it. Raises `Left`."""
    word = str(value).strip().lower()
    if word not in ON + OFF:
        raise Left("is neither true nor false")
    return word in ON


def coerced(ours: str, value: Any) -> Any:
    """The value as our key has it: "2e-5" as a number, 3.0 as a whole one, `yes` as true, `adamw` as `adamw_torch`."""
    known = VALUES.get(ours, {}).get(str(value).lower(), " ")
    if " " not in known:
        return known
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ON[:3] + OFF[:3] and not refusal(tuple(ours.split(".")), True):
            return word in ON
        number = scalar(value.strip().replace("_", ""))
        if isinstance(number, (int, float)) and refusal(tuple(ours.split(".")), value):
            return coerced(ours, number)
    if isinstance(value, float) and value.is_integer() and refusal(tuple(ours.split(".")), value):
        return int(value)
    return value


def default_of(ours: str) -> Any:
    """The default of our key; of a required one None."""
    section, _, name = ours.rpartition(".")
    found = SECTIONS[section].model_fields[name]
    return None if found.is_required() else found.default
