"""The only door to accelerate: devices, trackers, and what the processes of a run compute together."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunekit.errors import MissingEnvironment, RankFailed
from tunekit.models.load import default_device
from tunekit.train.ranks import Ranks

T = TypeVar("T")
BUCKET = 2**25  # elements of gradients that go through one all-reduce


class Engine:
    """One process of a run. Trackers other than our JSONL (`report_to`) are accelerate's.

    Until `form` it knows its place and its device only: what takes long (data) or fails early comes before.
    """

    def __init__(self, report_to: tuple[str, ...] = (), folder: Path | None = None, ranks: Ranks | None = None) -> None:
        found = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
        if missing := sorted({*report_to} - found):  # accelerate leaves out what is not installed without a word
            raise MissingEnvironment(f"report_to: {missing[0]} is not installed", f"pip install {missing[0]}")
        self.report_to, self.folder = report_to, folder
        self.ranks = ranks or Ranks()
        self.rank, self.world_size = self.ranks.rank, self.ranks.world_size
        self.device = _own_device(self.ranks)
        self.accelerator: Accelerator | None = None

    @property
    def is_main(self) -> bool:
        return self.ranks.is_main

    def form(self, timeout: float, alike: Any = None) -> None:
        """Forms the group; each wait in it ends after `timeout` seconds.

        Raises `RankFailed` where it is not the group that was asked for, or `alike` (in JSON's types: what all should
        have in common) differs.
        """
        self.ranks.meet()
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.HashStore() if self.ranks.store is None else dist.PrefixStore("group", self.ranks.store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout),
        )
        for rank, theirs in enumerate(self.gather(alike)):
            if theirs != alike:
                raise RankFailed(
                    f"rank {rank} has another recipe, version, data or base model than rank {self.rank}",
                    "Give all processes the same files, and data from Python in the same order.",
                )

    def by_itself(self, poll: Callable[[], None]) -> Callable[[], None]:
        """What a process polls that goes at its own pace: nothing beside others, which stop together or not at all."""
        return poll if self.world_size == 1 else lambda: None

    def start_trackers(self, name: str, config: dict[str, Any]) -> None:
        """`config`: one value a key; what is not a number or a string is logged as text, as trackers take no more."""
        if not self.report_to or not self.is_main:
            return
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in config.items()}
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu", log_with=list(self.report_to), project_dir=self.folder
        )
        self.accelerator.init_trackers(name, plain)

    def track(self, values: dict[str, float], step: int) -> None:
        if self.accelerator is not None:
            self.accelerator.log(values, step=step)

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()
        if self.world_size == 1 and dist.is_initialized():
            dist.destroy_process_group()

    def leave(self) -> None:
        """Ends the group once all have come here."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Largest over ranks, on every rank."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def largest(self, number: int) -> int:
        return number if self.world_size == 1 else int(self.max(torch.tensor(number, device=self.device)))

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values, op=operation)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of each rank, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def shared(self, rows: Sequence[T], compute: Callable[[list[T]], Sequence[Any]]) -> list[Any]:
        """`compute` of each of `rows`, in their order, on every rank: each computes its part of them."""
        found = list(compute(list(rows[self.rank :: self.world_size])))
        self.ranks.meet()  # some may take much longer than an exchange may
        parts = self.gather(found)
        return [parts[i % self.world_size][i // self.world_size] for i in range(len(rows))]

    def take_from_main(self, parameters: Iterable[Tensor]) -> None:
        """Gives whole weights the values that they have in the first process."""
        if self.world_size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up over ranks the gradients of weights that each rank has whole; those divided up are summed already.

        One all-reduce for many of them: a step makes it once, not in each backward pass. A weight of which no rank has
        a gradient has none after it; a rank may have had no rows.
        """
        whole = [each for each in parameters if not isinstance(each, DTensor)]
        if self.world_size == 1 or not whole:
            return
        known = torch.tensor([each.grad is not None for each in whole], dtype=torch.uint8, device=self.device)
        used = [each for each, has in zip(whole, self.max(known).tolist(), strict=True) if has]
        for each in used:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        for bucket in _buckets(used):
            flat = torch.cat([each.grad.flatten() for each in bucket])  # type: ignore[union-attr]
            dist.all_reduce(flat)
            for each, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                each.grad.copy_(part.view_as(each))  # type: ignore[union-attr]


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for each in parameters:
        if each.numel() > room or not buckets:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(each)
        room -= each.numel()
    return buckets


def _own_device(ranks: Ranks) -> torch.device:
    device = default_device()
    if device.type != "cuda" or ranks.world_size == 1:
        return device
    if ranks.local_rank >= (count := torch.cuda.device_count()):
        raise MissingEnvironment(
            f"rank {ranks.rank} is process {ranks.local_rank} of its machine, which has {count} GPUs",
            "Set distributed.processes to their number, or auto.",
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def local(value: Tensor) -> Tensor:
    """The part of it that is here."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """A norm that each process knows a part of, as a number that all know."""
    return value.full_tensor() if isinstance(value, DTensor) else value
