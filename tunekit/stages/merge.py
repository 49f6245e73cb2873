"""An adapter merged into its base: a plain model folder, written only if it computes what adapter and base compute."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunekit.errors import GateFailed, RecipeError
from tunekit.models import export
from tunekit.models.load import Location, base_of, default_dtype, locate, passport_of, weights_hash
from tunekit.models.serve import load_adapted, trained_quantization
from tunekit.stages.artefact import write_proven

log = logging.getLogger("tunekit")

CPU = torch.device("cpu")


def run(name: str, *, output: str | None, max_difference: float | None) -> dict[str, Any]:
    """Merges in the base's stored precision, never in a quantised one, and returns what was measured.

    The difference is that of the merged model's logits to those of adapter and base in fp32. Raises `GateFailed` where
    it is above `max_difference` (default: twice that of adapter and base in the base's precision), `RecipeError` (no
    adapter, the destination is in use, another base) and `StorageError` where what was written does not reload.
    """
    started = time.perf_counter()
    adapter = _adapter(name)
    folder = Path(output) if output is not None else _run_folder(adapter) / "merged"
    _check_free(folder)
    base, passport = base_of(adapter), passport_of(adapter)
    recorded = {"name": base.name, "revision": base.revision, "sha256": weights_hash(base)}
    _check_base(base, recorded["sha256"], passport)
    adapted, tokenizer = load_adapted(adapter, base, dtype="auto", device=CPU)
    causal: PreTrainedModel = adapted.get_base_model()  # type: ignore[assignment]
    dtype = str(causal.dtype).removeprefix("torch.")
    log.info("merging %s into %s in %s", adapter.name, base.name, dtype)
    unmerged = export.fixed_logits(causal, tokenizer)
    exact = unmerged if causal.dtype == torch.float32 else _fp32_logits(adapter, base)
    merged: PreTrainedModel = adapted.merge_and_unload()
    logits = export.fixed_logits(merged, tokenizer)
    difference = export.largest_difference(exact, logits)
    rounding = export.largest_difference(exact, unmerged)
    bound = max(1e-3, 2 * rounding) if max_difference is None else max_difference
    _check_difference(difference, bound)
    trained = _quantised_difference(adapter, base, logits)
    facts = {"stage": "merge", "messages": passport.get("messages"), "base_model": recorded, "adapter": passport}
    facts |= {"merge_difference": difference, **trained}
    reloaded = write_proven(merged, merged, tokenizer, folder, facts, logits)
    return {
        "model": str(folder),
        "base": base.name,
        "adapter": adapter.path,
        "dtype": dtype,
        "merge_difference": difference,
        "rounding_difference": rounding,
        "bound": bound,
        **trained,
        "reload_difference": reloaded,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _fp32_logits(adapter: Location, base: Location) -> dict[str, Tensor]:
    """What adapter and base compute without the rounding of the base's precision, in memory only while it lasts."""
    adapted, tokenizer = load_adapted(adapter, base, dtype=torch.float32, device=CPU)
    return export.fixed_logits(adapted.get_base_model(), tokenizer)  # type: ignore[arg-type]


def _quantised_difference(adapter: Location, base: Location, logits: dict[str, Tensor]) -> dict[str, float]:
    """How far the merged model is from what was trained, where that was the adapter on a quantised base.

    Said and not bound: it is the rounding of the base, which the merged model no longer has.
    """
    quantization = trained_quantization(adapter)
    if quantization == "none":
        return {}
    adapted, tokenizer = load_adapted(adapter, base, dtype=default_dtype(CPU), device=CPU, quantization=quantization)
    found = export.largest_difference(logits, export.fixed_logits(adapted.get_base_model(), tokenizer))  # type: ignore[arg-type]
    log.info("it was trained on the base in %s: from that the merged logits differ by %.3g", quantization, found)
    return {"quantised_difference": found}


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


def _check_base(base: Location, sha256: str | None, passport: dict[str, Any]) -> None:
    """Refuses a base whose weights are not those of the training: the merge would be right and the model wrong."""
    expected = passport["base_model"]["sha256"] if passport else None
    if expected is not None and sha256 != expected:
        raise RecipeError(
            f"merge: the weights in {base.path} are not those that the adapter was trained on (their sha256 differs)",
            f"Put the original weights of {base.name} there.",
        )


def _check_difference(difference: float, bound: float) -> None:
    if difference <= bound and math.isfinite(difference):
        return
    raise GateFailed(
        f"merge: the largest difference between merged and adapter logits is {difference:.3g}, the bound {bound:.3g}; "
        "nothing was written",
        "The adapter or the base holds weights that are not finite."
        if not math.isfinite(difference)
        else "Use the adapter unmerged, or accept more with --max-difference.",
    )
