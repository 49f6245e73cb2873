"""Keys outside the data, one by one: which of ours they are, and what their values are called here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.recipe.convert.draft import Draft, Left, truth
from tunekit.recipe.convert.values import TRANSLATE, nothing
from tunekit.recipe.foreign import FOREIGN, LLAMA_FACTORY, TRL
from tunekit.recipe.forms import EXTENDS, SYNONYMS
from tunekit.recipe.hints import SECTIONS, owners_of
from tunekit.recipe.losses import LOSSES

EMPTY = "it is empty"
SOURCES = ("data.train", "data.eval.")
OFF = "it is off"
TRACKERS = {
    "wandb_project": ("wandb", "WANDB_PROJECT"),
    "use_wandb": ("wandb", ""),
    "use_tensorboard": ("tensorboard", ""),
    "use_mlflow": ("mlflow", ""),
    "mlflow_tracking_uri": ("mlflow", "MLFLOW_TRACKING_URI"),
    "use_trackio": ("trackio", ""),
}
# Keys of TRL that null says something of; of any other key it says nothing.
NULLS = {
    "max_length": ("data.max_length", None),
    "gradient_checkpointing": ("train.activation_checkpointing", False),
}
SCHEDULES = {
    **dict.fromkeys(
        ("cosine_with_min_lr", "cosine_warmup_with_min_lr"),
        "the learning rate ends at zero; {name} ends at its min_lr, or at a share of the peak",
    ),
    "cosine_with_restarts": "the learning rate falls once; {name} starts again where its num_cycles is over 1",
    "polynomial": "the learning rate falls in a line to zero; {name} ends at its lr_end, and with power other than 1 "
    "falls in no line",
}


def convert_key(draft: Draft, key: str, value: Any) -> None:
    """Takes over one key of the original that the data did not take."""
    if key in draft.done:
        return
    if value is None and draft.tool == TRL and key in NULLS:
        draft.put(*NULLS[key], key, value)
        return
    if value is None or value in ("", [], {}):
        draft.leave(key, value, EMPTY, needless=True)
        return
    try:
        if key in SPECIAL:
            SPECIAL[key](draft, key, value)
            return
        translated = TRANSLATE.get(key, nothing)(value)
        if not (ours := _ours(key)):
            raise _without_counterpart(draft.tool, key, value)
        draft.put(ours, translated, key, value)
    except Left as left:
        draft.leave(key, value, left.why, needless=left.needless, ours="" if key in SPECIAL else _ours(key))


def _ours(key: str) -> str:
    """Our key, dotted, for one of theirs; "" if there is none or several."""
    known = FOREIGN.get(key)
    synonyms = [".".join(ours) for (_, theirs), ours in SYNONYMS.items() if theirs == key]
    owners = [known.ours.partition(" or ")[0]] if known else owners_of(key) or synonyms
    # Sources of rows and whole sections are no values.
    owners = [owner for owner in owners if owner not in (*SECTIONS, EXTENDS) and not owner.startswith(SOURCES)]
    return owners[0] if len(owners) == 1 else ""


def _without_counterpart(tool: str, key: str, value: Any) -> Left:
    known = FOREIGN.get(key)
    if known is None:
        return Left(f"tunekit does not know this key of {tool}")
    off = value is False or value == 0
    why = known.why or f"what it is about stands in {known.ours} here"
    return Left(OFF if off else why, needless=known.needless or off)


def _model(draft: Draft, key: str, value: Any) -> None:
    draft.put("model.name_or_path", value, key, value)


def _adapter(draft: Draft, key: str, value: Any) -> None:
    if value == "qlora":
        draft.put("adapter.type", "lora", key, value)
        draft.put("model.quantization", "4bit", key, value)
        return
    if value in ("lora", "full"):
        draft.put("adapter.type", "none" if value == "full" else value, key, value)
        return
    draft.values["adapter.type"] = "none"
    raise Left("no such adapter here; as the recipe stands, all weights are trained (adapter: lora, or freeze.layers)")


def _peft_config(draft: Draft, key: str, value: Any) -> None:
    """LLaMA-Factory's nested form."""
    names = {"name": "adapter.type", "r": "adapter.r", **{f"lora_{k}": f"adapter.{k}" for k in ("alpha", "dropout")}}
    for inner, setting in value.items() if isinstance(value, dict) else ():
        if ours := names.get(inner) or _ours(inner):
            draft.put(ours, TRANSLATE.get(inner, nothing)(setting), f"{key}.{inner}", setting)
        else:
            draft.leave(f"{key}.{inner}", setting, f"tunekit does not know this key of {LLAMA_FACTORY}")


