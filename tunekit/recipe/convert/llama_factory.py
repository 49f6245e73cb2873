"""The data sets of a LLaMA-Factory config: names that `dataset_info.json` in `dataset_dir` explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tunekit.recipe.convert.draft import Draft
from tunekit.recipe.convert.sources import CHATS, ROLES, dict_or_empty, names_in, renamed
from tunekit.recipe.parse import scalar

REGISTRY = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
# What a message calls its role and its content, by the formatting, where the registry does not say.
TAGS = {"sharegpt": ("from", "value"), "openai": ("role", "content")}
PAIR = {"chosen": "chosen", "rejected": "rejected"}
RAW_TEXTS = (
    "a prompt and answers that are texts are trained as they are, without the chat template that LLaMA-Factory writes "
    "them in; write them as messages for that"
)
TEMPLATE = "rows are written in the model's own chat template and not in a `template` of LLaMA-Factory"
PIECES = (
    "a text over data.max_length is one row, to which data.overlong applies; LLaMA-Factory joins all texts, cuts "
    "them every cutoff_len tokens and trains on all pieces"
)
SHARES = "weights are shares of the trained tokens; interleave_probs are shares of the rows"


class Registry(NamedTuple):
    """The folder of the data, and what is known of each data set; {} where there is no registry."""

    folder: Path
    entries: dict[str, Any]


def read_data(draft: Draft, raw: dict[str, Any], folder: Path) -> None:
    """Takes over `dataset`, `eval_dataset` and how they are mixed, by the registry if it can be found."""
    registry = _registry(str(raw.get("dataset_dir") or "data"), folder)
    pretraining = raw.get("stage") == "pt"
    for key, sources in (("dataset", draft.train), ("eval_dataset", draft.eval)):
        draft.done.add(key)
        for name in names_in(raw.get(key)):
            sources.append(_source(draft, name, registry, pretraining))
    if raw.get("train_dataset"):
        draft.done.add("train_dataset")
        draft.train.append({"path": _lacking(str(raw["train_dataset"]), "it is a list of data sets, in a file")})
    if pretraining:
        draft.done.add("stage")
        draft.put("data.loss_on", "all", "stage", "pt")
        if raw.get("packing") is None:
            draft.values["data.packing"] = True
            draft.remarks["data.packing"] = "LLaMA-Factory's default for stage: pt"
        if raw.get("packing") in (None, True):
            draft.differ(PIECES)
    _mix(draft, raw)
    draft.differ(TEMPLATE)


def _registry(directory: str, folder: Path) -> Registry:
    """Where the data lies, and what is known of it: beside the config, above it, or where the command is given."""
    here = Path.cwd()
    for root in (folder, *folder.resolve().parents, Path()):
        file = root / directory / REGISTRY
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = root / directory
        return Registry(found.relative_to(here) if found.is_relative_to(here) else found, dict_or_empty(known))
    return Registry(Path(directory), {})


def _lacking(name: str, why: str) -> str:
    return f"TODO: the file or hub id of LLaMA-Factory's data set {name} ({why})"


def _source(draft: Draft, name: str, registry: Registry, pretraining: bool) -> dict[str, Any]:
    folder, entries = registry
    known = dict_or_empty(entries.get(name))
    if not known:
        why = f"not in {folder / REGISTRY}" if entries else f"no {REGISTRY} was found"
        return {"path": _lacking(name, why)}
    file, hub = known.pop("file_name", None), known.pop("hf_hub_url", None)
    path = str(folder / file) if file else hub
    source: dict[str, Any] = {"path": path or _lacking(name, f"the registry has {', '.join(known) or 'nothing'}")}
    where = {"name": known.pop("subset", None), "split": known.pop("split", None)}
    if not file:
        source |= {key: value for key, value in where.items() if value}
    ranking = known.pop("ranking", False)
    if ranking and draft.stage in ("sft", "kto"):
        draft.leave(f"{name}.ranking", True, f"a data set of preferences, and not one for stage {draft.stage}")
    source |= _format(draft, name, known, pretraining) if draft.stage == "sft" else _answers(draft, name, known)
    for key, value in known.items():
        other_hub = key in ("ms_hub_url", "om_hub_url")
        why = "another hub" if other_hub else "a source has no such key here"
        draft.leave(f"{name}.{key}", value, why, needless=other_hub)
    return source


def _format(draft: Draft, name: str, known: dict[str, Any], pretraining: bool) -> dict[str, Any]:
    """`format` and `columns` of a source; takes the keys that say them."""
    columns, tags = dict_or_empty(known.pop("columns", None)), dict_or_empty(known.pop("tags", None))
    formatting = known.pop("formatting", "alpaca")
    if pretraining:
        format, mapping = "text", {"text": columns.pop("prompt", "text")}
    elif formatting in TAGS:
        format, mapping = _chat(draft, name, formatting, columns, tags)
    elif formatting == "alpaca":
        format = "alpaca"
        mapping = {ours: columns.pop(theirs) for theirs, ours in ALPACA.items() if theirs in columns}
    else:
        draft.leave(f"{name}.formatting", formatting, "no format of this name; the columns of the first row decide")
        format, mapping = "", {}
    for key, value in columns.items():
        draft.leave(f"{name}.columns.{key}", value, "a row has no such part here")
    return {key: value for key, value in (("format", format), ("columns", renamed(mapping))) if value}


def _answers(draft: Draft, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """`format` and `columns` of a source of pairs, or of answers that are labelled."""
    columns, tags = dict_or_empty(known.pop("columns", None)), dict_or_empty(known.pop("tags", None))
    formatting = known.pop("formatting", "alpaca")
    kind, parts = ("unpaired", {"label": "kto_tag"}) if draft.stage == "kto" else ("preference", PAIR)
    mapping = {ours: columns.pop(theirs) for ours, theirs in parts.items() if theirs in columns}
    if formatting in TAGS:
        _, chat = _chat(draft, name, formatting, columns, tags)
        mapping |= chat
    else:
        prompt, query = columns.pop("prompt", "instruction"), columns.pop("query", None)
        mapping["prompt"] = f"{{{prompt}}}\n{{{query}}}" if query else prompt
        if draft.stage == "kto":
            mapping["completion"] = columns.pop("response", "output")
        draft.differ(RAW_TEXTS)
    for key, value in columns.items():
        draft.leave(f"{name}.columns.{key}", value, "a row has no such part here")
    return {"format": kind, **({"columns": renamed(mapping)} if renamed(mapping) else {})}


def _chat(
    draft: Draft, name: str, formatting: str, columns: dict[str, Any], tags: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    role, content = TAGS[formatting]
    pair = (tags.pop("role_tag", role), tags.pop("content_tag", content))
    if pair not in CHATS:
        draft.leave(f"{name}.tags", list(pair), "messages have role and content, or from and value")
    format, ours = CHATS.get(pair, CHATS[role, content])
    for key, value in tags.items():
        known = value in ROLES
        why = "this name of a role is known" if known else f"roles are called {', '.join(sorted(ROLES))}"
        draft.leave(f"{name}.tags.{key}", value, why, needless=known)
    mapping = {ours: columns.pop("messages", CHATS[role, content][1])}
    return format, mapping | {key: columns.pop(key) for key in ("tools", "system") if key in columns}


def _mix(draft: Draft, raw: dict[str, Any]) -> None:
    shares = raw.get("interleave_probs")
    weights = [scalar(str(part)) for part in names_in(shares)]
    draft.done.update(("interleave_probs", "mix_strategy") if shares or raw.get("mix_strategy") else ())
    if raw.get("mix_strategy") == "concat":
        draft.leave("mix_strategy", "concat", "sources without weights are put together", needless=True)
    elif raw.get("mix_strategy") and not weights:
        draft.leave("mix_strategy", raw["mix_strategy"], "give each source a weight, its share of the trained tokens")
    if len(weights) == len(draft.train):
        for source, weight in zip(draft.train, weights, strict=True):
            source["weight"] = weight
        if weights:
            draft.leave("mix_strategy", raw.get("mix_strategy"), "sources with weights are mixed", needless=True)
            draft.differ(SHARES)
    elif weights:
        draft.leave("interleave_probs", shares, "not as many as there are data sets")
