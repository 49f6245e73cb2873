"""What a piece of our code takes in memory and arithmetic, without doing it: it runs on tensors that have no data.

The tensors are torch's fake ones: they have shape, precision and device, and each operation gives others like them. The
meter sees every operation of forward and backward pass as it comes, so that what it counts follows the code that trains
(saved activations, casts, chunks of logits, recomputation) and not a formula about it.
"""

import ctypes
import json
import subprocess
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

MALLOC_SECONDS = 120.0
ALIGNMENT = 64  # of tensors on a processor
SMALLEST = 1024  # bytes; smaller pieces fill holes and take no part in what follows


class Meter(TorchDispatchMode):
    """Bytes of the tensors alive now and at most, floating-point operations, and every allocation in its order.

    `events` are (number of the tensor, bytes), negative bytes where it goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops = 0
        self.events: list[tuple[int, int]] = []
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
        self._change(self._count, size)
        weakref.finalize(storage, self._gone, key, self._count, size)

    def _gone(self, key: int, number: int, size: int) -> None:
        if self._alive.get(key) == number:
            del self._alive[key]
            self._change(number, -size)

    def _change(self, number: int, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)
        if abs(size) >= SMALLEST:
            self.events.append((number, size))


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


def heap_peak(events: list[tuple[int, int]]) -> int:
    """Most bytes that the C library's allocator holds while it serves `events`; 0 where it is another than glibc's.

    Tensors that come and go leave holes that it keeps; in a process of its own, which touches none of the memory.
    """
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{_REPLAY}"]
    try:
        done = subprocess.run(
            command, input=json.dumps(events), capture_output=True, text=True, timeout=MALLOC_SECONDS, check=True
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


_REPLAY = """
import ctypes, json
libc = ctypes.CDLL(None)
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
libc.free.argtypes = [ctypes.c_void_p]
libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
def held():
    info = libc.mallinfo2()
    return info.arena + info.hblkhd
events = json.load(sys.stdin)
places, first, most = {}, held(), 0
for number, size in events:
    if size > 0:
        place = ctypes.c_void_p()
        if libc.posix_memalign(ctypes.byref(place), 64, size):
            sys.exit(1)
        places[number] = place
        most = max(most, held())
    elif number in places:
        libc.free(places.pop(number))
print(most - first)
"""
