"""An adapter merged into its base: a plain model folder, written only if it computes what adapter and base compute."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.errors import GateFailed, RecipeError, StorageError
from tunekit.models import export
from tunekit.models.load import PASSPORT, Location, base_of, locate, weights_hash
from tunekit.models.serve import load_adapted
from tunekit.train.checkpoint import staged

log = logging.getLogger("tunekit")


def run(name: str, *, output: str | None, max_difference: float | None) -> dict[str, Any]:
    """Merges in the base's stored precision and returns what was measured.

    Raises `RecipeError` (no adapter, the destination is in use, another base), `GateFailed` above `max_difference`
    (default: what rounding explains), and `StorageError` where the written folder does not reload to equal logits.
    """
    started = time.perf_counter()
    adapter = _adapter(name)
    folder = Path(output) if output is not None else _run_folder(adapter) / "merged"
    _check_free(folder)
    base, passport = base_of(adapter), _passport(adapter)
    recorded = {"name": base.name, "revision": base.revision, "sha256": weights_hash(base)}
    _check_base(base, recorded["sha256"], passport)
    # On the processor, where the fresh process that reloads the result computes too: the two then agree bit for bit.
    adapted, tokenizer = load_adapted(adapter, base, dtype="auto", device=torch.device("cpu"))
    causal: PreTrainedModel = adapted.get_base_model()  # type: ignore[assignment]
    dtype = str(causal.dtype).removeprefix("torch.")
    log.info("merging %s into %s in %s", adapter.name, base.name, dtype)
    before = export.fixed_logits(causal, tokenizer)
    merged: PreTrainedModel = adapted.merge_and_unload()
    after = export.fixed_logits(merged, tokenizer)
    difference = export.largest_difference(before, after)
    bound = export.bound(merged.dtype) if max_difference is None else max_difference
    _check_difference(difference, bound)
    facts = {"stage": "merge", "system": passport.get("system"), "base_model": recorded, "adapter": passport}
    facts["merge_difference"] = difference
    reloaded = _write(merged, tokenizer, folder, after, facts)
    return {
        "model": str(folder),
        "base": base.name,
        "adapter": adapter.path,
        "dtype": dtype,
        "merge_difference": difference,
        "bound": bound,
        "reload_difference": reloaded,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _write(
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    logits: dict[str, Tensor],
    facts: dict[str, Any],
) -> float:
    """Puts the model folder in place once a fresh process reloaded it; the largest difference to `logits` there."""
    bound = export.bound(merged.dtype)
    with staged(folder) as staging:
        export.save_artefact(merged, merged, tokenizer, staging, facts)
        difference = export.verify_in_fresh_process(staging, logits, merged.dtype)
        if not difference <= bound:
            raise StorageError(f"{folder}: reloaded, its logits differ by {difference:.3g} (bound {bound:g})")
    return difference


def _adapter(name: str) -> Location:
    location = locate(name)
    if location.is_adapter:
        return location
    if not Path(location.path).is_dir():
        raise RecipeError(f"merge: {name} is no local folder", "Name a run folder of tunekit or an adapter folder.")
    raise RecipeError(f"merge: {location.path} has no adapter_config.json: there is no adapter to merge")


def _run_folder(adapter: Location) -> Path:
    """The folder of the run that the adapter came from, or the adapter's own where it lies alone."""
    folder = Path(adapter.path)
    return folder.parent if (folder.parent / "recipe.yaml").is_file() else folder


def _check_free(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RecipeError(f"merge: {folder} exists and is not empty", "Choose another --output, or remove it.")


def _passport(adapter: Location) -> dict[str, Any]:
    file = Path(adapter.path) / PASSPORT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _check_base(base: Location, sha256: str | None, passport: dict[str, Any]) -> None:
    """Refuses a base whose weights are not those of the training: the merge would be right and the model wrong."""
    expected = passport["base_model"]["sha256"] if passport else None
    if expected is not None and sha256 != expected:
        raise RecipeError(
            f"merge: the weights in {base.path} are not those that the adapter was trained on (their sha256 differs)",
            f"Put the original weights of {base.name} there.",
        )


def _check_difference(difference: float, bound: float) -> None:
    if difference <= bound:  # false for NaN
        return
    raise GateFailed(
        f"merge: the largest difference between merged and adapter logits is {difference:.3g}, the bound {bound:g}; "
        "nothing was written",
        "The adapter or the base holds weights that are not finite."
        if difference != difference
        else "Use the adapter unmerged, or accept more with --max-difference.",
    )
