"""A CUDA device that is not there: FakeTensors on it, autograd over them, autocast.

``install`` is called before anything else imports torch. It uses names of torch that are not public, so it
is for the version ``TORCH`` alone; ``reason_to_skip`` says whether this machine can have the device.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from hvae_hpc.training.compile_cache import private_folder

if TYPE_CHECKING:
    from torch import nn

TORCH = "2.13"
SOURCE = Path(__file__).with_name("fake_cuda.cpp")

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
    L2_cache_size=50 * 2**20,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
    gcnArchName="",
    is_integrated=0,
    uuid="fake",
)


def reason_to_skip() -> str:
    """Say why this machine cannot have the fake device; "" where it can."""
    version = importlib.metadata.version("torch")
    if not version.startswith(f"{TORCH}."):
        return f"the fake CUDA device is for torch {TORCH}, this is {version}"
    if (_folder_of_torch() / "lib" / "libtorch_cuda.so").exists():
        return "the fake CUDA device needs torch's build for CPUs; this one has a CUDA of its own"
    if shutil.which("g++") is None:
        return "the fake CUDA device needs g++"
    return ""


def install() -> None:
    """Give this process the device; nothing may have imported torch before."""
    ctypes.CDLL(str(_build()))
    _replace_runtime()
    _register_kernels()


def _folder_of_torch() -> Path:
    """Find torch without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _build() -> Path:
    """Compile the device's library for this torch, once a machine and user."""
    torch = _folder_of_torch()
    key = f"{torch}{importlib.metadata.version('torch')}{SOURCE.read_text()}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = private_folder(Path(tempfile.gettempdir()))
    library = folder / f"fake-cuda-{name}.so"
    if library.exists():
        return library

    with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as unfinished:
        pass
    lib = torch / "lib"
    command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}"]
    command += [str(SOURCE), "-o", unfinished.name, f"-L{lib}", f"-Wl,-rpath,{lib}"]
    subprocess.run([*command, "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"], check=True)
    Path(unfinished.name).replace(library)
    return library


REGISTERED: list[object] = []
"""Keeps what was registered with torch, which else goes away again."""


def _register_kernels() -> None:
    """Choose attention's kernel as torch does on a GPU, where a build for CPUs takes none that is fused."""
    import torch
    from torch import library as registration

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert attn_mask is None, "the fake device knows attention without a mask only"
        assert not enable_gqa, "the fake device knows attention with as many keys as queries only"
        assert all(part.stride(-1) == 1 for part in (query, key, value)), "no kernel is for that"
        if query.dtype is torch.float32:
            return torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, None, True, dropout_p, is_causal, scale=scale
            )[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]

    kernels = registration.Library("aten", "IMPL")
    kernels.impl("scaled_dot_product_attention", attend, "AutogradCUDA")
    # What a fused step of SGD changes has no numbers; for Adam's torch has the same itself.
    for overload in ("_fused_sgd_", "_fused_sgd_.tensor_lr"):
        kernels.impl(overload, lambda *_, **__: None, "Meta")
    REGISTERED.append(kernels)


def _replace_runtime() -> None:
    """Make torch.cuda answer for the device; its C++ half is not in a build for CPUs."""
    import torch
    from torch._subclasses import fake_tensor

    cuda = torch.cuda
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_initialized": True,
        "is_bf16_supported": True,
        "get_device_properties": H100,
        "get_device_capability": (H100.major, H100.minor),
        "get_device_name": H100.name,
        "get_arch_list": ["sm_90"],
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "set_rng_state")),
        **dict.fromkeys(("empty_cache", "reset_peak_memory_stats")),
    }
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("getDevice", "getCurrentRawStream", "exchangeDevice", "maybeExchangeDevice"):
        setattr(torch._C, f"_cuda_{name}", lambda *_: 0)
    torch._C._cuda_setDevice = lambda *_: None
    torch._C._cuda_cudaCachingAllocator_is_enabled = lambda: True

    # Else what torch.tensor(1.0) made is computed with for real, on the device.
    fake_tensor.CONSTANT_NUMEL_LIMIT = 0
    fake_tensor.FakeTensorMode.avoid_device_init = property(lambda self: True)
    # A copy of a network, as a rehearsal makes, stays on the same device.
    fake_tensor.FakeTensorMode.__deepcopy__ = lambda self, memo: self

    def to_list(tensor: torch.Tensor) -> list[float]:
        assert tensor.dim() == 1, "the fake device reads vectors only"
        return [0.5] * len(tensor.cpu())  # the copy is a wait, which is counted

    fake_tensor.FakeTensor.tolist = to_list


def move_to_device(model: "nn.Module") -> None:
    """Replace a network's weights and buffers by FakeTensors of the same layout on the device.

    Call it inside a FakeTensorMode. ``Module.to`` cannot do this: it swaps tensors, and refuses fake ones.
    """
    import torch

    moved: dict[int, torch.Tensor] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:  # weights that two modules share stay shared
            moved[id(tensor)] = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
            )
        return moved[id(tensor)]

    alive = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(move(weight), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = move(buffer)
    del alive  # until here: an id is a tensor's for its life only
