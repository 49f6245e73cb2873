"""Supervised fine-tuning: recipe -> rows -> tokens -> plan -> loop -> artefact."""

from typing import Any

from tunekit.objectives.sft import SFT
from tunekit.recipe.load import Resolved
from tunekit.stages import training
from tunekit.stages.rows import Datasets
from tunekit.stages.training import Stage

STAGE = Stage("sft", "conversations", lambda recipe, allow_code: SFT)


def run(resolved: Resolved, datasets: Datasets | None = None) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises `TunekitError`s, each an exit code.

    `datasets` are rows from Python, which the recipe names `memory:NAME`.
    """
    return training.run(STAGE, resolved, datasets)
