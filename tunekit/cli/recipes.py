"""Verbs about recipes; none of them loads torch."""

from tunekit.cli.common import Json, Overrides, RecipePath, Settings, app, command, load_recipe, print_result


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, settings: Settings = None, as_json: Json = False) -> None:
    """Prints the whole resolved RECIPE, every value with where it comes from. Nothing is trained or downloaded.

    Example: tunekit show recipes/chat.yaml train.num_train_epochs=1
    """
    with command(as_json):
        from tunekit.recipe.show import as_dict, as_yaml

        resolved = load_recipe(recipe, overrides, settings)
        print_result(as_dict(resolved), as_yaml(resolved), as_json)
