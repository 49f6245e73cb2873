"""What a piece of our code takes in memory and arithmetic, without doing it: it runs on tensors that have no data.

The tensors are torch's fake ones: they have shape, precision and device, and each operation gives others like them. The
meter sees every operation of forward and backward pass as it comes, so that what it counts follows the code that trains
(saved activations, casts, chunks of logits, recomputation) and not a formula about it.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Bytes of the tensors alive now and at most, and floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self.flops = 0
        self._alive: dict[int, int] = {}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.see(value)
        return out

    def see(self, tensor: Tensor) -> None:
        """Counts the storage of `tensor` until nothing holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        self._count += 1
        self._alive[key] = self._count
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, self._count, size)

    def _gone(self, key: int, number: int, size: int) -> None:
        if self._alive.get(key) == number:  # else another storage has taken its place
            del self._alive[key]
            self.now -= size


def without_data(model: nn.Module, mode: FakeTensorMode, device: str = "cpu") -> nn.Module:
    """`model`, made on the meta device, with parameters and buffers that say they lie on `device`; ties stay ties."""
    known: dict[int, Tensor] = {}

    def moved(value: Tensor) -> Tensor:
        if id(value) not in known:
            known[id(value)] = torch.empty_like(value, device=device)
        return known[id(value)]

    parameters: dict[int, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    made = nn.Parameter(moved(weight), weight.requires_grad)
                    module._parameters[name] = parameters.setdefault(id(weight), made)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = moved(buffer)
    return model
