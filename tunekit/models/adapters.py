"""Which weights are trained: LoRA through peft (this is the only door to it), or all of them less the frozen ones."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from tunekit.errors import RecipeError
from tunekit.models.lora import use_fused_layer
from tunekit.models.quantised import num_weights

log = logging.getLogger("tunekit")

__all__ = ["AutoPeftModelForCausalLM", "PeftModel", "add_lora", "freeze", "load_adapter", "trained_parameters"]

NEW, START, JOINED = "default", "start", "joined"  # names of adapters: the trained one, one before it, both
# Of two adapters whose sum is one again: no magnitudes, nothing trained whole, no beginning that changes the base.
SUMMED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "modules_to_save": (None, [], ()),
    "target_parameters": (None, [], ()),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
STATE_SPACE = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}  # peft refuses LoRA on their out_proj
HEADS = ("classifier", "score")  # of sequence classification
ROUTERS = ("gate", "router")  # of mixture-of-experts layers: linear by type, but LoRA on them unbalances the experts


def add_lora(
    model: PreTrainedModel, *, r: int, alpha: float, dropout: float, task_type: str = "CAUSAL_LM", **options: Any
) -> PeftModel:
    """Puts LoRA (Hu et al. 2021, arXiv:2106.09685) beside the target modules; the adapter's weights are fp32.

    `options` are peft's `LoraConfig` names: `target_modules`, `target_parameters`, `use_rslora`, `use_dora`,
    `init_lora_weights`, `modules_to_save`. Raises `RecipeError` where peft refuses them or finds no target.
    """
    routers: set[str] = set()
    if options.get("target_modules") == "all-linear":
        routers = {name.rpartition(".")[2] for name, _ in model.named_modules()}.intersection(ROUTERS)
        refused = {"out_proj"} if model.config.model_type in STATE_SPACE else set()
        heads = {*HEADS, "pre_classifier"} if task_type == "SEQ_CLS" else set()  # peft trains them whole
        options["exclude_modules"] = sorted(routers | refused | heads) or None
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    try:
        config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, task_type=task_type, **options)  # type: ignore[arg-type]
        use_fused_layer(config, model)
        # The commit, without which plain peft would load the base as it then is on the hub.
        adapted = get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RecipeError(f"adapter: {error}", f"Linear modules of this model: {', '.join(sorted(linear))}") from error
    whole_modules_in_fp32(adapted, model.dtype)
    for name, parameter in adapted.named_parameters():
        if routers.intersection(name.split(".")):  # peft adapts those of fused experts whatever is excluded
            parameter.requires_grad_(False)
    return adapted


def whole_modules_in_fp32(adapted: PeftModel, dtype: torch.dtype, name: str = NEW) -> None:
    """The modules that the adapter `name` has whole, in fp32 between parts of a model in `dtype`."""
    for path, module in adapted.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            last = path.rpartition(".")[2] in HEADS  # after which nothing comes that needs `dtype`
            _train_in_fp32(module.modules_to_save[name], torch.float32 if last else dtype)


def _train_in_fp32(module: nn.Module, dtype: torch.dtype) -> None:
    """fp32 weights for a module that is trained whole and gives `dtype`: peft leaves them in that of the model."""
    module.float()
    module.register_forward_pre_hook(lambda _, inputs: tuple(x.float() if x.is_floating_point() else x for x in inputs))
    module.register_forward_hook(lambda _, inputs, output: output.to(dtype))


def lora_settings(path: str) -> dict[str, Any]:
    """What the LoRA adapter at `path` is, under the keys of a recipe. Raises `RecipeError` for another kind."""
    config = lora_config(path)
    targets = config.target_modules
    return {
        "r": config.r,
        "alpha": float(config.lora_alpha),
        "dropout": config.lora_dropout,
        "target_modules": sorted(targets) if isinstance(targets, set | list) else targets,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": sorted(config.modules_to_save) if config.modules_to_save else None,
    }


def lora_config(path: str) -> LoraConfig:
    try:
        config = PeftConfig.from_pretrained(path)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise RecipeError(f"model: {path}: its adapter_config.json cannot be used: {error}") from error
    if not isinstance(config, LoraConfig):
        raise RecipeError(f"model: {path} is {config.peft_type} and no LoRA adapter", "Only those are trained here.")
    return config


@contextmanager
def fitting(path: str) -> Iterator[None]:
    """Tells where the adapter at `path` is damaged, or is another model's: `RecipeError`."""
    try:
        yield
    except (ValueError, RuntimeError, SafetensorError, OSError) as error:
        reason = "\n".join(str(error).splitlines()[:3])  # peft names every weight of another size
        raise RecipeError(f"model: the adapter {path} cannot be put on its base: {reason}") from error


