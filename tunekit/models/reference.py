"""What the reference model, the policy before its first step, gives the answers of the data: computed once, then kept.

Training moves the policy away from it, so that nothing of it is needed later but these numbers: no second copy of the
weights, and a resumed or second run on the same rows reads what the first one wrote.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.data.rows import Example
from tunekit.errors import StorageError
from tunekit.files import cache_root
from tunekit.models.policy import Policy
from tunekit.ops.logprobs import answer_sums

log = logging.getLogger("tunekit")

NAME = "logprobs"


def reference_logprobs(
    policy: Policy,
    examples: Sequence[Example],
    batch_size: int,
    identity: Sequence[Any],
    *,
    all_know: Callable[[bool], bool] = bool,
    spread: Callable[[Sequence[int], Callable[[Sequence[int]], list[Tensor]]], list[Tensor]] = lambda rows, f: f(rows),
) -> NDArray[np.float32]:
    """`(R, K)` summed log-probabilities, in nats, of the K answers of each of `examples` under `policy` as it is now.

    `identity` (in JSON's types) is all that they depend on but the code: the weights and the rows, by content. They are
    kept in the cache under its hash. Of several processes `all_know` says whether each found them there, and `spread`
    deals the rows out to them. Raises `StorageError` where the cache cannot be written.
    """
    facts = [*identity, str(policy.dtype), policy.flat, policy.share_prompts, policy.causal.device.type]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_root() / "reference" / f"{key}.safetensors"
    known = _read(path)
    if all_know(known is not None and len(known) == len(examples)) and known is not None:
        log.info("reference: log-probabilities of %s rows from the cache", f"{len(known):,}")
        return known
    started = time.perf_counter()
    found = torch.stack(spread(range(len(examples)), lambda rows: _compute(policy, examples, rows, batch_size))).numpy()
    log.info("reference: log-probabilities of %s rows in %.0f s", f"{len(found):,}", time.perf_counter() - started)
    _write(path, found)
    return found


@torch.no_grad()
def with_reference(policy: Policy, batch: Batch) -> Batch:
    """`batch` with what `policy` gives its answers as their reference."""
    policy.eval()
    mismatched = None if batch.mismatched is None else with_reference(policy, batch.mismatched)
    return replace(batch, reference=answer_sums(policy(batch), batch.counts), mismatched=mismatched)


def _compute(policy: Policy, examples: Sequence[Example], numbers: Sequence[int], batch_size: int) -> list[Tensor]:
    """`(K,)` of each of the rows with these numbers, in their order."""
    order = sorted(numbers, key=lambda i: sum(len(answer.ids) for answer in examples[i].answers))
    rows: list[tuple[int, Tensor]] = []
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = with_reference(policy, policy.batch([examples[i] for i in chunk]))
        assert batch.reference is not None
        sums = batch.reference.view(len(chunk), -1)
        if batch.mismatched is not None and batch.mismatched.reference is not None:
            sums = torch.cat([sums, batch.mismatched.reference[:, None]], 1)
        rows += zip(chunk, sums.cpu(), strict=True)
    return [values for _, values in sorted(rows, key=lambda row: row[0])]


def _read(path: Path) -> NDArray[np.float32] | None:
    """What `_write` left there; None where there is nothing, or it is damaged (said aloud)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            values: NDArray[np.float32] = file.get_tensor(NAME)
            if file.metadata()["sha256"] == _digest(values):
                return values
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        log.info("%s: %s", path, error)
    log.warning("%s is damaged: the reference is computed again", path)
    return None


def _write(path: Path, values: NDArray[np.float32]) -> None:
    staging = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({NAME: np.ascontiguousarray(values)}, staging, metadata={"sha256": _digest(values)})
        staging.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: the reference cannot be kept there: {error}",
            "Make room, or set TUNEKIT_CACHE to a folder that can be written.",
        ) from error
    finally:
        with suppress(OSError):  # a folder that cannot be one has just been told of
            staging.unlink(missing_ok=True)


def _digest(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
