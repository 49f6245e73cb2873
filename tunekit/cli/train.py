"""Verbs that train."""

import sys
from contextlib import redirect_stdout

from tunekit.cli.common import (
    Json,
    Offline,
    Overrides,
    RecipePath,
    Settings,
    app,
    command,
    load_recipe,
    print_result,
    quiet_libraries,
)


@app.command()
def sft(
    recipe: RecipePath,
    overrides: Overrides = None,
    settings: Settings = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Supervised fine-tuning: trains after RECIPE and leaves a verified model in its output_dir.

    Examples:

        tunekit sft recipes/chat.yaml

        tunekit sft recipes/chat.yaml train.learning_rate=1e-4 output_dir=out/lr1e-4

        tunekit sft recipes/chat.yaml resume=auto
    """
    with command(as_json, no_network=offline):
        resolved = load_recipe(recipe, overrides, settings)
        quiet_libraries()
        from tunekit.stages import sft as stage
        from tunekit.stages.present import training_report

        with redirect_stdout(sys.stderr):  # trackers print
            result = stage.run(resolved)
        print_result(result, training_report(result), as_json)
