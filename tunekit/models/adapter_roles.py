"""Several adapters on one backbone in online training: those of policy, reference, value function and rewards."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import Tensor, nn

from tunekit.models.adapters import HEADS, NEW, START, fitting, lora_config, whole_modules_in_fp32
from tunekit.models.lora import use_fused_layer

OF_THE_BASE = ("pissa", "olora")  # beginnings that take a part of the base's weights
REFERENCE, VALUE = "reference", "value"  # names: of the trained adapter at its start, of the value function's


def is_adapted(model: nn.Module) -> bool:
    return isinstance(model, PeftModel)


@contextmanager
def acting(adapted: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block the adapter `name` alone acts (None: none does); what is trained stays what it is.

    peft's own `set_adapter` also decides which weights have gradients, which a value function must not.
    """
    layers = [each for each in adapted.modules() if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter = layer._active_adapter if name is None else [name]
        layer._disable_adapters = name is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def keep_reference(adapted: nn.Module) -> str | None:
    """The name under which the trained adapter, as it is now, stays; None where it is as good as no adapter."""
    assert isinstance(adapted, PeftModel)
    if START in adapted.peft_config:  # beside which the trained one begins at 0
        return START
    zero = (f"lora_B.{NEW}", f"lora_embedding_A.{NEW}")  # whichever factor begins at 0
    if all(not weight.any() for key, weight in adapted.named_parameters() if any(each in key for each in zero)):
        return None
    add_copy(adapted, REFERENCE)
    return REFERENCE


def add_value(adapted: nn.Module) -> str:
    """The name of a further adapter, equal to the trained one as it is now and trained too, for a value function."""
    assert isinstance(adapted, PeftModel)
    add_copy(adapted, VALUE)
    for name, weight in adapted.named_parameters():
        if _is_of(name, VALUE):
            weight.requires_grad_(True)
    return VALUE


def add_reward(adapted: nn.Module, folder: Path, name: str) -> Tensor:
    """Puts the adapter of a reward model beside the trained one, frozen, and returns its head `(1, E)`.

    Raises `RecipeError` where it does not fit.
    """
    assert isinstance(adapted, PeftModel)
    config = lora_config(str(folder))
    config.task_type, config.modules_to_save = None, None
    use_fused_layer(config, adapted)
    with fitting(str(folder)):
        weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        head = weights.pop(next(key for key in weights if key.rpartition(".")[0].endswith("score")))
        adapted.add_adapter(name, config)
        set_peft_model_state_dict(adapted, weights, adapter_name=name)
    for key, weight in adapted.named_parameters():
        if _is_of(key, name):
            weight.requires_grad_(False)
    return head


def stands_beside(folder: Path) -> bool:
    """Whether the adapter of a reward model is one beside its base, and changes nothing of the base itself."""
    config = lora_config(str(folder))
    return set(config.modules_to_save or ()) <= set(HEADS) and config.init_lora_weights not in OF_THE_BASE


def add_copy(adapted: PeftModel, name: str) -> None:
    """A further adapter that is equal to the trained one and does not act yet, its weights frozen."""
    config = copy.copy(adapted.peft_config[NEW])
    config.init_lora_weights = True  # type: ignore[attr-defined]  # others take their share from the base again
    use_fused_layer(config, adapted)  # type: ignore[arg-type]
    adapted.add_adapter(name, config)
    whole_modules_in_fp32(adapted, adapted.get_base_model().dtype, name)  # type: ignore[arg-type]
    trained = dict(adapted.named_parameters())
    with torch.no_grad():
        for key, weight in trained.items():
            if _is_of(key, name):
                weight.data = trained[f"{key}.".replace(f".{name}.", f".{NEW}.")[:-1]].detach().clone()
                weight.requires_grad_(False)


def _is_of(key: str, name: str) -> bool:
    """Whether a parameter is one of the adapter `name`; those of an embedding end with it."""
    return f".{name}." in f"{key}."
