"""What a program does on the fake device: the bytes that live there, and the waits for it.

The bytes are those of the tensors, as the caching allocator is asked for them. A CUDA context (about 0.5 GiB),
cuDNN's workspaces and fragmentation come on top.
"""

import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tests import ROOT

BLOCK = 512
"""The caching allocator rounds up to so many bytes."""


class Recorder(TorchDispatchMode):
    """Sees every operation; enter it inside the FakeTensorMode.

    Args:
        capacity: bytes of the device's memory; what asks for more is out of memory.

    Attributes:
        live, peak: bytes on the device now, and at most so far.
        waits: of each line of code that waited for a number of the device, how often it did.
        step_waits: those of them that were in a training step, where nothing may wait.
        operations: the names of all.
    """

    def __init__(self, capacity: float = float("inf")) -> None:
        super().__init__()
        self.capacity = capacity
        self.live = self.peak = 0
        self.waits: Counter[str] = Counter()
        self.step_waits: Counter[str] = Counter()
        self.operations: set[str] = set()
        self.storages: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Say that Dynamo need not stop for this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations.add(str(func))
        if func is torch.ops.aten._local_scalar_dense.default:
            if _on_device(args[0]):
                self.wait()
            return 0.5 if args[0].is_floating_point() else 1
        result = func(*args, **(kwargs or {}))
        if _is_waited_for(func, args, kwargs or {}, result):
            self.wait()
        for tensor in tree_iter(result):
            if _on_device(tensor):
                self.see(tensor)
        return result

    def wait(self) -> None:
        """Count the line of the product that waits."""
        frames = [frame for frame in traceback.extract_stack() if _is_ours(frame.filename)]
        place = frames[-1]
        line = f"{Path(place.filename).relative_to(ROOT)}:{place.lineno}: {place.line}"
        self.waits[line] += 1
        if any(frame.name == "take_step" for frame in frames):
            self.step_waits[line] += 1

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory until it is freed, once for all its views.

        Raises:
            torch.OutOfMemoryError: the device is full.
        """
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.storages and self.storages[key]() is storage:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if self.live + size > self.capacity:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")

        def free(_: object) -> None:
            self.live -= size
            self.storages.pop(key, None)

        self.storages[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def _on_device(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def _is_waited_for(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    """Tell whether an operation is a copy between host and device that the host waits for."""
    if func is torch.ops.aten._to_copy.default:
        source, target = args[0], result
    elif func is torch.ops.aten.copy_.default:
        target, source = args[:2]
    else:
        return False
    if _on_device(source) == _on_device(target):
        return False
    # A copy to the host is waited for also where it says non_blocking: its numbers are read then.
    asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    return _on_device(source) or not asked


def _is_ours(file: str) -> bool:
    path = Path(file)
    is_of_device = path.name in ("recorder.py", "fake_cuda.py")
    return path.is_relative_to(ROOT) and ".venv" not in path.parts and not is_of_device
