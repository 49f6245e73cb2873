"""The end of a training run: the artefact, its proof, the figures before and after."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.data.render import serving_examples
from tunekit.data.rendering import Rendering
from tunekit.errors import StorageError
from tunekit.models import export
from tunekit.models.adapters import joined, merge_adapter
from tunekit.models.load import Location, load_model, weights_hash
from tunekit.models.policy import Policy
from tunekit.models.quantised import quantization_of
from tunekit.recipe.schema import Recipe
from tunekit.stages.assemble import end_at_terminators
from tunekit.stages.base import Base
from tunekit.stages.rows import Rows
from tunekit.train.checkpoint import staged
from tunekit.train.training import Training

log = logging.getLogger("tunekit")


def base_passport(base: Base, policy: Policy) -> dict[str, Any]:
    """Which base a run trained on: name, revision (the commit on a hub) and the sha256 of local weights.

    `quantization`: what it was quantised in, where it was.
    `adapter`: the same of the adapter that it started from, and how, where it did.
    """
    location = base.location
    commit = getattr(policy.causal.config, "_commit_hash", None)
    found = {"name": location.name, "revision": commit or location.revision, "sha256": weights_hash(location)}
    if (quantization := quantization_of(policy.causal)) != "none":
        found["quantization"] = quantization
    if base.adapter is not None:
        given = {"name": base.adapter.name, "sha256": weights_hash(base.adapter), "from": base.start_from}
        found["adapter"] = given
    return found


def write_language_model(
    recipe: Recipe, training: Training, base: Base, rows: Rows, folder: Path, facts: dict[str, Any], card: str
) -> dict[str, Any]:
    """`model/` in `folder`, proven by a fresh process; how far its logits are from those trained."""
    end_at_terminators(training.policy, base, rows)
    served = []
    if rows.conversations:
        rendering = Rendering(loss_on=recipe.data.loss_on, **facts["messages"])
        served = serving_examples(rows.conversations, base.tokenizer, rendering)
    passport = {"base_model": base_passport(base, training.policy), **facts}
    if base.adapter is not None and base.start_from == "merge_first" and recipe.adapter.type == "lora":
        passport["base_model"] = _write_merged_base(base, training.policy, folder / "base")
    difference = write_artefact(training.policy, base, folder / "model", passport, served, card)
    return {"reload_difference": difference}


def _write_merged_base(base: Base, policy: Policy, folder: Path) -> dict[str, Any]:
    """The base with the first adapter in its weights, as training had it, to which the second adapter belongs."""
    assert base.adapter is not None
    model = load_model(base.location, dtype=policy.dtype, device=policy.causal.device, attn_implementation=None)
    merged = merge_adapter(model, base.adapter.path)
    with staged(folder) as staging:
        merged.save_pretrained(staging)
        base.tokenizer.save_pretrained(staging)
    log.info("%s: the base of the new adapter, %s merged into %s", folder, base.adapter.name, base.location.name)
    path = str(folder.resolve())
    made = {"name": path, "path": path, "revision": None, "sha256": weights_hash(Location(path, path))}
    return {**made, "made_from": base_passport(base, policy)}


def write_artefact(
    policy: Policy, base: Base, folder: Path, passport: dict[str, Any], served: Sequence[dict[str, Any]], card: str
) -> float:
    """Writes `folder` (adapter or whole model), reloads it in a fresh process, and only then puts it in place.

    There the saved tokenizer must also render `served` (see `serving_examples`) to the ids that were trained. `card`
    becomes its README.md. Returns the largest difference of the logits on fixed prompts; `StorageError` above the bound
    or if it cannot load.
    """
    causal = policy.causal
    with export.serving_attention(causal), joined(policy.model):
        logits = export.fixed_logits(causal, base.tokenizer)
    return write_proven(policy.model, causal, base.tokenizer, folder, passport, logits, served, card)


def write_proven(
    model: nn.Module,
    causal: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    passport: dict[str, Any],
    logits: dict[str, Tensor],
    served: Sequence[dict[str, Any]] = (),
    card: str | None = None,
) -> float:
    """Puts `folder` in place once a fresh process reloaded it; the largest difference of its logits to `logits`.

    Raises `StorageError` where it cannot be written or loaded, its logits differ by more than rounding explains, or its
    tokenizer renders one of `served` differently.
    """
    with staged(folder) as staging:
        export.save_artefact(model, causal, tokenizer, staging, passport)
        if card is not None:
            (staging / "README.md").write_text(card, encoding="utf-8")
        difference = export.verify_in_fresh_process(staging, logits, served, causal.dtype, causal.device)
        bound = export.bound(logits, causal.dtype)
        if not difference <= bound:  # NaN is no equality either
            raise StorageError(f"{folder}: reloaded, its logits differ by {difference:.3g} (bound {bound:g})")
    log.info("%s: reloaded by a fresh process, largest logit difference %.3g", folder, difference)
    return difference
