"""Tensors divided over processes, in a checkpoint: torch.distributed.checkpoint, in safetensors. No pickle.

Each process writes what it has; whoever resumes reads the parts that it needs, however many processes there were.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tunekit.errors import StorageError


@dataclass(frozen=True)
class Part:
    """Stands in a loaded state for a tensor whose parts lie in the files of `folder`."""

    folder: Path
    name: str


def write_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes this process's parts of `tensors` to `folder`; all processes come here. Raises `StorageError`."""
    try:
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except (CheckpointException, OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {_reason(error)}", "Free some space.") from error


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", {})
    return "; ".join(f"rank {rank}: {each[0]}" for rank, each in failures.items()) if failures else str(error)


class Parts:
    """Takes note of what is needed of the parts of a checkpoint, and reads all of it together."""

    def __init__(self) -> None:
        self.wanted: dict[str, Tensor] = {}
        self.folder: Path | None = None

    def take(self, value: Any, parameter: Tensor) -> Any:
        """`value` laid out as `parameter` is, where it has its shape; what is a part is filled by `read`."""
        if isinstance(value, Part):
            self.folder = value.folder
            self.wanted[value.name] = target = torch.empty_like(parameter.detach())
            return target
        if isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape:
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return value

    def take_states(self, saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer as `load_state_dict` takes it."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        states = {
            number: {name: self.take(value, parameters[number]) for name, value in state.items()}
            for number, state in saved["state"].items()
        }
        return {**saved, "state": states}

    def read(self) -> None:
        """All processes come here, with the same wishes. Raises `StorageError`."""
        if self.folder is None:
            return
        try:
            reader = HuggingFaceStorageReader(str(self.folder))
            dcp.load(self.wanted, storage_reader=reader, no_dist=not dist.is_initialized())
        except (CheckpointException, OSError, SafetensorError, KeyError) as error:
            raise StorageError(f"{self.folder}: cannot be read: {_reason(error)}") from error


def is_part(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)
