"""Models for use and not for training: run folders, adapters on their base, model folders, built-in names, hub ids."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunekit.errors import RecipeError
from tunekit.models.adapters import PeftModel, load_adapter
from tunekit.models.export import generation_config
from tunekit.models.load import (
    Location,
    base_of,
    default_device,
    load_model,
    load_tokenizer,
    locate,
    passport_of,
    resolve_dtype,
)

log = logging.getLogger("tunekit")


def load_for_inference(
    name: str, dtype: str = "auto", attn_implementation: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that `name` stands for, on the default device and in evaluation mode.

    An adapter stays beside its base (`merge` joins them), quantised where it was, so that answers are those measured in
    training. `attn_implementation` is as in `load_model`. Raises `RecipeError` for a folder that holds no model, also
    when its run is not finished.
    """
    location = locate(name)
    device = default_device()
    chosen = resolve_dtype(dtype, device)
    if location.is_adapter:
        base, quantization = base_of(location), trained_quantization(location)
        if quantization != "none":
            log.info("base %s in %s, as in training", base.name, quantization)
        adapted, tokenizer = load_adapted(
            location,
            base,
            dtype=chosen,
            device=device,
            attn_implementation=attn_implementation,
            quantization=quantization,
        )
        model: PreTrainedModel = adapted.get_base_model()  # type: ignore[assignment]
    else:
        tokenizer = load_tokenizer(location)
        model = load_model(location, dtype=chosen, device=device, attn_implementation=attn_implementation)
        model.generation_config = generation_config(model, tokenizer)
    return model.eval(), tokenizer


def load_adapted(
    adapter: Location,
    base: Location,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    attn_implementation: str | None = None,
    quantization: str = "none",
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The adapter on its base, with the tokenizer and generation config beside the adapter, or else the base's.

    `quantization` is that of the base. Raises `RecipeError` where the adapter is damaged or does not fit the base.
    """
    folder = Path(adapter.path)
    tokenizer = load_tokenizer(adapter if (folder / "tokenizer_config.json").is_file() else base)
    model = load_model(
        base, dtype=dtype, device=device, attn_implementation=attn_implementation, quantization=quantization
    )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:  # type: ignore[index]
        model.resize_token_embeddings(len(tokenizer))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.generation_config = generation_config(model, tokenizer)
    try:
        adapted = load_adapter(model, adapter.path)
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = "\n".join(str(error).splitlines()[:3])  # peft names every weight of another size
        raise RecipeError(
            f"model: the adapter {adapter.path} cannot be put on its base {base.name}: {reason}"
        ) from error
    if adapted.active_peft_config.is_prompt_learning:
        raise RecipeError(f"model: {adapter.path} is a learned prompt; accepted are adapters of weights (LoRA)")
    return adapted, tokenizer


def trained_quantization(adapter: Location) -> str:
    """In what its base was quantised when the adapter was trained: none, 8bit or 4bit."""
    return str((passport_of(adapter).get("base_model") or {}).get("quantization", "none"))


def trained_preparation(name: str) -> dict[str, Any]:
    """What training did to the messages of each row (arguments of `prepare_messages`), a system prompt said aloud."""
    kept = passport_of(locate(name)).get("messages") or {}
    preparation = {"system": None, "system_mode": "keep", "reasoning": "keep", **kept}
    if preparation["system"] is not None:
        log.info("system prompt, as in training: %s", preparation["system"])
    return preparation


def context_of(model: PreTrainedModel) -> int | None:
    """Tokens the model was made for, or None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
