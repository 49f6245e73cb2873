"""The only door to accelerate: devices, ranks, and the sums taken over ranks."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tunekit.errors import MissingEnvironment


class Engine:
    """One process of a run. Trackers other than our JSONL (`report_to`) are accelerate's."""

    def __init__(self, report_to: tuple[str, ...] = (), folder: Path | None = None) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise MissingEnvironment(
                "WORLD_SIZE > 1: several processes are not supported yet", "Start tunekit without a launcher."
            )
        self.accelerator = Accelerator(mixed_precision="no", log_with=list(report_to) or None, project_dir=folder)
        found = {str(getattr(tracker, "value", tracker)) for tracker in self.accelerator.log_with}
        if missing := sorted({*report_to} - found):  # accelerate leaves out what is not installed without a word
            raise MissingEnvironment(f"report_to: {missing[0]} is not installed", f"pip install {missing[0]}")
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.report_to = report_to

    def start_trackers(self, name: str, config: dict[str, Any]) -> None:
        """`config`: one value a key; what is not a number or a string is logged as text, as trackers take no more."""
        if self.report_to:
            plain = {key: value if isinstance(value, int | float) else str(value) for key, value in config.items()}
            self.accelerator.init_trackers(name, plain)

    def track(self, values: dict[str, float], step: int) -> None:
        self.accelerator.log(values, step=step)

    def close(self) -> None:
        self.accelerator.end_training()

    def prepare(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank."""
        return self.accelerator.reduce(values, reduction="sum")

    def max(self, values: Tensor) -> Tensor:
        """Largest over ranks, on every rank."""
        return self.accelerator.gather(values.reshape(1, *values.shape)).amax(0)
