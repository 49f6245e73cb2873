"""`tunekit report`: a run as one page of HTML; and the card that a run puts beside its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.recipe.schema import Recipe
from tunekit.report.card import model_card
from tunekit.report.facts import read_facts
from tunekit.report.page import page
from tunekit.train.folder import replace_text


def run(folder: str, output: str | None = None) -> Path:
    """Writes the page of the run in `folder` to `output`, by default `report.html` in it, and returns where it is."""
    facts = read_facts(Path(folder))
    file = Path(folder) / "report.html" if output is None else Path(output)
    replace_text(file, page(facts))
    return file


def write_card(folder: Path, recipe: Recipe, result: Mapping[str, Any], chat: bool) -> None:
    """Writes `model/README.md`; `chat`: the model has a chat template."""
    manifest = read_facts(folder).manifest
    name = recipe.run_name or folder.resolve().name
    card = model_card(name, recipe.model_dump(mode="json"), result, manifest, f"{folder}/model", chat)
    replace_text(folder / "model" / "README.md", card)