def continue_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """The LoRA adapter at `path` on its base, to be trained on; its weights are fp32. Raises `RecipeError`."""
    config = lora_config(path)
    use_fused_layer(config, model)
    with fitting(path):
        adapted = PeftModel.from_pretrained(model, path, is_trainable=True, config=config)
    whole_modules_in_fp32(adapted, model.dtype)
    return adapted


def stack_adapter(model: PreTrainedModel, path: str, **lora: Any) -> PeftModel:
    """The adapter at `path` as it is, and beside it a new one that is trained: the sum of both acts.

    Raises `RecipeError` where the two cannot be saved as one adapter later.
    """
    for config, whose in ((lora_config(path).to_dict(), f"the adapter {path}"), (lora, "the new one")):
        if found := next((key for key, values in SUMMED.items() if config.get(key) not in values), None):
            raise RecipeError(
                f"adapter.start_from: new: {whose} has {found}: {config[found]}, and cannot be joined with another one",
                "Set adapter.start_from: merge_first.",
            )
    adapted = add_lora(model, **lora)
    with fitting(path):
        adapted.load_adapter(path, START)
    _activate_both(adapted)
    return adapted


def merge_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """`model` with the adapter at `path` added to its weights, in their precision. Raises `RecipeError`."""
    return merge(put_beside(model, path), path)


def put_beside(model: PreTrainedModel, path: str) -> PeftModel:
    """The adapter at `path` on `model`, whatever kind of model it was trained on. Raises `RecipeError`."""
    config = lora_config(path)
    config.task_type = None  # a reward model has another head than the language model of the adapter
    with fitting(path):
        return PeftModel.from_pretrained(model, path, config=config)


def merge(adapted: PeftModel, path: str) -> PreTrainedModel:
    """The base of `adapted` with its adapter, which came from `path`, in its weights. Raises `RecipeError`."""
    with fitting(path):
        merged: PreTrainedModel = adapted.merge_and_unload()
    merged.requires_grad_(True)  # peft leaves the weights of a base frozen
    return merged


@contextmanager
def joined(adapted: nn.Module) -> Iterator[None]:
    """Within the block two adapters that act together are one, as they are saved: products in another order."""
    if not isinstance(adapted, PeftModel) or START not in adapted.peft_config:
        yield
        return
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    # The joined adapter takes its settings from the first, but has both scales in its weights.
    first: Any = adapted.peft_config[START]
    adapted.peft_config[START] = replace(first, use_rslora=False, init_lora_weights=True)
    adapted.add_weighted_adapter([START, NEW], [1.0, 1.0], JOINED, combination_type="cat")
    adapted.base_model.set_adapter(JOINED)  # type: ignore[operator]
    try:
        yield
    finally:
        adapted.delete_adapter(JOINED)
        adapted.peft_config[START] = first
        _activate_both(adapted)
        for parameter in trained:  # also of an adapter that does not act here, such as a value function's
            parameter.requires_grad_(True)


def _activate_both(adapted: PeftModel) -> None:
    adapted.base_model.set_adapter([START, NEW])  # type: ignore[operator]
    for name, parameter in adapted.named_parameters():
        if f".{START}." in name:
            parameter.requires_grad_(False)


def save_adapter(adapted: PeftModel, folder: Path, base: str | None = None) -> None:
    """Writes the adapter of `adapted`; two that act together are written as one, whose rank is the sum of theirs.

    `base`: the path of the model that it belongs to, where that is not the one it was loaded from.
    """
    if base is not None:
        adapted.peft_config[NEW].base_model_name_or_path = base
    if START not in adapted.peft_config:
        adapted.save_pretrained(str(folder), selected_adapters=[NEW])
        return
    with joined(adapted):
        adapted.save_pretrained(str(folder), selected_adapters=[JOINED])
    for file in (folder / JOINED).iterdir():
        file.rename(folder / file.name)
    (folder / JOINED).rmdir()


def load_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """The adapter folder at `path` on top of its base model, for inference."""
    return PeftModel.from_pretrained(model, path)


def freeze(model: PreTrainedModel, layers: Sequence[int], embeddings: bool) -> None:
    """Takes decoder layers (by index) and the token embeddings (with a tied head) out of training.

    Raises `RecipeError` for an index that the model does not have, or when nothing is left to train.
    """
    stack = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    missing = [index for index in layers if index >= len(stack)]
    if missing:
        raise RecipeError(f"freeze.layers: {missing[0]}: the model has layers 0 to {len(stack) - 1}")
    for index in layers:
        stack[index].requires_grad_(False)
    if embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError("freeze: every weight of the model is frozen: nothing is left to train")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; says how many of how many."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())
    total = sum(num_weights(parameter) for parameter in model.parameters())
    log.info("training %s of %s weights (%.2f %%)", f"{count:,}", f"{total:,}", 100 * count / total)
    assert all(parameter.dtype == torch.float32 for parameter in trained.values()), "trained weights stay fp32"
    return trained
