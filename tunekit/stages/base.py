"""The model a run starts from, before anything heavy is loaded."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunekit.errors import RecipeError
from tunekit.models.adapters import lora_settings
from tunekit.models.load import Location, base_of, load_tokenizer, locate
from tunekit.recipe.schema import Adapter, Recipe

STARTS = (
    "continue trains it on, new trains another one beside it, merge_first merges it into its base first; the reference "
    "of dpo and kto is in each case the model with the adapter as it is now"
)


@dataclass(frozen=True)
class Base:
    """Where the model lies, and its tokenizer with the template that the recipe wants.

    adapter, start_from: the adapter on it that training starts from, and how (None: from the model alone)
    """

    location: Location
    tokenizer: PreTrainedTokenizerBase
    adapter: Location | None = None
    start_from: str | None = None


def find_base(recipe: Recipe) -> Base:
    """Raises `RecipeError` where the model is an adapter and `adapter.start_from` does not say how to start from it."""
    location, start = locate(recipe.model.name_or_path, recipe.model.revision), recipe.adapter.start_from
    if not location.is_adapter:
        if start is not None:
            raise RecipeError(
                f"adapter.start_from: {start}: the model {location.name} is no adapter", "Remove the key."
            )
        return Base(location, load_tokenizer(location, recipe.data.chat_template))
    if start is None:
        raise RecipeError(
            f"model: {location.name} is an adapter, and adapter.start_from does not say how to start from it",
            f"Set adapter.start_from (or: from): {STARTS}.",
        )
    if recipe.stage == "reward" and start != "merge_first":
        raise RecipeError(
            f"adapter.start_from: {start}: a reward model has another head than the model of this adapter",
            "Set adapter.start_from: merge_first.",
        )
    base = base_of(location)
    has_tokenizer = (location.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(location if has_tokenizer else base, recipe.data.chat_template)
    return Base(base, tokenizer, location, start)


def continued(recipe: Recipe, base: Base) -> Recipe:
    """The recipe with the settings of the adapter that is trained on, where one is.

    Raises `RecipeError` where the recipe asks for others.
    """
    if base.adapter is None or base.start_from != "continue":
        return recipe
    asked, saved = recipe.adapter, lora_settings(base.adapter.path)
    for name, value in saved.items():
        given = getattr(asked, name)
        given = sorted(given) if isinstance(given, list) else given
        default = 2 * asked.r if name == "alpha" else Adapter.model_fields[name].default
        if given not in (default, value):
            raise RecipeError(
                f"adapter.{name}: {given}: the adapter {base.adapter.name} has {value}, and it is trained on as it is",
                "Remove the key, or set adapter.start_from: new.",
            )
    updated: dict[str, Any] = {"adapter": asked.model_copy(update=saved)}
    return recipe.model_copy(update=updated)
