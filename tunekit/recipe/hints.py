"""What was probably meant by a key that does not exist: another section's, another tool's, or one typed wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from tunekit.recipe.parse import KeyPath, dotted
from tunekit.recipe.schema import SYNONYMS, Recipe

FOREIGN = {
    "base_model": ("axolotl", "model.name_or_path"),
    "model_name_or_path": ("transformers", "model.name_or_path"),
    "model_name": ("other tools", "model.name_or_path"),
    "model_revision": ("TRL", "model.revision"),
    "revision_of_model": ("axolotl", "model.revision"),
    "torch_dtype": ("older transformers", "model.dtype"),
    "bf16": ("transformers", "model.dtype"),
    "fp16": ("transformers", "model.dtype"),
    "flash_attn": ("LLaMA-Factory", "model.attn_implementation"),
    "attn_impl": ("ms-swift", "model.attn_implementation"),
    "flash_attention": ("axolotl", "model.attn_implementation"),
    "use_peft": ("TRL", "adapter.type"),
    "finetuning_type": ("LLaMA-Factory", "adapter.type"),
    "tuner_type": ("ms-swift", "adapter.type"),
    "peft_config": ("LLaMA-Factory", "adapter"),
    "lora": ("other tools", "adapter"),
    "lora_r": ("axolotl and TRL", "adapter.r"),
    "lora_rank": ("LLaMA-Factory", "adapter.r"),
    "rank": ("other tools", "adapter.r"),
    "lora_alpha": ("peft", "adapter.alpha"),
    "lora_dropout": ("peft", "adapter.dropout"),
    "lora_target": ("LLaMA-Factory", "adapter.target_modules"),
    "lora_target_modules": ("TRL", "adapter.target_modules"),
    "lora_target_linear": ("axolotl", "adapter.target_modules"),
    "peft_use_dora": ("axolotl", "adapter.use_dora"),
    "init_weights": ("ms-swift", "adapter.init_lora_weights"),
    "unfrozen_parameters": ("axolotl", "freeze.layers"),
    "freeze_trainable_layers": ("LLaMA-Factory", "freeze.layers"),
    "dataset": ("LLaMA-Factory and ms-swift", "data.train"),
    "datasets": ("axolotl", "data.train"),
    "dataset_name": ("TRL", "data.train"),
    "train_dataset": ("LLaMA-Factory", "data.train"),
    "eval_dataset": ("LLaMA-Factory", "data.eval"),
    "test_datasets": ("axolotl", "data.eval"),
    "val_size": ("LLaMA-Factory", "data.eval_split"),
    "val_set_size": ("axolotl", "data.eval_split"),
    "split_dataset_ratio": ("ms-swift", "data.eval_split"),
    "sequence_len": ("axolotl", "data.max_length"),
    "cutoff_len": ("LLaMA-Factory", "data.max_length"),
    "max_seq_length": ("older TRL", "data.max_length"),
    "max_seq_len": ("torchtune", "data.max_length"),
    "excess_length_strategy": ("axolotl", "data.overlong"),
    "truncation_mode": ("TRL", "data.overlong"),
    "truncation_strategy": ("ms-swift", "data.overlong"),
    "sample_packing": ("axolotl", "data.packing"),
    "neat_packing": ("LLaMA-Factory", "data.packing"),
    "assistant_only_loss": ("TRL", "data.loss_on"),
    "completion_only_loss": ("TRL", "data.loss_on"),
    "train_on_inputs": ("axolotl", "data.loss_on"),
    "train_on_prompt": ("LLaMA-Factory", "data.loss_on"),
    "roles_to_train": ("axolotl", "data.loss_on"),
    "mask_history": ("LLaMA-Factory", "data.loss_on"),
    "loss_scale": ("ms-swift", "data.loss_on"),
    "template": ("LLaMA-Factory", "data.chat_template"),
    "chat_template_path": ("TRL", "data.chat_template"),
    "default_system": ("LLaMA-Factory", "data.system"),
    "default_system_message": ("axolotl", "data.system"),
    "lr": ("other tools", "train.learning_rate"),
    "epochs": ("other tools", "train.num_train_epochs"),
    "num_epochs": ("axolotl", "train.num_train_epochs"),
    "micro_batch_size": ("axolotl", "train.per_device_train_batch_size"),
    "batch_size": ("other tools", "train.per_device_train_batch_size or train.global_batch_size"),
    "optimizer": ("axolotl", "train.optim"),
    "lr_scheduler": ("axolotl", "train.lr_scheduler_type"),
    "disable_gradient_checkpointing": ("LLaMA-Factory", "train.activation_checkpointing"),
    "group_by_length": ("older transformers", "train.sampling"),
    "train_sampling_strategy": ("transformers", "train.sampling"),
    "evaluation_strategy": ("older transformers", "eval.steps"),
    "eval_strategy": ("transformers", "eval.steps"),
    "eval_steps": ("transformers", "eval.steps"),
    "save_strategy": ("transformers", "save.steps"),
    "save_steps": ("transformers", "save.steps"),
    "save_total_limit": ("transformers", "save.total_limit"),
    "resume_from_checkpoint": ("transformers", "resume"),
    "auto_resume_from_checkpoints": ("axolotl", "resume"),
    "overwrite_output_dir": ("older transformers", "resume"),
}
LEAST_LIKENESS = 0.6


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _sections(inner, f"{prefix}.{name}" if prefix else name)


SECTIONS = dict(_sections(Recipe))


def _likeness(key: str, name: str) -> float:
    return SequenceMatcher(None, key.lower(), name.lower()).ratio()


def unknown_key(path: KeyPath) -> tuple[str, str]:
    """What to say about a key that does not exist, and the dotted path of the key probably meant ("" if none)."""
    *parents, key = path
    section = ".".join(part for part in parents if isinstance(part, str))
    name, prefix = str(key), f"{dotted(tuple(parents))}." if parents else ""
    if synonym := SYNONYMS.get((section, name)):
        return f"is another name of {synonym[1]}, which is given too; remove one of the two", dotted(synonym)
    if name.lower() in FOREIGN:
        tool, ours = FOREIGN[name.lower()]
        return f"unknown key; what {tool} calls {name} is {ours} here", ours
    owners = [f"{owner}.{name}" if owner else name for owner, model in SECTIONS.items() if name in model.model_fields]
    if owners:
        return f"unknown key here; it belongs at {' or '.join(owners)}", owners[0]
    own = list(SECTIONS[section].model_fields)
    if close := get_close_matches(name.lower(), own, 1, LEAST_LIKENESS):
        return f"unknown key; did you mean {prefix}{close[0]}?", prefix + close[0]
    likeness, nearest = max(
        (_likeness(name, leaf), f"{owner}.{leaf}" if owner else leaf)
        for owner, model in SECTIONS.items()
        for leaf in model.model_fields
    )
    if likeness >= LEAST_LIKENESS + 0.1:
        return f"unknown key; did you mean {nearest}?", nearest
    return f"unknown key; {section or 'a recipe'} has the keys {', '.join(own)}", ""


def nearest_value(value: Any, accepted: list[str]) -> str:
    """`; did you mean x?` for a word close to one of those accepted, else nothing."""
    close = get_close_matches(value.lower(), accepted, 1, LEAST_LIKENESS) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""
