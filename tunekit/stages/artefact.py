"""The end of a training run: the artefact, its proof, the figures before and after."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.errors import StorageError
from tunekit.models import export
from tunekit.models.load import Location, weights_hash
from tunekit.models.policy import Policy
from tunekit.stages.base import Base
from tunekit.train.checkpoint import staged

log = logging.getLogger("tunekit")


def base_passport(location: Location, policy: Policy) -> dict[str, Any]:
    """Which base a run trained on: name, revision (the commit on a hub) and the sha256 of local weights."""
    commit = getattr(policy.causal.config, "_commit_hash", None)
    return {"name": location.name, "revision": commit or location.revision, "sha256": weights_hash(location)}


def write_artefact(
    policy: Policy, base: Base, folder: Path, facts: dict[str, Any], served: Sequence[dict[str, Any]], card: str
) -> float:
    """Writes `folder` (adapter or whole model), reloads it in a fresh process, and only then puts it in place.

    There the saved tokenizer must also render `served` (see `serving_examples`) to the ids that were trained. `card`
    becomes its README.md. Returns the largest difference of the logits on fixed prompts; `StorageError` above the bound
    or if it cannot load.
    """
    causal = policy.causal
    with export.serving_attention(causal):
        logits = export.fixed_logits(causal, base.tokenizer)
    passport = {"base_model": base_passport(base.location, policy), **facts}
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
