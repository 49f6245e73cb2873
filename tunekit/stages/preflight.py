"""What a run without a network would lack, listed at once and before anything starts."""

import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from tunekit import offline
from tunekit.errors import MissingEnvironment
from tunekit.models import builtin
from tunekit.recipe.schema import Recipe
from tunekit.stages.rows import Datasets, find_source


def check_offline(recipe: Recipe, datasets: Datasets | None = None) -> None:
    """Raises `MissingEnvironment` with all that is neither local nor cached, where the network may not be used."""
    if not offline.entered():
        return
    missing = [*_model(recipe.model.name_or_path, recipe.model.revision), *_data(recipe, datasets), *_trackers(recipe)]
    if missing:
        lines = "\n".join(f"  {each}" for each in missing)
        fix = "Fetch these once where there is a network."
        raise MissingEnvironment(f"offline, and not on this machine:\n{lines}", fix)


def _model(name: str, revision: str | None) -> Iterator[str]:
    if name in builtin.BUILTIN:
        if name not in builtin.present():
            yield f"model: {name}: the built-in model has not been built yet (93 MB from the package index)"
    elif not name.startswith((builtin.TINY_RANDOM, ".", "/", "~")) and not Path(name).exists():
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            yield f"model: {name}: is no local folder and not in the cache of the hub"
            return
        for wanted in ("config.json", "tokenizer.json", "*.safetensors"):
            if not any(folder.glob(wanted)):
                yield f"model: {name}: {wanted} is not in the cache of the hub"


def _data(recipe: Recipe, datasets: Datasets | None) -> Iterator[str]:
    for source in [*recipe.data.train, *(recipe.data.eval or ())]:
        try:
            find_source(source, datasets)
        except MissingEnvironment as error:
            yield f"data: {error.message}"


def _trackers(recipe: Recipe) -> Iterator[str]:
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "mlflow" in recipe.report_to and server.startswith("http"):
        yield f"report_to: mlflow: its server {server} (MLFLOW_TRACKING_URI)"
