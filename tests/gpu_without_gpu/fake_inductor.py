"""torch.compile for the fake device: inductor plans the memory and writes the kernels, and none is launched."""

import atexit
import shutil
import tempfile
from typing import Any

import torch
import torch._inductor.async_compile
import torch._inductor.codegen.wrapper
import torch._inductor.config
import torch._inductor.scheduler
import torch.utils._triton
from torch._dynamo import device_interface
from torch._dynamo.utils import counters
from torch._inductor.cudagraph_utils import CUDAGraphPolicy
from torch._inductor.fx_passes import joint_graph
from torch.utils._python_dispatch import TorchDispatchMode


class Kernel:
    """A Triton kernel that is launched and does nothing."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def run(self, *tensors: Any, **options: Any) -> None:
        """Do nothing: what the kernel fills in has no numbers."""


class Unrecorded(CUDAGraphPolicy):
    """Counts what would be recorded as a CUDA graph, and runs it as it is."""

    def cudagraphify(self, model: Any, *inputs: Any, **how: Any) -> Any:
        """Count it with what Dynamo counts."""
        counters["inductor"]["cuda_graphs"] += 1
        return model


class OnCpu(TorchDispatchMode):
    """Makes new tensors on the CPU: inductor folds constants by computing them for real."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Say that Dynamo need not stop for this mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def move(value: Any) -> Any:
            on_device = isinstance(value, torch.device) and value.type == "cuda"
            return torch.device("cpu") if on_device else value

        kwargs = {name: move(value) for name, value in (kwargs or {}).items()}
        return func(*map(move, args), **kwargs)


def install(kernels: list[Kernel], graphs_only: bool = False) -> None:
    """Let torch.compile work in this process.

    Args:
        kernels: takes those that inductor writes.
        graphs_only: run Dynamo's graphs as they are, without inductor: seconds instead of a minute.
    """
    # What is compiled here is of no use to anybody else, so it goes with this process.
    tempfile.tempdir = tempfile.mkdtemp(prefix="hvae_hpc-")
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

    if graphs_only:
        torch._TorchCompileInductorWrapper.__call__ = lambda self, graph, inputs: graph.forward
        return

    def keep(self: Any, name: str, source: str, device_str: str = "cuda") -> Kernel:
        kernels.append(Kernel(name, source))
        return kernels[-1]

    torch._inductor.async_compile.AsyncCompile.triton = keep
    torch._inductor.config.cudagraph_policy = Unrecorded()
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.force_disable_caches = (
        True  # what is written here is for no other device
    )
    torch._inductor.config.shape_padding = False  # whether it pays is measured, on the device
    torch._inductor.scheduler.has_triton = lambda: True
    torch.utils._triton.triton_hash_with_backend = lambda: ""
    wrapper = torch._inductor.codegen.wrapper.PythonWrapperCodegen
    wrapper.write_triton_header_once = wrapper.write_get_raw_stream_header

    interface = device_interface.CudaInterface
    for name, answer in {
        "get_raw_stream": 0,
        "current_device": 0,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "is_bf16_supported": True,
        "synchronize": None,
        "set_device": None,
        "get_device_properties": torch.cuda.get_device_properties(),
    }.items():
        setattr(interface, name, staticmethod(lambda *_, answer=answer, **__: answer))

    fold = joint_graph.UniformValueConstantFolder.run

    def fold_on_cpu(self: Any, *values: Any, **options: Any) -> Any:
        with OnCpu():
            return fold(self, *values, **options)

    joint_graph.UniformValueConstantFolder.run = fold_on_cpu
    _replace_guards()


def _replace_guards() -> None:
    """Replace what the generated code calls in C++, which looks at a tensor's memory."""
    guards = torch._C._dynamo.guards
    guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda"
    )
    guards._reinterpret_tensor = lambda tensor, size, stride, offset=0: torch.as_strided(
        tensor.detach(), size, stride, tensor.storage_offset() + offset
    )
    guards.assert_size_stride = lambda *_, **__: None
    guards.assert_alignment = lambda *_, **__: None
