"""A run into a checkpoint and back, also with another number of processes."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunekit.errors import Diverged, StorageError
from tunekit.train import checkpoint
from tunekit.train.divided import Parts
from tunekit.train.engine import local
from tunekit.train.rng import rng_state, set_rng_state
from tunekit.train.sharding import divide_again
from tunekit.train.training import RunState, Training

log = logging.getLogger("tunekit")


def save(run: Training, required: bool) -> bool:
    """Writes a checkpoint of everything the next step depends on, then removes the oldest ones; False if it could not.

    A full disk costs a checkpoint, not the run: unless `required`, the failure is said aloud and training goes on.
    Weights that are not finite are never saved: `Diverged`.
    """
    for name, parameter in run.parameters.items():
        if not bool(torch.isfinite(local(parameter)).all()):
            raise Diverged(f"step {run.state.step}: {name} is not finite", "Lower train.learning_rate.")
    tree = {
        "parameters": dict(run.parameters),
        "optimizer": run.optimizer.state_dict(),
        "learning_rate": run.learning_rate.state_dict(),
        "rng": run.engine.gather(rng_state()),  # of each rank
        "data": run.loader.state_dict(),
        "run": asdict(run.state),
    }
    try:
        checkpoint.save(run.checkpoints, run.state.step, tree, run.contract, run.engine)
    except StorageError as error:
        if required:
            raise
        log.warning("the checkpoint of step %d was not saved: %s", run.state.step, error)
        return False
    if run.engine.is_main:
        limit, best_step = run.schedule.total_limit, run.state.best_step
        checkpoint.rotate(run.checkpoints, step=run.state.step, total_limit=limit, best_step=best_step)
    return True


def restore(run: Training, path: Path) -> None:
    """Puts `run` back to the checkpoint `path`, which may be that of more or fewer processes.

    Raises `StorageError` unless its weights are exactly those trained.
    """
    saved, parts = checkpoint.load(path, verified=not run.engine.is_main), Parts()
    weights = _weights(run.parameters, saved["parameters"], path, parts)
    states = parts.take_states(saved["optimizer"], run.optimizer)
    parts.read()
    _put(run, weights)
    run.optimizer.load_state_dict(states)
    run.learning_rate.load_state_dict(saved["learning_rate"])
    before, now, rank = len(saved["rng"]), run.engine.world_size, run.engine.rank
    if before != now:
        log.warning(
            "%s was written by %d process%s, and %d go on: with the same rows in each step; dropout draws anew",
            *(path, before, "es" if before > 1 else "", now),
        )
    if rank < before:
        set_rng_state(saved["rng"][rank])
    run.loader.load_state_dict(saved["data"])
    run.state = RunState(**saved["run"])


def load_parameters(run: Training, path: Path) -> None:
    """The weights of the checkpoint `path` alone."""
    saved, parts = checkpoint.load(path, verified=not run.engine.is_main), Parts()
    weights = _weights(run.parameters, saved["parameters"], path, parts)
    parts.read()
    _put(run, weights)


def _weights(parameters: dict[str, nn.Parameter], saved: dict[str, Any], path: Path, parts: Parts) -> dict[str, Tensor]:
    odd = sorted(saved.keys() ^ parameters.keys())
    if odd:
        raise StorageError(f"{path}: its weights are not those of this model; the first that differs: {odd[0]}")
    return {name: parts.take(saved[name], parameter) for name, parameter in parameters.items()}


def _put(run: Training, weights: dict[str, Tensor]) -> None:
    parameters = run.parameters
    divide_again(run.policy)  # else what is gathered would stay as it was
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
