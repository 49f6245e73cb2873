"""How the values of other tools' keys are called here. Each function raises `Left` for one that has no counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.recipe.convert.draft import Left, truth
from tunekit.recipe.convert.sources import names_in
from tunekit.recipe.gaps import ONE_QUANTISATION

SETTINGS_OF_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def nothing(value: Any) -> Any:
    """A value that is the same here."""
    return value


def _off(why: str = "it is off") -> Left:
    return Left(why, needless=True)


def flag(on: Any, off: Any) -> Callable[[Any], Any]:
    """What a truth value stands for, either way; a `Left` is raised."""

    def translate(value: Any) -> Any:
        return _chosen(on if truth(value) else off)

    return translate


def always(left: Left) -> Callable[[Any], Any]:
    """For a key of which no value has a counterpart."""
    return lambda value: _chosen(left)


def _chosen(result: Any) -> Any:
    if isinstance(result, Left):
        raise Left(result.why, needless=result.needless)
    return result


def choice(names: dict[str, Any], why: str) -> Callable[[Any], Any]:
    """What each word stands for; another one has no counterpart."""

    def translate(value: Any) -> Any:
        return _chosen(names.get(str(value).lower(), Left(why)))

    return translate


def _bf16(value: Any) -> str:
    if value == "auto":
        raise Left("model.dtype: auto is the default", needless=True)
    if value == "full" or truth(value):
        return "bfloat16"
    raise Left("model.dtype: auto takes bfloat16 where it is in hardware; float32 would be full precision")


def _modules(value: Any) -> Any:
    """Module names as a list; the word for all linear layers as peft has it."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    return "all-linear" if value in (["all"], ["all-linear"]) else value


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _metric(value: Any) -> Any:
    """A name of the held-out loss: metrics that a config computes with code of its own are not known here."""
    if str(value).removeprefix("eval_") in ("loss", "perplexity"):
        return value
    raise Left("is not computed; eval.metrics has the metrics that are")


def _steps(value: Any) -> Any:
    """A number of steps, and not a share of them."""
    if isinstance(value, float) and 0 < value < 1:
        raise Left("a share of all steps; here a number of optimizer steps")
    return value


def _max_steps(value: Any) -> Any:
    if isinstance(value, (int, float)) and value <= 0:
        raise Left("the epochs decide", needless=True)
    return value


def _roles(value: Any) -> str:
    if set(names_in(value)) <= {"assistant", "gpt"}:
        return "assistant"
    raise Left("assistant turns are trained, or all tokens (data.loss_on: all)")


def _standard(name: str, why: str) -> Callable[[Any], Any]:
    def translate(value: Any) -> Any:
        raise Left(why, needless=value == SETTINGS_OF_ADAM[name])

    return translate


_ATTENTION = Left("model.attn_implementation: auto computes each example apart, without padding", needless=True)
_SO = Left("model.quantization is so", needless=True)
_BNB = ("bnb", "bitsandbytes")
_DOUBLE = ("use_bnb_nested_quant", "double_quantization", "bnb_4bit_use_double_quant")
_SAVE = "save.steps counts optimizer steps"

TRANSLATE: dict[str, Callable[[Any], Any]] = {
    "bf16": _bf16,
    "bfloat16": flag("bfloat16", _off()),
    "pure_bf16": flag("bfloat16", _off()),
    "float32": flag("float32", _off()),
    "load_in_4bit": flag("4bit", _off()),
    "load_in_8bit": flag("8bit", _off()),
    **dict.fromkeys(("bnb_4bit_quant_type", "quantization_type"), choice({"nf4": _SO}, ONE_QUANTISATION)),
    **dict.fromkeys(("quantization_method", "quant_method"), choice(dict.fromkeys(_BNB, _SO), ONE_QUANTISATION)),
    **dict.fromkeys(_DOUBLE, flag(_SO, Left(ONE_QUANTISATION))),
    "flash_attention": flag(_ATTENTION, _off()),
    "sdp_attention": flag(_ATTENTION, _off()),
    "xformers_attention": flag(_ATTENTION, _off()),
    "eager_attention": flag("eager", _off()),
    "flex_attention": flag("flex_attention", _off()),
    "flash_attn": choice(dict.fromkeys(("auto", "disabled", "sdpa", "fa2", "fa3"), _ATTENTION), "not known"),
    "attn_implementation": lambda value: value if value in ("eager", "flex_attention") else _chosen(_ATTENTION),
    "use_peft": flag("lora", "none"),
    "lora_target": _modules,
    "lora_target_modules": _modules,
    "target_modules": _modules,
    "lora_target_linear": flag("all-linear", _off()),
    "lora_target_parameters": _names,
    "lora_modules_to_save": _names,
    "additional_target": _names,
    "pissa_init": flag("pissa", _off()),
    "unfrozen_parameters": always(Left("freeze.layers names the layers that stay")),
    "freeze_trainable_layers": always(Left("freeze.layers names the layers that stay")),
    "freeze_trainable_modules": always(Left("freeze.layers names the layers that stay")),
    "train_on_inputs": flag("all", "assistant"),
    "train_on_prompt": flag("all", "assistant"),
    "mask_history": flag("last", _off()),
    "roles_to_train": _roles,
    "excess_length_strategy": choice({"drop": "drop", "truncate": "truncate", "raise": "error"}, "not known"),
    "truncation_mode": choice({"keep_start": "truncate"}, "the start of a row that is too long is kept, not its end"),
    "packing_strategy": choice({"bfd": _off("examples are packed whole")}, "examples are packed whole, never cut"),
    "drop_system_message": flag("drop", _off()),
    "disable_gradient_checkpointing": flag(on=False, off=True),
    "train_sampling_strategy": choice(
        {"random": "random", "sequential": "sequential"}, "rows are laid out flat, without padding to save"
    ),
    "disable_shuffling": flag("sequential", _off()),
    "curriculum_sampling": flag("sequential", _off()),
    "shuffle_dataset": flag("random", _off("train.sampling says the order")),
    "max_steps": _max_steps,
    "eval_steps": _steps,
    "save_steps": _steps,
    "logging_steps": _steps,
    "save_strategy": choice({"steps": _off("save.steps says when")}, _SAVE),
    "metric_for_best_model": _metric,
    "auto_resume_from_checkpoints": flag("auto", _off()),
    **{name: _standard(name, "the optimizer keeps its own defaults") for name in SETTINGS_OF_ADAM},
}
