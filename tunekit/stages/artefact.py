"""The end of a training run: the artefact, its proof, the figures before and after."""

import logging
from pathlib import Path
from typing import Any

from tunekit.errors import StorageError
from tunekit.models import export
from tunekit.models.load import Location, weights_hash
from tunekit.models.policy import Policy
from tunekit.stages.assemble import Base
from tunekit.train.checkpoint import staged

log = logging.getLogger("tunekit")


def base_passport(location: Location, policy: Policy) -> dict[str, Any]:
    """Which base a run trained on: name, revision (the commit on a hub) and the sha256 of local weights."""
    commit = getattr(policy.causal.config, "_commit_hash", None)
    return {"name": location.name, "revision": commit or location.revision, "sha256": weights_hash(location)}


def write_artefact(policy: Policy, base: Base, folder: Path, facts: dict[str, Any]) -> float:
    """Writes `folder` (adapter or whole model), reloads it in a fresh process, and only then puts it in place.

    Returns the largest difference of the logits on fixed prompts; `StorageError` above the bound or if it cannot load.
    """
    causal = policy.causal
    stored = causal.dtype
    with export.serving_attention(causal):
        logits = export.fixed_logits(causal, base.tokenizer)
    with staged(folder) as staging:
        passport = {"base_model": base_passport(base.location, policy), **facts}
        export.save_artefact(policy.model, causal, base.tokenizer, staging, passport)
        difference = export.verify_in_fresh_process(staging, logits, stored)
        bound = export.bound(stored)
        if not difference <= bound:  # NaN is no equality either
            raise StorageError(f"{folder}: reloaded, its logits differ by {difference:.3g} (bound {bound:g})")
    log.info("%s: reloaded by a fresh process, largest logit difference %.3g", folder, difference)
    return difference
