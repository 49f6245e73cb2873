"""Which values of a recipe do not go with a quantised base."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.recipe.conflict import Conflict
from tunekit.recipe.schema import Recipe

KEY = "model.quantization"


def quantisation_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    quantization, adapter = recipe.model.quantization, recipe.adapter
    if quantization == "none":
        return
    if adapter.type != "lora":
        message = f"{quantization} needs adapter: lora: weights of {quantization} cannot be trained, only an adapter "
        message += "beside them; set adapter: lora (adapter.type), or quantization: none"
        yield Conflict(KEY, (KEY, "adapter", "adapter.type"), message)
    if adapter.init_lora_weights in ("pissa", "olora"):
        at = "adapter.init_lora_weights"
        message = f"{adapter.init_lora_weights} takes a part of the base's weights, which {KEY}: {quantization} has not"
        yield Conflict(at, (at, KEY), message + "; remove it, or set quantization: none")
    if adapter.start_from == "merge_first":
        message = (
            f"merge_first does not go with {KEY}: {quantization}, whose weights take no adapter; tunekit merge it, "
        )
        yield Conflict("adapter.start_from", ("adapter.start_from", KEY), message + "and name the result as the model")
    if recipe.rollout.engine != "builtin":
        message = (
            f"{quantization} does not go with rollout.engine {recipe.rollout.engine}, which would sample from the "
        )
        message += "base as it is stored; remove one of the two"
        yield Conflict(KEY, (KEY, "rollout.engine"), message)