def _warmup_steps(draft: Draft, key: str, value: Any) -> None:
    share = isinstance(value, float) and 0 < value < 1  # transformers takes both under this name
    draft.put("train.warmup_ratio" if share else "train.warmup_steps", value, key, value)


def _schedule(draft: Draft, key: str, value: Any) -> None:
    draft.put("train.lr_scheduler_type", value, key, value)
    if why := SCHEDULES.get(str(value)):
        draft.differ(why.format(name=value))


def _tracker(draft: Draft, key: str, value: Any) -> None:
    name, variable = TRACKERS[key]
    if not variable and not truth(value):
        raise Left(OFF, needless=True)
    _add_tracker(draft, name, key, value)
    if variable:
        raise Left(f"set {variable}={value} in the environment")


def _report_to(draft: Draft, key: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    if names in (["none"], ["None"]):
        raise Left("no tracker is the default of report_to", needless=True)
    for name in names:
        _add_tracker(draft, name, key, value)


def _add_tracker(draft: Draft, name: str, key: str, value: Any) -> None:
    known = draft.values.pop("report_to", [])
    draft.put("report_to", [name], key, value)
    draft.values["report_to"] = list(dict.fromkeys([*known, *draft.values.pop("report_to", [])]))


def _eval_strategy(draft: Draft, key: str, value: Any) -> None:
    if value is False or value == "no":
        draft.put("data.eval_split", 0, key, value)
    elif value in ("steps", "epoch"):
        raise Left("eval.steps says when; null is once an epoch", needless=True)
    else:
        raise Left("eval.steps counts optimizer steps; null is once an epoch")


def _gradient_checkpointing(draft: Draft, key: str, value: Any) -> None:
    on = True if isinstance(value, str) and value in ("offload", "offload_disk", "unsloth") else truth(value)
    draft.put("train.activation_checkpointing", on, key, value)


def _chat_template(draft: Draft, key: str, value: Any) -> None:
    """A file is taken over; a name stands for a template that only the other tool has."""
    if "{" in str(value):
        todo = f"TODO: save the template that {draft.tool} has under {key} as a .jinja file, and name the file here"
        draft.put("data.chat_template", todo, key, value)
    elif value == "tokenizer_default":
        raise Left("the tokenizer's own template is the default", needless=True)
    elif value == "jinja":
        raise Left("chat_template_jinja holds it", needless=True)
    elif str(value).endswith((".jinja", ".jinja2", ".j2")) or key == "chat_template_path":
        draft.put("data.chat_template", value, key, value)
    else:
        raise Left(f"a template of {draft.tool}'s own; the tokenizer's is used, or the file in data.chat_template")


def _neat_packing(draft: Draft, key: str, value: Any) -> None:
    """LLaMA-Factory's packing that keeps examples apart; it wins over `packing`, which does not."""
    if not truth(value):
        raise Left(OFF, needless=True)
    draft.withdraw("data.packing", f"{key} wins", needless=True)
    draft.put("data.packing", True, key, value)


def _special_tokens(draft: Draft, key: str, value: Any) -> None:
    if isinstance(value, dict) and set(value) == {"pad_token"}:
        raise Left(FOREIGN["pad_token"].why, needless=True)
    raise Left(FOREIGN[key].why)


def _pref_ftx(draft: Draft, key: str, value: Any) -> None:
    """LLaMA-Factory adds it to the likelihood that ORPO's loss has of its own."""
    own = LOSSES["orpo"].sft_weight if draft.values.get("objective.loss") == "orpo" else 0.0
    draft.put("objective.sft_weight", own + value if own and isinstance(value, (int, float)) else value, key, value)


def _supervised(draft: Draft, key: str, value: Any) -> None:
    raise Left("the command says what is done", needless=True)


SPECIAL: dict[str, Callable[[Draft, str, Any], None]] = {
    "model": _model,
    "adapter": _adapter,
    "finetuning_type": _adapter,
    "peft_config": _peft_config,
    "warmup_steps": _warmup_steps,
    "lr_scheduler_type": _schedule,
    "lr_scheduler": _schedule,
    **dict.fromkeys(TRACKERS, _tracker),
    "report_to": _report_to,
    "eval_strategy": _eval_strategy,
    "evaluation_strategy": _eval_strategy,
    "gradient_checkpointing": _gradient_checkpointing,
    "activation_checkpointing": _gradient_checkpointing,
    "chat_template": _chat_template,
    "chat_template_jinja": _chat_template,
    "chat_template_path": _chat_template,
    "template": _chat_template,
    "special_tokens": _special_tokens,
    "neat_packing": _neat_packing,
    "pref_ftx": _pref_ftx,
    "stage": _supervised,
}
