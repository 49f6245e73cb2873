"""The model a run starts from, before anything heavy is loaded."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunekit.errors import RecipeError
from tunekit.models.load import Location, load_tokenizer, locate
from tunekit.recipe.schema import Recipe


@dataclass(frozen=True)
class Base:
    """Where the model lies, and its tokenizer with the template that the recipe wants."""

    location: Location
    tokenizer: PreTrainedTokenizerBase


def find_base(recipe: Recipe) -> Base:
    """Raises `RecipeError` for an adapter: training starts from whole weights."""
    location = locate(recipe.model.name_or_path, recipe.model.revision)
    if location.is_adapter:
        raise RecipeError(
            f"model: {location.name} is an adapter",
            f"Merge it first (tunekit merge {location.name}) and name the merged folder as the model.",
        )
    return Base(location, load_tokenizer(location, recipe.data.chat_template))
