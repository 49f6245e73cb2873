"""Weights divided over the processes of a run: torch's `fully_shard` (FSDP2), on processors and on GPUs.

With an adapter the frozen base is divided, and each process has the whole of what is trained; without one, weights,
gradients and optimizer states are divided.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tunekit.errors import RankFailed
from tunekit.models.adapter_roles import is_adapted
from tunekit.models.policy import Policy
from tunekit.train.engine import Engine

log = logging.getLogger("tunekit")


def shard(policy: Policy, engine: Engine, *, cpu_offload: bool = False) -> None:
    """Divides the weights of `policy` over all processes, each decoder layer on its own and the rest together.

    Raises `RankFailed` where torch did not divide them.
    """
    mesh = init_device_mesh(engine.device.type, (engine.world_size,))
    trained = {each for each in policy.parameters() if each.requires_grad}
    options: dict[str, Any] = {
        "mesh": mesh,
        "ignored_params": trained if is_adapted(policy.model) else None,
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    layers = [fully_shard(layer, **options) for stack in _stacks(policy) for layer in stack]
    divided = [*layers, fully_shard(policy, **options)]
    for before, module in zip([divided[0], *divided], divided, strict=False):
        # Else what is fetched ahead follows the passes before, of which the first process makes some alone.
        module.set_modules_to_backward_prefetch([before])
        module.set_gradient_divide_factor(1.0)  # a sum over ranks: the weight of the step divides it once
        module.set_force_sum_reduction_for_comms(True)  # the only one that gloo has
    _check(policy, engine)


def _stacks(policy: Policy) -> list[nn.ModuleList]:
    """The decoder layers, also of a value model beside the policy's."""
    count = policy.causal.config.get_text_config().num_hidden_layers
    found: dict[str, nn.ModuleList] = {}
    for name, each in policy.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)  # as many experts in a layer as there are layers
        if isinstance(each, nn.ModuleList) and len(each) == count and not inside:
            found[name] = each
    return [*found.values()]


def _check(policy: Policy, engine: Engine) -> None:
    """That each process has its part: what was asked for and what took effect are two things."""
    divided = [each for each in policy.parameters() if isinstance(each, DTensor)]
    whole = sum(each.numel() for each in divided)
    here = sum(each.to_local().numel() for each in divided)
    kept = sum(each.numel() for each in policy.parameters() if not isinstance(each, DTensor))
    if not divided or int(engine.sum(torch.tensor(here, device=engine.device))) != whole:
        raise RankFailed(f"distributed.strategy: fsdp2: rank {engine.rank} has {here:,} of {whole:,} weights to divide")
    log.info(
        "fsdp2: %s weights are divided over %d processes, %s here; each has %s whole",
        f"{whole:,}",
        engine.world_size,
        f"{here:,}",
        f"{kept:,}",
    )


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Within the block each process has all weights, and its forward passes wait for no other one.

    For what a process does alone or at its own pace: generation, the artefact.
    """
    modules = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not policy, recurse=False)
            module.reshard()


def divide_again(policy: nn.Module) -> None:
    """Lets go of what a forward pass alone leaves gathered: the parameters are then the divided ones."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_divided(policy: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in policy.modules())
